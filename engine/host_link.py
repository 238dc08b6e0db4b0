"""Copies between the device and host memory: at once on a CPU, on a stream of their own on a GPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.engine.host_tier import HostTier, as_bytes

# What a GPU sets aside for blocks on their way. At 50 GB/s it takes over a millisecond to fill, so that the launches
# per turn do not count.
_STAGING_BYTES = 64 * 2**20

StopClock = Callable[[int], None]


class HostLink(ABC):
    """Copies blocks between the device and host memory, and times what its owner does."""

    def __init__(self) -> None:
        self._timings: list[TransferTiming] = []

    @abstractmethod
    def to_host(self, blocks: Sequence[int], host: HostTier, rows: Sequence[int]) -> None:
        """Copies the device's ``blocks`` to the host's ``rows``, no row twice."""

    @abstractmethod
    def to_device(self, host: HostTier, rows: Sequence[int], blocks: Sequence[int]) -> None:
        """Copies the host's ``rows`` to the device's ``blocks``, no block twice."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when the CPU may read and write host memory again."""

    def start_clock(self, source: Tier, target: Tier) -> StopClock:
        """Starts to time the copies of one direction; the result stops it, given the number of blocks."""
        started = time.perf_counter()

        def stop(num_blocks: int) -> None:
            self._timings.append(TransferTiming(source, target, num_blocks, time.perf_counter() - started))

        return stop

    def take_timings(self) -> list[TransferTiming]:
        """What was measured since this was last asked."""
        timings, self._timings = self._timings, []
        return timings


class CpuLink(HostLink):
    """For a device that is the CPU.

    Args:
        kv: The device's KV tensor, ``[num_layers, num_blocks + 1, 2, num_kv_heads, block_size, row width]``.
    """

    def __init__(self, kv: Tensor) -> None:
        super().__init__()
        self._by_block = as_bytes(kv).swapaxes(0, 1)

    # In numpy, by one thread: torch would wake all of its threads for each block, and on a busy computer a copy that
    # takes 0.1 ms then takes 8.
    def to_host(self, blocks: Sequence[int], host: HostTier, rows: Sequence[int]) -> None:
        for block, row in zip(blocks, rows, strict=True):
            host.layer_bytes[row] = self._by_block[block]

    def to_device(self, host: HostTier, rows: Sequence[int], blocks: Sequence[int]) -> None:
        for row, block in zip(rows, blocks, strict=True):
            self._by_block[block] = host.layer_bytes[row]

    def wait(self) -> None:
        pass


class CudaLink(HostLink):
    """For a GPU: the model goes on computing while blocks leave.

        compute stream    blocks ─► staging ┐        ┌ staging ─► blocks
        side stream                         └► rows ─┘

    The stream that takes over waits for the other, each time. Hence the staging tensor is never written before it has
    been read, blocks may be overwritten as soon as `to_host` returns, and what is launched after `to_device` sees the
    new blocks. Rows are touched by the side stream only, until somebody calls `wait`.

    Args:
        kv: The device's KV tensor, ``[num_layers, num_blocks + 1, 2, num_kv_heads, block_size, row width]``.
    """

    def __init__(self, kv: Tensor) -> None:
        super().__init__()
        self._by_block = kv.transpose(0, 1)
        self._side = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self._running: deque[tuple[Tier, Tier, int, torch.cuda.Event, torch.cuda.Event]] = deque()

    @cached_property
    def _staging(self) -> Tensor:
        """Blocks on their way, ``[num_staged, num_layers, 2, num_kv_heads, block_size, row width]``; none at first."""
        shape = self._by_block.shape[1:]
        num_staged = max(1, _STAGING_BYTES // (shape.numel() * self._by_block.element_size()))
        return self._by_block.new_empty((num_staged, *shape))

    def to_host(self, blocks: Sequence[int], host: HostTier, rows: Sequence[int]) -> None:
        compute = torch.cuda.current_stream(self._by_block.device)
        for turn in slices(len(blocks), len(self._staging)):
            index = self._index(blocks[turn])
            staged = self._staging[: len(index)]
            compute.wait_stream(self._side)
            torch.index_select(self._by_block, 0, index, out=staged)
            self._side.wait_stream(compute)
            with torch.cuda.stream(self._side):
                for row, block in zip(rows[turn], staged, strict=True):
                    host.blocks[row].copy_(block, non_blocking=True)

    def to_device(self, host: HostTier, rows: Sequence[int], blocks: Sequence[int]) -> None:
        compute = torch.cuda.current_stream(self._by_block.device)
        for turn in slices(len(blocks), len(self._staging)):
            index = self._index(blocks[turn])
            staged = self._staging[: len(index)]
            self._side.wait_stream(compute)
            with torch.cuda.stream(self._side):
                for row, block in zip(rows[turn], staged, strict=True):
                    block.copy_(host.blocks[row], non_blocking=True)
            compute.wait_stream(self._side)
            self._by_block.index_copy_(0, index, staged)

    def wait(self) -> None:
        self._side.synchronize()

    def start_clock(self, source: Tier, target: Tier) -> StopClock:
        """As on a CPU if the disk takes part, for then the CPU waits anyway; else by events that nobody waits for."""
        if Tier.DISK in (source, target):
            self.wait()  # for what is under way: it is not this direction's time
            return super().start_clock(source, target)
        started = _mark(torch.cuda.current_stream(self._by_block.device))

        def stop(num_blocks: int) -> None:
            self._running.append((source, target, num_blocks, started, _mark(self._side)))

        return stop

    def take_timings(self) -> list[TransferTiming]:
        """What was measured since this was last asked; copies that still run are told the next time."""
        timings = super().take_timings()
        while self._running and self._running[0][-1].query():  # type: ignore[no-untyped-call]
            source, target, num_blocks, started, ended = self._running.popleft()
            timings.append(TransferTiming(source, target, num_blocks, started.elapsed_time(ended) / 1000))
        return timings

    def _index(self, blocks: Sequence[int]) -> Tensor:
        return torch.tensor(blocks).pin_memory().to(self._by_block.device, non_blocking=True)


def slices(length: int, size: int) -> Iterator[slice]:
    """Cuts ``length`` items into pieces of at most ``size``."""
    return (slice(start, start + size) for start in range(0, length, size))


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
