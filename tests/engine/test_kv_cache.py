"""Blocks between the tiers: exact to the bit, in order, and lost ones are told."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiers import BLOCK_SIZE, HEAD_DIM, HEADS, LAYERS, TieredCache, block_bytes, naive, random_transfers

from octavo.block_manager.manager import BlockCopy
from octavo.block_manager.tiers import Tier, Transfer, TransferOutcome
from octavo.engine import transfers as transfers_module
from octavo.engine.transfers import in_batches

DEVICE, HOST, DISK = Tier

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


@pytest.fixture
def cache(tmp_path: Path) -> TieredCache:
    return TieredCache(tmp_path)


def test_layers_have_the_documented_layout(cache: TieredCache) -> None:
    assert len(cache.kv.layers) == LAYERS
    for layer in cache.kv.layers:
        assert layer.shape == (7, 2, HEADS, BLOCK_SIZE, HEAD_DIM)
        assert layer.is_contiguous()
    assert cache.kv.block_bytes == LAYERS * 2 * HEADS * BLOCK_SIZE * HEAD_DIM * 4


def test_copies_within_the_device_reach_every_layer(cache: TieredCache) -> None:
    content = cache.fill((DEVICE, 2), seed=1)
    other = cache.fill((DEVICE, 3), seed=2)
    cache.kv.copy([BlockCopy(2, 4)])
    assert torch.equal(cache.content((DEVICE, 4)), content)
    assert torch.equal(cache.content((DEVICE, 3)), other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("way", list(permutations(Tier, 2)), ids=lambda way: f"{way[0].name}-{way[1].name}")
def test_a_block_arrives_bit_for_bit(
    tmp_path: Path, way: tuple[Tier, Tier], dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two blocks at a time through the bounce memory, so that five take three turns.
    monkeypatch.setattr(transfers_module, "_BOUNCE_BYTES", 2 * block_bytes(dtype))
    cache = TieredCache(tmp_path, dtype=dtype, device=device)
    source, target = way
    contents = {place: cache.fill(place, seed) for seed, place in enumerate(cache.places)}
    pairs = list(zip((1, 2, 3, 4, 5), (4, 5, 3, 1, 2), strict=True))
    outcome = cache.kv.transfer([Transfer(source, a, target, b) for a, b in pairs])
    assert outcome.lost == ()
    for a, b in pairs:
        contents[target, b] = contents[source, a]
    for place, content in contents.items():
        assert torch.equal(cache.content(place), content), place


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flaky", [False, True])
def test_batches_do_what_one_by_one_does(
    cache: TieredCache, flaky: bool, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transfers_module, "_BOUNCE_BYTES", 2 * block_bytes(torch.float32))
    cache = TieredCache(tmp_path, num_blocks=4, num_host_blocks=3, num_disk_blocks=3, device=device)
    num_lost = 0
    for seed in range(400):
        chance = random.Random(seed)
        contents = {place: cache.fill(place, 1000 * seed + index) for index, place in enumerate(cache.places)}
        transfers = random_transfers(chance, cache.places)
        cache.disk.faults = random.Random(seed) if flaky else None
        outcome = cache.kv.transfer(transfers)
        cache.disk.faults = None
        # Faults come in the order in which the disk is used.
        in_order = [transfer for batch in in_batches(transfers) for transfer in batch] if flaky else transfers
        lost, garbage = naive(in_order, contents, random.Random(seed) if flaky else None)
        assert list(outcome.lost) == lost, f"seed {seed}"
        for place in set(cache.places) - garbage:
            assert torch.equal(cache.content(place), contents[place]), f"seed {seed}, {place}"
        num_lost += len(lost)
    assert (num_lost > 400) == flaky


def test_batches_have_one_direction_and_leave_what_the_given_order_leaves() -> None:
    places = [(tier, block) for tier in Tier for block in (1, 2, 3)]
    moved = 0
    for seed in range(400):
        transfers = random_transfers(random.Random(seed), places)
        batches = in_batches(transfers)
        for batch in batches:
            assert len({(transfer.source, transfer.target) for transfer in batch}) == 1
            assert len({transfer.target_block for transfer in batch}) == len(batch)
        reordered = [transfer for batch in batches for transfer in batch]
        assert Counter(reordered) == Counter(transfers)
        contents: list[dict[tuple[Tier, int], Any]] = [{place: place for place in places} for _ in range(2)]
        for order, content in zip((transfers, reordered), contents, strict=True):
            naive(order, content)
        assert contents[0] == contents[1], f"seed {seed}"
        moved += reordered != transfers
    assert moved > 20


def test_evictions_that_push_others_down_make_two_batches() -> None:
    sinking = []
    for block in (1, 2, 3):
        sinking += [Transfer(Tier.HOST, block, Tier.DISK, block), Transfer(Tier.DEVICE, block, Tier.HOST, block)]
    assert in_batches(sinking) == [sinking[::2], sinking[1::2]]


def test_what_comes_back_into_a_block_that_has_just_left_comes_later() -> None:
    there = Transfer(Tier.DEVICE, 1, Tier.HOST, 1)
    back = Transfer(Tier.HOST, 2, Tier.DEVICE, 1)
    again = Transfer(Tier.DEVICE, 1, Tier.HOST, 2)
    assert in_batches([there, back, again]) == [[there], [back], [again]]


def test_every_batch_is_timed(cache: TieredCache) -> None:
    to_host = [Transfer(DEVICE, block, HOST, block) for block in (1, 2, 3)]
    to_disk = [Transfer(HOST, block, DISK, block) for block in (1, 2)]
    timings = cache.kv.transfer([*to_host, *to_disk, to_host[0]]).timings
    assert [timing[:3] for timing in timings] == [(DEVICE, HOST, 3), (HOST, DISK, 2), (DEVICE, HOST, 1)]
    assert all(0 < timing.seconds < 10 for timing in timings)
    assert cache.kv.transfer(to_disk).timings[0][:3] == (HOST, DISK, 2), "told once"
    assert cache.kv.transfer(()) == TransferOutcome()


def no_space(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_reads_a_lost_block_is_lost_until_it_is_written_anew(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = cache.fill((DEVICE, 2), seed=2)
    cache.fill((DEVICE, 1), seed=1)
    monkeypatch.setattr(os, "pwrite", no_space)
    sunk, back, on = Transfer(DEVICE, 1, DISK, 1), Transfer(DISK, 1, HOST, 1), Transfer(HOST, 1, DEVICE, 3)
    anew, again = Transfer(DEVICE, 2, HOST, 1), Transfer(HOST, 1, DEVICE, 4)
    outcome = cache.kv.transfer([sunk, back, on, anew, again])
    assert outcome.lost == (sunk, back, on)
    assert [timing[:3] for timing in outcome.timings] == [(DEVICE, HOST, 1), (HOST, DEVICE, 1)]
    assert torch.equal(cache.content((DEVICE, 4)), fresh)
    assert cache.disk.write_failures == 1
    assert cache.disk.read_failures == 0, "the lost block is not even asked for"


def test_a_damaged_block_spares_its_batch(cache: TieredCache) -> None:
    contents = {block: cache.fill((DISK, block), seed=block) for block in (1, 2, 3)}
    os.pwrite(cache.disk.fd, b"damage", cache.kv.block_bytes + 5)
    for target in (DEVICE, HOST):
        transfers = [Transfer(DISK, block, target, block) for block in (1, 2, 3)]
        outcome = cache.kv.transfer(transfers)
        assert outcome.lost == (transfers[1],)
        assert [timing[:3] for timing in outcome.timings] == [(DISK, target, 2)]
        assert torch.equal(cache.content((target, 1)), contents[1])
        assert torch.equal(cache.content((target, 3)), contents[3])
    assert cache.disk.checksum_failures == 2


def test_a_damaged_block_does_not_reach_the_device(cache: TieredCache) -> None:
    cache.fill((DISK, 1), seed=1)
    before = cache.fill((DEVICE, 1), seed=2)
    os.ftruncate(cache.disk.fd, 10)
    assert cache.kv.transfer([Transfer(DISK, 1, DEVICE, 1)]).lost
    assert torch.equal(cache.content((DEVICE, 1)), before)


def test_a_full_disk_is_logged_once(
    cache: TieredCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "pwrite", no_space)
    transfers = [Transfer(DEVICE, block, DISK, block) for block in (1, 2, 3)] * 3
    assert cache.kv.transfer(transfers).lost == tuple(transfers)
    assert cache.disk.write_failures == 9
    (record,) = caplog.records
    assert os.strerror(errno.ENOSPC) in record.getMessage()


class TestMeasuring:
    def test_each_direction_once(self, cache: TieredCache) -> None:
        timings = cache.kv.measure_transfers()
        assert sorted(timing[:3] for timing in timings) == [(*way, 5) for way in sorted(permutations(Tier, 2))]
        assert all(0 < timing.seconds < 10 for timing in timings)

    def test_a_few_blocks_of_many(self, tmp_path: Path) -> None:
        cache = TieredCache(tmp_path, num_blocks=50, num_host_blocks=40, num_disk_blocks=3)
        counts = {timing[:2]: timing.num_blocks for timing in cache.kv.measure_transfers()}
        assert counts[DEVICE, HOST] == counts[HOST, DEVICE] == 8
        assert counts[DISK, HOST] == counts[DEVICE, DISK] == 3

    @pytest.mark.parametrize(
        ("num_host_blocks", "num_disk_blocks", "tiers"),
        [(0, 0, [DEVICE]), (4, 0, [DEVICE, HOST]), (0, 4, [DEVICE, DISK])],
    )
    def test_directions_that_exist(
        self, tmp_path: Path, num_host_blocks: int, num_disk_blocks: int, tiers: list[Tier]
    ) -> None:
        cache = TieredCache(tmp_path, num_host_blocks=num_host_blocks, num_disk_blocks=num_disk_blocks)
        ways = {timing[:2] for timing in cache.kv.measure_transfers()}
        assert ways == set(permutations(tiers, 2))

    def test_device_and_disk_are_left_as_they_were(self, cache: TieredCache) -> None:
        contents = {block: cache.fill((DEVICE, block), seed=block) for block in range(1, 6)}
        cache.kv.measure_transfers()
        for block, content in contents.items():
            assert torch.equal(cache.content((DEVICE, block)), content)
        disk = cache.disk
        assert (disk.write_failures, disk.read_failures, disk.checksum_failures) == (0, 0, 0)
        for block in range(1, 6):
            assert cache.content((DISK, block)) is None, "nobody wrote it"
        assert cache.kv.transfer(()).timings == (), "nothing is left for the first step to tell"

    def test_a_broken_disk_has_no_timings(self, cache: TieredCache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "pwrite", no_space)
        assert {timing[:2] for timing in cache.kv.measure_transfers()} == {(DEVICE, HOST), (HOST, DEVICE)}
