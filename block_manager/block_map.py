"""A look at every block at once: its state, its owners, and how full it is. Computed when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.column_pool import ColumnPool
from octavo.block_manager.manager import BlockManager, SwappedBlocks
from octavo.block_manager.tiers import Tier, Tiers

Int32s = npt.NDArray[np.int32]

FREE, CACHED, USED, PINNED = range(4)
# Owners that are no row's.
NOBODY, A_PIN = 0, -1


class BlockMap(NamedTuple):
    """All blocks of one tier; index 0 is block 1.

    Attributes:
        states: uint8 ``[num_blocks]``, `FREE`, `CACHED`, `USED` or `PINNED`.
        owners: int32 ``[num_blocks]``, the name of an owner, `A_PIN`, or `NOBODY`.
        fills: int32 ``[num_blocks]``, slots that hold KV.
        counts: int32 ``[num_blocks]``, owners.
    """

    states: npt.NDArray[np.uint8]
    owners: Int32s
    fills: Int32s
    counts: Int32s


def device_map(manager: BlockManager, num_computed: Int32s, names: npt.NDArray[np.int64]) -> BlockMap:
    """The device's blocks.

    Args:
        num_computed: Per row, tokens whose KV is there.
        names: Per row, what to call it; positive. Of several owners, a block gets the smallest one's.
    """
    entries = _entries(manager, num_computed, names)
    pool = manager.pool
    if isinstance(pool, ColumnPool):
        return _of_columns(pool, entries)
    return entries


def _entries(manager: BlockManager, num_computed: Int32s, names: npt.NDArray[np.int64]) -> BlockMap:
    """Of all that block tables may hold: blocks, or columns of several."""
    size = manager.block_size
    result = _of_content(manager.pool.reference_counts, manager.cache.indexed, size)
    pinned = np.fromiter(manager.pins.blocks, dtype=np.int64) - 1
    result.states[pinned] = PINNED
    result.owners[pinned] = A_PIN
    rows = np.flatnonzero(manager.tables.lengths)
    rows = rows[np.argsort(-names[rows], kind="stable")]  # the smallest name is written last
    lengths = manager.tables.lengths[rows]
    positions = np.arange(int(lengths.max(initial=0)))
    held = positions < lengths[:, None]
    blocks = manager.tables.ids[rows, : len(positions)][held] - 1
    result.owners[blocks] = np.repeat(names[rows], lengths)
    filled = np.clip(num_computed[rows, None] - positions * size, 0, size)[held]
    result.fills[blocks] = np.maximum(filled, result.fills[blocks])
    return result


def _of_content(reference_counts: Int32s, indexed: Int32s, block_size: int) -> BlockMap:
    """What owners and content say; both arrays have the null block first."""
    counts, known = reference_counts[1:], indexed[1:] != 0
    return BlockMap(
        np.where(counts > 0, USED, np.where(known, CACHED, FREE)).astype(np.uint8),
        np.zeros(len(counts), dtype=np.int32),
        np.where(known, block_size, 0).astype(np.int32),
        counts.copy(),
    )


def _of_columns(pool: ColumnPool, columns: BlockMap) -> BlockMap:
    """The blocks of each column: those of full layers are its own; frames are in use while somebody sees them."""
    size = pool.num_blocks
    states, owners = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.int32)
    fills, counts = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int32)
    for group, blocks in enumerate(pool.blocks[:, 1:]):
        there = np.flatnonzero(blocks)
        places = blocks[there] - 1
        counts[places] = (columns.counts if group < pool.num_full else pool.need_counts[1:])[there]
        idle = counts[places] == 0
        states[places] = np.where(idle, CACHED, columns.states[there])
        owners[places] = np.where(idle, NOBODY, columns.owners[there])
        fills[places] = columns.fills[there]
    return BlockMap(states, owners, fills, counts)


def lower_map(tiers: Tiers, tier: Tier, block_size: int, swapped: Iterable[tuple[int, SwappedBlocks]]) -> BlockMap:
    """The blocks of a tier below.

    Args:
        swapped: The swapped-out sequences: what to call each, and what it comes back for.
    """
    pool = tiers.level(tier)
    result = _of_content(pool.reference_counts, pool.cache.indexed, block_size)
    for name, blocks in sorted(swapped, key=lambda entry: -entry[0]):
        for index, place in enumerate(blocks.places):
            if place is not None and place.tier is tier:
                result.owners[place.block - 1] = name
                result.fills[place.block - 1] = min(block_size, blocks.num_tokens - index * block_size)
    return result
