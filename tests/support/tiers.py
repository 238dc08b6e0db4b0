"""A small KV cache with tiers to move blocks about in, its naive twin, and streams that take their time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.tiers import Tier, Transfer
from octavo.engine import transfers
from octavo.engine.disk_store import DiskStore
from octavo.engine.host_link import CudaLink
from octavo.engine.kv_cache import KVCache
from octavo.kernels.attention import select_backend
from octavo.kernels.kv_rows import row_width

Place = tuple[Tier, int]

LAYERS, HEADS, BLOCK_SIZE, HEAD_DIM = 3, 2, 4, 8


def block_bytes(dtype: torch.dtype) -> int:
    return LAYERS * 2 * HEADS * BLOCK_SIZE * row_width(HEAD_DIM, dtype) * dtype.itemsize


class FlakyDisk(DiskStore):
    """Refuses some writes and reads, chosen by chance."""

    faults: random.Random | None = None

    def write(self, block: int, data: memoryview) -> bool:
        if fails(self.faults):
            self.forget(block)
            return False
        return super().write(block, data)

    def read(self, block: int, into: memoryview) -> bool:
        arrived = super().read(block, into)
        if fails(self.faults):
            into[:] = bytes(len(into))
            return False
        return arrived


def fails(faults: random.Random | None) -> bool:
    return faults is not None and faults.random() < 0.2


class TieredCache:
    """A small KV cache whose blocks are filled and read as bits; its last device block serves to look at others."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        num_blocks: int = 6,
        num_host_blocks: int = 5,
        num_disk_blocks: int = 5,
    ) -> None:
        self.disk = FlakyDisk(folder, num_disk_blocks, block_bytes(dtype)) if num_disk_blocks else None
        self.kv = KVCache(
            groups=LayerGroups.of([0] * LAYERS, longest=1),
            num_blocks=num_blocks,
            num_kv_heads=HEADS,
            block_size=BLOCK_SIZE,
            head_dim=HEAD_DIM,
            dtype=dtype,
            device=torch.device(device),
            backend=select_backend(torch.device(device)),
            num_host_blocks=num_host_blocks,
            disk=self.disk,
        )
        self._bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
        self._scratch = num_blocks
        sizes = {Tier.DEVICE: num_blocks - 1, Tier.HOST: num_host_blocks, Tier.DISK: num_disk_blocks}
        self.places = [(tier, block) for tier, size in sizes.items() for block in range(1, size + 1)]

    def bits(self, block: int) -> list[Tensor]:
        """A device block, layer by layer, as integers: NaNs compare equal as well."""
        return [layer[block].view(self._bits) for layer in self.kv.layers]

    def fill(self, place: Place, seed: int) -> Tensor:
        """Puts random bits into a block and returns them."""
        chance = torch.Generator().manual_seed(seed)
        block = place[1] if place[0] is Tier.DEVICE else self._scratch
        limits = torch.iinfo(self._bits)
        shape = (LAYERS, *self.kv.layers[0].shape[1:])
        content = torch.randint(limits.min, limits.max, shape, dtype=self._bits, generator=chance)
        for layer, bits in zip(self.bits(block), content, strict=True):
            layer.copy_(bits)
        if place[0] is not Tier.DEVICE:
            assert self.kv.transfer([Transfer(Tier.DEVICE, block, *place)]).lost == ()
        return content

    def content(self, place: Place) -> Tensor | None:
        """A block's bits, or None if it is lost."""
        tier, block = place
        if tier is not Tier.DEVICE:
            if self.kv.transfer([Transfer(tier, block, Tier.DEVICE, self._scratch)]).lost:
                return None
            block = self._scratch
        return torch.stack([layer.cpu() for layer in self.bits(block)])


def naive(
    transfers: Sequence[Transfer], contents: dict[Place, Any], faults: random.Random | None = None
) -> tuple[list[Transfer], set[Place]]:
    """Executes transfers one by one on a dictionary; returns the lost ones and the places that hold garbage."""
    lost, garbage = [], set()
    for transfer in transfers:
        source, target = (transfer.source, transfer.source_block), (transfer.target, transfer.target_block)
        arrives = source not in garbage
        if arrives and Tier.DISK in (transfer.source, transfer.target):
            arrives = not fails(faults)
        if arrives:
            contents[target] = contents[source]
            garbage.discard(target)
        else:
            garbage.add(target)
            lost.append(transfer)
    return lost, garbage


def random_transfers(chance: random.Random, places: Sequence[Place]) -> list[Transfer]:
    """Runs of one direction, as the block manager makes them, over few blocks: repeats and chains abound."""
    found: list[Transfer] = []
    length = chance.randint(0, 30)
    while len(found) < length:
        source, target = chance.sample(list(Tier), 2)
        sources = [place for place in places if place[0] is source]
        targets = [place for place in places if place[0] is target]
        run = chance.randint(1, 6)
        found += [Transfer(*chance.choice(sources), *chance.choice(targets)) for _ in range(run)]
    return found


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────


class SlowStream:
    """Runs its work when somebody has to have it, and not before; an eager one runs it as soon as it may."""

    def __init__(self, *, eager: bool = False) -> None:
        self._work: list[Callable[[], Any]] = []
        self._done = 0
        self._eager = eager

    def add(self, work: Callable[[], Any]) -> None:
        self._work.append(work)
        if self._eager:
            self.synchronize()

    def wait_stream(self, other: SlowStream) -> None:
        end = len(other._work)
        self.add(lambda: other.run(end))

    def synchronize(self) -> None:
        self.run(len(self._work))

    def run(self, end: int) -> None:
        while self._done < end:
            self._done += 1
            self._work[self._done - 1]()


class _Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self._happened = False

    def record(self, stream: SlowStream) -> None:
        stream.add(lambda: setattr(self, "_happened", True))

    def query(self) -> bool:
        return self._happened

    def elapsed_time(self, ended: _Event) -> float:
        assert self._happened
        assert ended._happened
        return 5.0


class SlowStreams(TorchDispatchMode):
    """Puts the copies of a `CudaLink` off to two streams on a CPU, which run as late as they may, or one early.

    Within this context copies are only queued; `finish` runs what is left.
    """

    def __init__(self, eager: str) -> None:
        super().__init__()
        self.compute = SlowStream(eager=eager == "compute")
        self.side = SlowStream(eager=eager == "side")
        self._current = self.compute
        self._replaying = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if self._replaying or func not in (aten.copy_.default, aten.index_select.out, aten.index_copy_.default):
            return func(*args, **kwargs)
        self._current.add(lambda: self._replay(func, args, kwargs))
        return kwargs.get("out", args[0])

    def _replay(self, func: Any, args: Any, kwargs: Any) -> None:
        self._replaying = True
        func(*args, **kwargs)
        self._replaying = False

    @contextmanager
    def stream(self, stream: SlowStream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def finish(self) -> None:
        self.compute.synchronize()
        self.side.synchronize()


def slow_streams(monkeypatch: pytest.MonkeyPatch, eager: str) -> SlowStreams:
    """Makes KV caches on the CPU use `CudaLink`, over streams of ours."""
    streams = SlowStreams(eager)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.side)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.compute)
    monkeypatch.setattr(torch.cuda, "stream", streams.stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(transfers, "CpuLink", CudaLink)
    return streams
