"""Runs the transfers that the block manager plans: in order, in batches, and honest about what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, compress

from torch import Tensor

from octavo.block_manager.tiers import Tier, Transfer, TransferOutcome, TransferTiming
from octavo.engine.disk_store import DiskStore
from octavo.engine.host_link import CpuLink, CudaLink, HostLink, slices
from octavo.engine.host_tier import HostTier

# Host memory through which blocks pass between device and disk.
_BOUNCE_BYTES = 8 * 2**20

_MEASURED_BLOCKS = 8


class TierTransfers:
    """The tiers below the device, and the six ways between the three.

        device ◄── link ──► host ◄── file ──► disk
        device ◄── link ──► bounce ◄── file ──► disk

    Args:
        kv: The device's KV tensor, ``[num_layers, num_blocks + 1, 2, num_kv_heads, block_size, row width]``.
        num_host_blocks: Blocks of the host tier; 0 for none.
        disk: The disk tier.
    """

    def __init__(self, kv: Tensor, num_host_blocks: int, disk: DiskStore | None) -> None:
        block_bytes = kv[:, 0].numel() * kv.element_size()
        assert disk is None or disk.block_bytes == block_bytes
        self._link: HostLink = CudaLink(kv) if kv.is_cuda else CpuLink(kv)
        self._host = HostTier(num_host_blocks, kv)
        self._bounce = HostTier(max(1, _BOUNCE_BYTES // block_bytes) if disk else 0, kv)
        self._disk = disk
        self._num_blocks = {
            Tier.DEVICE: kv.shape[1] - 1,
            Tier.HOST: num_host_blocks,
            Tier.DISK: disk.num_blocks if disk else 0,
        }
        # Copies source blocks to target blocks, and says of each whether its content arrived intact.
        self._moves: dict[tuple[Tier, Tier], Callable[[list[int], list[int]], list[bool]]] = {
            (Tier.DEVICE, Tier.HOST): self._device_to_host,
            (Tier.HOST, Tier.DEVICE): self._host_to_device,
            (Tier.HOST, Tier.DISK): self._host_to_disk,
            (Tier.DISK, Tier.HOST): self._disk_to_host,
            (Tier.DEVICE, Tier.DISK): self._device_to_disk,
            (Tier.DISK, Tier.DEVICE): self._disk_to_device,
        }

    def run(self, transfers: Iterable[Transfer]) -> TransferOutcome:
        """Executes the transfers as if one after another, in the given order.

        What reads a block that an earlier transfer has failed to fill is lost as well. On a GPU, timings are told by
        the first call that finds the copies finished.
        """
        lost: list[Transfer] = []
        spoilt: set[tuple[Tier, int]] = set()
        for batch in in_batches(transfers):
            sound = [transfer for transfer in batch if (transfer.source, transfer.source_block) not in spoilt]
            intact = set(self._move(sound)) if sound else set()
            for transfer in batch:
                place = (transfer.target, transfer.target_block)
                if transfer in intact:
                    spoilt.discard(place)
                else:
                    spoilt.add(place)
                    lost.append(transfer)
        return TransferOutcome(tuple(lost), tuple(self._link.take_timings()))

    def measure(self) -> tuple[TransferTiming, ...]:
        """Copies a few blocks from each tier to each lower one and back, and returns what the second time took.

        Device blocks keep their content and disk blocks are forgotten, but the host's first blocks are overwritten.
        A direction whose blocks are all lost has no timing.
        """
        timings: list[TransferTiming] = []
        for _ in range(2):
            timings = list(self.run(self._round_trips()).timings)
            self._link.wait()
            timings += self._link.take_timings()
        if self._disk:
            for block in range(1, min(_MEASURED_BLOCKS, self._disk.num_blocks) + 1):
                self._disk.forget(block)
        return tuple(timings)

    def _round_trips(self) -> Iterator[Transfer]:
        for near, far in combinations(Tier, 2):
            blocks = range(1, min(_MEASURED_BLOCKS, self._num_blocks[near], self._num_blocks[far]) + 1)
            yield from (Transfer(near, block, far, block) for block in blocks)
            yield from (Transfer(far, block, near, block) for block in blocks)

    def _move(self, batch: list[Transfer]) -> list[Transfer]:
        """Executes one batch and returns the transfers whose content arrived intact."""
        source, target = batch[0].source, batch[0].target
        move = self._moves[source, target]
        stop_clock = self._link.start_clock(source, target)
        arrived = move([transfer.source_block for transfer in batch], [transfer.target_block for transfer in batch])
        # A disk that refuses at once would pass for a fast one.
        if any(arrived):
            stop_clock(sum(arrived))
        return list(compress(batch, arrived))

    def _device_to_host(self, sources: list[int], targets: list[int]) -> list[bool]:
        self._link.to_host(sources, self._host, targets)
        return [True] * len(sources)

    def _host_to_device(self, sources: list[int], targets: list[int]) -> list[bool]:
        self._link.to_device(self._host, sources, targets)
        return [True] * len(sources)

    def _host_to_disk(self, sources: list[int], targets: list[int]) -> list[bool]:
        return self._write(self._host, sources, targets)

    def _disk_to_host(self, sources: list[int], targets: list[int]) -> list[bool]:
        return self._read(sources, self._host, targets)

    def _device_to_disk(self, sources: list[int], targets: list[int]) -> list[bool]:
        arrived: list[bool] = []
        for turn in slices(len(sources), self._bounce.num_blocks):
            rows = range(1, len(sources[turn]) + 1)
            self._link.to_host(sources[turn], self._bounce, rows)
            arrived += self._write(self._bounce, rows, targets[turn])
        return arrived

    def _disk_to_device(self, sources: list[int], targets: list[int]) -> list[bool]:
        arrived: list[bool] = []
        for turn in slices(len(sources), self._bounce.num_blocks):
            rows = range(1, len(sources[turn]) + 1)
            intact = self._read(sources[turn], self._bounce, rows)
            self._link.to_device(self._bounce, list(compress(rows, intact)), list(compress(targets[turn], intact)))
            arrived += intact
        return arrived

    def _write(self, host: HostTier, rows: Sequence[int], targets: list[int]) -> list[bool]:
        assert self._disk, "there is no disk tier"
        self._link.wait()
        return [self._disk.write(target, host.bytes_of(row)) for row, target in zip(rows, targets, strict=True)]

    def _read(self, sources: list[int], host: HostTier, rows: Sequence[int]) -> list[bool]:
        assert self._disk, "there is no disk tier"
        self._link.wait()
        return [self._disk.read(source, host.bytes_of(row)) for source, row in zip(sources, rows, strict=True)]


def in_batches(transfers: Iterable[Transfer]) -> list[list[Transfer]]:
    """Puts the transfers of one direction together, where that makes no difference to what a block holds in the end.

    A transfer joins the latest batch of its direction unless a later batch, or that one itself, fills the block that it
    reads, or reads or fills the block that it fills. So evictions that push others further down do not take turns.
    """
    batches: list[_Batch] = []
    for transfer in transfers:
        source, target = (transfer.source, transfer.source_block), (transfer.target, transfer.target_block)
        home = None
        for batch in reversed(batches):
            if batch.direction == (transfer.source, transfer.target) and target not in batch.filled:
                home = batch
                break
            if source in batch.filled or target in batch.filled or target in batch.read:
                break
        if home is None:
            home = _Batch((transfer.source, transfer.target))
            batches.append(home)
        home.transfers.append(transfer)
        home.read.add(source)
        home.filled.add(target)
    return [batch.transfers for batch in batches]


@dataclass(slots=True)
class _Batch:
    """Transfers of one direction, and the (tier, block) that they read and fill."""

    direction: tuple[Tier, Tier]
    transfers: list[Transfer] = field(default_factory=list)
    read: set[tuple[Tier, int]] = field(default_factory=set)
    filled: set[tuple[Tier, int]] = field(default_factory=set)
