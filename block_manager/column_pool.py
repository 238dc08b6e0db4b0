"""The device's blocks of a model with sliding-window layers: columns made of one block for each group of layers.

A *column* is what one entry of a block table stands for: ``block_size`` tokens of a sequence, in all layers. It is
shared, cached and found by content as a whole, like a block of a model without windows; but its blocks come and go:

    full      one block per full group, as long as the column is in use or cached
    frames    one block per windowed group, only while some sequence still sees the column through its window, and
              after that for as long as nobody else needs the room

    column 7   in use, in a window       full ▇   frames ▇ ▇      needs ≥ 1
    column 3   in use, out of sight      full ▇   frames ▇ ▇      needs = 0, frames cached: a prefix hit may end here
    column 2   in use, out of sight      full ▇   frames · ·      frames given up: no hit can end just after it
    column 9   cached, no owner          full ▇   frames ▇ ▇

What is cached is given up least recently used first, frames and whole columns alike. A sequence that is let in is
*promised* the frames that its window will take, without taking them before it computes their tokens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.block_manager.free_list import Blocks, FreeList, Int32s, ids
from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.loops import NULL_BLOCK
from octavo.block_manager.pool import BlockAge, BlockCounts
from octavo.block_manager.prefix_cache import PrefixCache


class ColumnPool:
    """Columns ``1 … num_columns`` made of blocks ``1 … num_blocks``; 0 is the null column and the null block.

    Args:
        num_blocks: Blocks that can be owned.
        num_columns: Columns that can exist at the same time.
        groups: The model's groups of layers.
        cache: Finds columns by their content.
        on_evict: Told of cached columns that are about to be given up, or that lose their frames.

    Attributes:
        blocks: int32 ``[num_groups, num_columns + 1]``, each column's block of each group; 0 where there is none.
        promised: Blocks that sequences will take for their windows, and that nobody else may count on.
    """

    def __init__(
        self,
        num_blocks: int,
        num_columns: int,
        groups: LayerGroups,
        cache: PrefixCache,
        on_evict: Callable[[Int32s], None] | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.num_columns = num_columns
        self.cache = cache
        self.evictions = 0
        self.on_evict = on_evict
        self.promised = 0
        self.num_full, self.num_windowed = groups.num_full, groups.num_windowed
        self.blocks: npt.NDArray[np.int32] = np.zeros((len(groups.members), num_columns + 1), dtype=np.int32)
        self._owners = array("i", bytes(4 * (num_columns + 1)))
        self._needs = array("i", bytes(4 * (num_columns + 1)))  # owners that still see the column through their window
        self._free = list(range(num_blocks, 0, -1))
        self._unused = list(range(num_columns, 0, -1))
        # What may be given up: column c as c, its frames alone as num_columns + c.
        self._evictable = FreeList(2 * num_columns, empty=True)
        self._used_columns = 0
        self._used_frames = 0  # columns whose frames somebody needs
        self._references = 0  # sums of owners and of needs
        self._references_to_frames = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken now and are promised to nobody; negative if more is promised than there is."""
        return self.num_blocks - self._used - self.promised

    @property
    def counts(self) -> BlockCounts:
        """The blocks by state."""
        free = len(self._free)
        return BlockCounts(self.num_blocks, self._used, self.num_blocks - self._used - free, free)

    @property
    def shared(self) -> int:
        """Blocks with more than one owner; O(num_columns)."""
        owners, needs = self.reference_counts, self.need_counts
        return int(self.num_full * (owners > 1).sum() + self.num_windowed * (needs > 1).sum())

    @property
    def saved(self) -> int:
        """Blocks that would be needed on top if nothing were shared."""
        columns, frames = self._references - self._used_columns, self._references_to_frames - self._used_frames
        return self.num_full * columns + self.num_windowed * frames

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping, without the cached columns' tokens (4 bytes per slot)."""
        lists = 8 * (self.num_blocks + self.num_columns)
        arrays = self.blocks.nbytes + sum(len(a) * a.itemsize for a in (self._owners, self._needs))
        return lists + arrays + self._evictable.nbytes + self.cache.nbytes

    def age_of(self, column: int) -> BlockAge:
        """Nothing: columns come and go in parts, and their ages are not kept."""
        return BlockAge()

    def span_counts(self) -> dict[str, tuple[list[int], float]]:
        """Nothing, likewise."""
        return {}

    def owners(self, column: int) -> int:
        """How many sequences and pins have the column."""
        return self._owners[column]

    def needs(self, column: int) -> int:
        """How many of them need its frames."""
        return self._needs[column]

    @property
    def reference_counts(self) -> npt.NDArray[np.int32]:
        """A view: int32 ``[num_columns + 1]``, every column's owners."""
        return np.frombuffer(self._owners, dtype=np.int32)

    @property
    def need_counts(self) -> npt.NDArray[np.int32]:
        """A view: int32 ``[num_columns + 1]``, how many need every column's frames."""
        return np.frombuffer(self._needs, dtype=np.int32)

    def has_frames(self, column: int) -> bool:
        """Whether the frames still hold what they held."""
        return bool(self.blocks[-1, column])

    # ── columns ───────────────────────────────────────────────────────────────────────────────────────────

    def take(self) -> int:
        """Gives out one column; see `take_many`."""
        return int(self.take_many(1)[0])

    def take_many(self, count: int) -> Int32s:
        """Gives out columns without frames to one owner; the caller has checked `available`."""
        while len(self._unused) < count:  # all columns may be cached while blocks are free: some have no frames
            self._evict()
        columns = [self._unused.pop() for _ in range(count)]
        self.blocks[: self.num_full, columns] = self._take_blocks(count * self.num_full).reshape(self.num_full, count)
        for column in columns:
            self._owners[column] = 1
        self._used_columns += count
        self._references += count
        return ids(columns)

    def take_into(self, columns: Int32s) -> None:
        """`take_many`, as many as find room in ``columns``."""
        columns[:] = self.take_many(len(columns))

    def share(self, columns: Blocks) -> None:
        """Adds an owner to columns that are in use or cached; their frames are another matter, see `need`."""
        for column in ids(columns).tolist():
            if self._owners[column] == 0:
                assert column in self.cache, f"column {column} is unused and holds nothing to share"
                self._evictable.remove(column)
                self._used_columns += 1
            self._owners[column] += 1
            self._references += 1

    def release(self, columns: Blocks) -> int:
        """Takes one owner from each column and returns how many have none left; nobody needs their frames any more.

        Args:
            columns: In a sequence's order; its tail is given up before its head.
        """
        ownerless = 0
        for column in ids(columns)[::-1].tolist():
            assert self._owners[column] > 0, f"column {column} has no owner to lose"
            self._owners[column] -= 1
            self._references -= 1
            if self._owners[column]:
                continue
            assert not self._needs[column], f"column {column} has no owner and its frames are needed"
            ownerless += 1
            self._used_columns -= 1
            if column in self.cache:
                self._evictable.push_tail(column)
            else:
                self._dissolve(column)
        return ownerless

    def forget(self, column: int) -> None:
        """Drops what is known of a column's content; what nobody owns or needs of it becomes free."""
        self.cache.remove((column,))
        if self._owners[column] == 0:
            self._evictable.remove(column)
            self._dissolve(column)
        elif not self._needs[column]:
            self._give_up_frames(column)

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────

    def need(self, column: int) -> None:
        """One more owner sees the column through its window. Where there are no frames, new ones are taken."""
        if self._needs[column] == 0:
            if self.has_frames(column):
                self._evictable.remove(self.num_columns + column)
            else:
                self.blocks[self.num_full :, column] = self._take_blocks(self.num_windowed)
            self._used_frames += 1
        self._needs[column] += 1
        self._references_to_frames += 1

    def leave(self, column: int) -> None:
        """One owner's window has moved past the column."""
        assert self._needs[column] > 0, f"nobody needs the frames of column {column}"
        self._needs[column] -= 1
        self._references_to_frames -= 1
        if self._needs[column]:
            return
        self._used_frames -= 1
        if column in self.cache:
            self._evictable.push_tail(self.num_columns + column)
        else:
            self._free_frames(column)

    def adopt(self, column: int, other: int) -> None:
        """Gives a column that has lost its frames those of another one, and the only owner who needs them."""
        assert not self.has_frames(column), f"column {column} has frames"
        assert self._needs[other] == 1, f"the frames of column {other} are needed {self._needs[other]} times"
        frames = self.blocks[self.num_full :]
        frames[:, column] = frames[:, other]
        frames[:, other] = NULL_BLOCK
        self._needs[column], self._needs[other] = 1, 0

    # ── giving up ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _used(self) -> int:
        return self.num_full * self._used_columns + self.num_windowed * self._used_frames

    def _take_blocks(self, count: int) -> npt.NDArray[np.int32]:
        while len(self._free) < count:
            self._evict()
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return np.array(taken, dtype=np.int32)

    def _evict(self) -> None:
        """Gives up what was used least recently."""
        node = int(self._evictable.pop(1)[0])
        column = node if node <= self.num_columns else node - self.num_columns
        if self.on_evict is not None:
            self.on_evict(ids((column,)))
        if node == column:
            self.evictions += self.num_full
            self.cache.remove((column,))
            self._dissolve(column)
        else:
            self.evictions += self.num_windowed
            self._free_frames(column)

    def _give_up_frames(self, column: int) -> None:
        """Frees frames that are cached."""
        if self.has_frames(column):
            self._evictable.remove(self.num_columns + column)
            self._free_frames(column)

    def _free_frames(self, column: int) -> None:
        self._free += self.blocks[self.num_full :, column].tolist()
        self.blocks[self.num_full :, column] = NULL_BLOCK

    def _dissolve(self, column: int) -> None:
        """Frees all blocks of a column that nobody owns and nothing is known of."""
        self._give_up_frames(column)
        self._free += self.blocks[: self.num_full, column].tolist()
        self.blocks[: self.num_full, column] = NULL_BLOCK
        self._unused.append(column)

    def check(self) -> list[str]:
        """Every way in which the pool contradicts itself; O(num_blocks + num_columns)."""
        problems = self.cache.check()
        places = Counter(self.blocks[:, 1:].ravel().tolist() + self._free)
        del places[NULL_BLOCK]
        blocks = range(1, self.num_blocks + 1)
        problems += [f"block {block} is in {places[block]} places" for block in blocks if places[block] != 1]
        problems += [f"there is no block {block}" for block in places if block not in blocks]
        evictable, unused = set(self._evictable), set(self._unused)
        for column in range(1, self.num_columns + 1):
            owners, needs, cached = self._owners[column], self._needs[column], column in self.cache
            full, frames = self.blocks[: self.num_full, column], self.blocks[self.num_full :, column]
            idle_frames = self.num_columns + column in evictable
            if (owners == 0 and cached) != (column in evictable):
                listed = "" if column in evictable else "not "
                problems.append(f"column {column} has {owners} owners and is {listed}listed as evictable")
            if (owners == 0 and not cached) != (column in unused):
                listed = "" if column in unused else "not "
                problems.append(f"column {column} has {owners} owners and is {listed}listed as unused")
            if np.count_nonzero(full) != (0 if column in unused else self.num_full):
                problems.append(f"column {column} has the full blocks {full.tolist()}")
            if frames.any() != frames.all() or (frames.any() != (needs > 0 or idle_frames)):
                problems.append(f"column {column}'s frames {frames.tolist()} are needed {needs} times")
            if (needs and idle_frames) or (idle_frames and not cached) or needs > owners:
                problems.append(f"column {column}'s frames are needed {needs} times by {owners} owners")
        expected = {
            "columns in use": (self._used_columns, sum(owners > 0 for owners in self._owners)),
            "frames in use": (self._used_frames, sum(needs > 0 for needs in self._needs)),
            "references": (self._references, sum(self._owners)),
            "references to frames": (self._references_to_frames, sum(self._needs)),
            "blocks": (self.num_blocks, sum(self.counts[1:])),
        }
        problems += [f"counts {a} {name}, finds {b}" for name, (a, b) in expected.items() if a != b]
        if self.blocks[:, NULL_BLOCK].any():
            problems.append("the null column has blocks")
        if self.available < 0:
            problems.append(f"{-self.available} more blocks are promised than there are")
        return problems
