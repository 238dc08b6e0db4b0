"""WindowedBlockManager: block tables of a model in which some or all layers see only a window.

An entry of a block table is a *column* here (`octavo.block_manager.column_pool`): blocks for all groups of layers, of
which the windowed ones are there only while they are seen. For every row three things are known on top:

    table      [ c0   c1   c2 │ c3   c4   c5   c6 │ c7   c8   c9 ]        one column for block_size tokens
    frames       ·    ·    ·     ▇    ▇    ▇    ▇    ○    ○    ·
                              low                 high                    ▇ needed   ○ promised

A step needs frames from the first key that its first query sees to its last token. So that a sequence never gets stuck
half-way through its prompt, it is promised as many columns' frames as a window and the largest chunk take together
when it is let in; as its window moves on, what it leaves behind pays for what comes.

Where a prefix hit ends, the window before it must still be there, or the hit is cut back until it is. Frames that are
found missing are computed again, and given to the cached column that lacks them.

These blocks do not go to lower tiers: a sequence that gives way is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.block_manager.column_pool import ColumnPool
from octavo.block_manager.groups import Footprint, LayerGroups
from octavo.block_manager.manager import (
    BlockCopy,
    BlockManager,
    Count,
    PrefixMatch,
    SwappedBlocks,
    Tokens,
)
from octavo.block_manager.misses import Miss, MissReason
from octavo.block_manager.prefix_cache import PrefixCache


class WindowedBlockManager(BlockManager):
    """Decides which blocks each sequence owns, per group of layers.

    Args:
        groups: The model's groups of layers, at least one of them with a window.
        max_chunk: The most tokens that one sequence computes in a step.
        options: As for `BlockManager`, without ``tiers``. Everything there that counts blocks counts blocks here.

    Attributes:
        slid: Columns that rows' windows have left behind, since the start.
    """

    def __init__(self, *, groups: LayerGroups, max_chunk: int, **options: Any) -> None:
        assert groups.num_windowed, "no layer has a window"
        num_rows: int = options["num_rows"]
        self.groups = groups
        # Without full layers a column that is out of sight takes no block, and only tables bound their number.
        rows_columns: int = num_rows * options["max_blocks_per_row"]
        blocks: int = options["num_blocks"]
        self._num_columns = blocks // groups.num_full if groups.num_full else blocks + rows_columns
        self._footprint = Footprint(groups, options["block_size"], max_chunk)
        self._low = np.zeros(num_rows, dtype=np.int32)
        self._high = np.zeros(num_rows, dtype=np.int32)
        self._promised = np.zeros(num_rows, dtype=np.int32)  # columns
        self.slid = 0
        super().__init__(**options)
        assert not self.tiers, "blocks of windowed layers have no place in lower tiers"

    def _make_pool(self, num_blocks: int, hash_mask: int) -> tuple[PrefixCache, ColumnPool]:
        cache = PrefixCache(self._num_columns, self.block_size, hash_mask)
        self.columns = ColumnPool(num_blocks, self._num_columns, self.groups, cache, self._on_evict)
        return cache, self.columns

    # ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def blocks_per_column(self) -> int:
        """One for each group."""
        return len(self.groups.members)

    def most_blocks(self, num_tokens: int) -> int:
        """While its prompt is computed, a sequence holds frames for a window and the largest chunk."""
        return self._footprint.most_blocks(num_tokens)

    def blocks_at(self, num_tokens: Count) -> Count:
        """While it computes one token at a time, it holds frames for a window."""
        columns = -(-num_tokens // self.block_size)
        in_sight: Any = np.minimum(columns, self._footprint.columns_in_sight)
        blocks: Count = self.groups.num_full * columns + self.groups.num_windowed * in_sight
        return blocks

    def blocks_held(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Blocks of all groups, and promised ones."""
        frames = self._high[rows] - self._low[rows] + self._promised[rows]
        return self.groups.num_full * self.tables.lengths[rows] + self.groups.num_windowed * frames

    def entry_of(self, block: int) -> int:
        """The column that a block belongs to; 0 if it belongs to none."""
        columns = np.flatnonzero((self.columns.blocks == block).any(axis=0))
        return int(columns[0]) if len(columns) else 0

    def max_tokens(self, tenant: int = 0) -> int:
        """The longest sequence whose `most_blocks` a tenant may hold."""
        return self._footprint.longest(self.quota.capacity(tenant), self.tables.ids.shape[1])

    # ── prefixes ──────────────────────────────────────────────────────────────────────────────────────────

    def match_prefix(
        self, tokens: Tokens, salt: str = "", tenant: int = 0, swapped: SwappedBlocks | None = None
    ) -> PrefixMatch:
        """Finds the longest cached beginning whose last window still has its frames."""
        match = super().match_prefix(tokens, salt, tenant, swapped)
        columns = self._with_frames(match.blocks)
        idle = sum(self.pool.owners(column) == 0 for column in columns)
        missed = self.cache.hash_of(match.blocks[len(columns)]) if len(columns) < len(match.blocks) else match.missed
        return match._replace(blocks=columns, idle=idle, num_tokens=len(columns) * self.block_size, missed=missed)

    def _with_frames(self, columns: list[int]) -> list[int]:
        """The longest beginning of these columns after which a token can be computed."""
        usable = run = 0
        for count, column in enumerate(columns, 1):
            run = run + 1 if self.columns.has_frames(column) else 0
            if run >= count - self._first_seen(count * self.block_size):
                usable = count
        return columns[:usable]

    def _first_seen(self, position: int) -> int:
        """The column of the first key that a query at a position sees."""
        return max(0, position - self.groups.window + 1) // self.block_size

    def explain_miss(self, tokens: Tokens, match: PrefixMatch) -> Miss:
        """Why a look-up found no more; a beginning whose window is gone counts as evicted."""
        miss = super().explain_miss(tokens, match)
        if miss.reason is MissReason.NEVER_SEEN:
            found = len(self._match_device(tokens, match.namespace, len(match.blocks) + 1)[0])
            if found > len(match.blocks):
                return Miss(MissReason.EVICTED)
        return miss

    def needed(self, match: PrefixMatch, num_tokens: int) -> int:
        """Blocks for new columns, for cached ones, and for the frames that are needed or will be."""
        matched, columns = len(match.blocks), self.columns_for(num_tokens)
        first = self._first_seen(match.num_tokens)
        idle_frames = sum(self.columns.needs(column) == 0 for column in match.blocks[first:])
        frames = idle_frames + min(columns, first + self._footprint.columns_of_step) - matched
        return self.groups.num_full * (columns - matched + match.idle) + self.groups.num_windowed * frames

    def won_by_release(self, match: PrefixMatch) -> int:
        """Columns with one owner, and frames that one of those in the window needs."""
        frames = sum(self.columns.needs(column) == 1 for column in self._last_window(match.blocks))
        return self.groups.num_full * super().won_by_release(match) + self.groups.num_windowed * frames

    def find_pinnable(self, tokens: Tokens, salt: str = "", tenant: int = 0) -> tuple[list[int], int]:
        """The cached columns of some tokens after which a token can be computed."""
        columns, namespace = super().find_pinnable(tokens, salt, tenant)
        return self._with_frames(columns), namespace

    def blocks_to_pin(self, blocks: Sequence[int]) -> int:
        """Blocks of idle columns, and idle frames of the last window."""
        frames = sum(self.columns.needs(column) == 0 for column in self._last_window(blocks))
        return self.groups.num_full * super().blocks_to_pin(blocks) + self.groups.num_windowed * frames

    @property
    def pinned_blocks(self) -> int:
        """Of all groups: of windowed ones only those in the last window of a pin."""
        return self.pinned_by([pin.blocks for pin in self.pins.listed()])

    def pinned_by(self, pins: Sequence[Sequence[int]]) -> int:
        """Distinct blocks that pins of these columns keep."""
        columns = {column for pinned in pins for column in pinned}
        frames = {column for pinned in pins for column in self._last_window(pinned)}
        return self.groups.num_full * len(columns) + self.groups.num_windowed * len(frames)

    def pin_size(self, num_columns: int) -> int:
        """All columns' full blocks, and the frames of those that the next token sees."""
        frames = num_columns - self._first_seen(num_columns * self.block_size)
        return self.groups.num_full * num_columns + self.groups.num_windowed * frames

    def pins_missing(self, blocks: Sequence[int]) -> int:
        """As for other models, with every pin's last window."""
        pins = [*(pin.blocks for pin in self.pins.listed()), blocks]
        return max(0, self.pinned_by(pins) - self.pins.budget)

    def _last_window(self, columns: Sequence[int]) -> Sequence[int]:
        """Of columns from a prompt's beginning on, those that a query right after them sees."""
        return columns[self._first_seen(len(columns) * self.block_size) :]

    def _share_prefix(self, blocks: Sequence[int]) -> None:
        super()._share_prefix(blocks)
        for column in self._last_window(blocks):
            self.columns.need(column)

    def _release_prefix(self, blocks: Sequence[int]) -> None:
        for column in self._last_window(blocks):
            self.columns.leave(column)
        super()._release_prefix(blocks)

    # ── windows ───────────────────────────────────────────────────────────────────────────────────────────

    def slide(self, rows: npt.NDArray[np.int32], num_computed: npt.NDArray[np.int32]) -> None:
        """Gives up the frames behind the windows of rows that compute their next token at these positions."""
        first_seen = np.maximum(num_computed - self.groups.window + 1, 0) // self.block_size
        moved = first_seen > self._low[rows]
        for row, low in zip(rows[moved].tolist(), first_seen[moved].tolist(), strict=True):
            available = self.pool.available
            for column in self.tables.ids[row, self._low[row] : low].tolist():
                self.columns.leave(column)
            self.slid += low - int(self._low[row])
            self._low[row] = low
            self._promise(row)
            self._charge(self._tenant[row], available)

    def cover(self, rows: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> None:
        """Takes the frames of rows that compute tokens up to these positions; they were promised."""
        short = -(-ends // self.block_size) > self._high[rows]
        for row, end in zip(rows[short].tolist(), ends[short].tolist(), strict=True):
            self.cover_row(row, end)

    def cover_row(self, row: int, end: int) -> None:
        """`cover` for one row."""
        available, high = self.pool.available, self.columns_for(end)
        for column in self.tables.ids[row, self._high[row] : high].tolist():
            self.columns.need(column)
        self._high[row] = max(high, int(self._high[row]))
        self._promise(row)
        self._charge(self._tenant[row], available)

    def grow(self, rows: Sequence[int]) -> None:
        """Appends columns, with frames."""
        super().grow(rows)
        for row in rows:
            self.cover_row(row, int(self.tables.lengths[row]) * self.block_size)

    def exclusive_blocks(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Blocks of columns that only the row owns, frames that only it needs, and what it is promised."""
        longest = int(self.tables.lengths[rows].max(initial=0))
        at = np.arange(longest)
        needed = (self._low[rows, None] <= at) & (at < self._high[rows, None])
        sole = (self.columns.need_counts[self.tables.ids[rows, :longest]] == 1) & needed
        frames = sole.sum(axis=1) + self._promised[rows]
        columns = self.sole_columns(rows)
        blocks: npt.NDArray[np.int64] = self.groups.num_full * columns + self.groups.num_windowed * frames
        return blocks

    def blocks_of(self, group: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Looks the columns' blocks up; 0 for columns that none of the group's layers sees any more."""
        blocks: npt.NDArray[np.int32] = self.columns.blocks[group][ids]
        return blocks

    def _promise(self, row: int) -> None:
        """Brings what a row is promised up to date with its window and length."""
        in_step = min(int(self.tables.lengths[row]), int(self._low[row]) + self._footprint.columns_of_step)
        promised = max(0, in_step - int(self._high[row]))
        self.columns.promised += (promised - int(self._promised[row])) * self.groups.num_windowed
        self._promised[row] = promised

    def _entered(self, row: int, num_matched: int) -> None:
        self._low[row] = self._first_seen(num_matched * self.block_size)
        self._high[row] = num_matched
        self._promise(row)

    def _forked(self, source: int, target: int) -> None:
        # Frames cannot be two columns' at the same time, so a sibling would be left without those that are adopted.
        assert source not in self._duplicates, f"row {source} is forked before its duplicates are merged"
        self._low[target], self._high[target] = self._low[source], self._high[source]
        for column in self.tables.ids[target, self._low[target] : self._high[target]].tolist():
            self.columns.need(column)
        self._promise(target)

    def _copied(self, source: int, destination: int) -> list[BlockCopy]:
        # What is written to is never behind the window.
        self.columns.need(destination)
        self.columns.leave(source)
        pairs = zip(self.columns.blocks[:, source].tolist(), self.columns.blocks[:, destination].tolist(), strict=True)
        return [BlockCopy(*pair) for pair in pairs]

    def _merged(self, row: int, index: int, twin: int, mine: int) -> None:
        if not self._low[row] <= index < self._high[row]:
            return
        if self.columns.has_frames(twin):
            self.columns.need(twin)
            self.columns.leave(mine)
        else:
            self.columns.adopt(twin, mine)

    def _release_blocks(self, row: int, blocks: Tokens) -> None:
        low, high = int(self._low[row]), int(self._high[row])
        self._low[row] = self._high[row] = 0
        for index, column in reversed(list(enumerate(blocks.tolist()))):
            if low <= index < high:
                self.columns.leave(column)
            self.pool.release((column,))
        self._promise(row)

    # ── checks ────────────────────────────────────────────────────────────────────────────────────────────

    def check_integrity(self, swapped: Iterable[SwappedBlocks] = ()) -> list[str]:
        """Every invariant that does not hold, in words. O(num_blocks + num_columns)."""
        problems = super().check_integrity(swapped)
        needs = np.zeros(self._num_columns + 1, dtype=np.int64)
        for row in self._held_rows():
            low, high = int(self._low[row]), int(self._high[row])
            np.add.at(needs, self.tables.ids[row, low:high], 1)
            if not low <= high <= self.tables.lengths[row]:
                problems.append(f"row {row} needs frames from {low} to {high} of {self.tables.lengths[row]} columns")
        for pin in self.pins.listed():
            np.add.at(needs, list(self._last_window(pin.blocks)), 1)
        wrong = np.flatnonzero(needs != self.columns.need_counts)
        problems += [
            f"column {c} is needed {needs[c]} times and counts {self.columns.needs(c)}" for c in wrong.tolist()
        ]
        promised = int(self._promised.sum()) * self.groups.num_windowed
        if promised != self.columns.promised:
            problems.append(f"rows are promised {promised} blocks and the pool counts {self.columns.promised}")
        return problems
