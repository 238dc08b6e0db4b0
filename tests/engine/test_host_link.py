"""The GPU's way between device and host, on a CPU with streams that run as late as they may."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiers import TieredCache, block_bytes, naive, random_transfers, slow_streams

from octavo.block_manager.tiers import Tier, Transfer
from octavo.engine import host_link, transfers


@pytest.mark.parametrize("eager", ["neither", "compute", "side"])
@pytest.mark.parametrize("flaky", [False, True])
def test_streams_wait_for_each_other(tmp_path: Path, eager: str, flaky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two blocks at a time, so that the staging and the bounce memory are used over and over.
    monkeypatch.setattr(host_link, "_STAGING_BYTES", 2 * block_bytes(torch.float32))
    monkeypatch.setattr(transfers, "_BOUNCE_BYTES", 2 * block_bytes(torch.float32))
    streams = slow_streams(monkeypatch, eager)
    for seed in range(100):
        cache = TieredCache(tmp_path, num_blocks=6, num_host_blocks=5, num_disk_blocks=5)
        chance = random.Random(seed)
        contents = {place: cache.fill(place, 1000 * seed + index) for index, place in enumerate(cache.places)}
        planned = random_transfers(chance, cache.places)
        cache.disk.faults = random.Random(seed) if flaky else None
        with streams:
            lost_now = cache.kv.transfer(planned).lost
        cache.disk.faults = None
        # The step that follows overwrites device blocks that have been copied down, on the compute stream.
        overwritten = cache.fill((Tier.DEVICE, 1), seed=-seed) if eager == "compute" else None
        streams.finish()
        # Faults come in the order in which the disk is used.
        in_order = [transfer for batch in transfers.in_batches(planned) for transfer in batch] if flaky else planned
        lost, garbage = naive(in_order, contents, random.Random(seed) if flaky else None)
        if overwritten is not None:
            contents[Tier.DEVICE, 1] = overwritten
        assert list(lost_now) == lost, f"seed {seed}"
        for place in set(cache.places) - garbage:
            assert torch.equal(cache.content(place), contents[place]), f"seed {seed}, {place}"


def test_timings_are_told_by_a_later_call_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = slow_streams(monkeypatch, "neither")
    cache = TieredCache(tmp_path)
    with streams:
        assert cache.kv.transfer([Transfer(Tier.DEVICE, 1, Tier.HOST, 1)]).timings == ()
        assert cache.kv.transfer([Transfer(Tier.HOST, 1, Tier.DEVICE, 2)]).timings == ()
        streams.finish()
        timings = cache.kv.transfer([]).timings
        assert timings == ((Tier.DEVICE, Tier.HOST, 1, 0.005), (Tier.HOST, Tier.DEVICE, 1, 0.005))
        assert cache.kv.transfer([]).timings == ()


def test_measuring_waits_for_its_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = slow_streams(monkeypatch, "neither")
    cache = TieredCache(tmp_path, num_disk_blocks=0)
    with streams:
        ways = [timing[:3] for timing in cache.kv.measure_transfers()]
        assert cache.kv.transfer([]).timings == (), "nothing is left for the first step to tell"
    assert ways == [(Tier.DEVICE, Tier.HOST, 5), (Tier.HOST, Tier.DEVICE, 5)]
