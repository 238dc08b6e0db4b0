"""The free blocks, in the order in which they are given out: an intrusive doubly linked list.

Every operation is O(1), whatever the pool's size, and no Python object exists per block: the links live in two
int arrays indexed by block id. Id 0 is the null block, which is never free, so it serves as the list's sentinel:

        ┌────────────────────────────────────────────────────┐
        ▼                                                    │
    [ 0 ] ⇄ [ 7 ] ⇄ [ 2 ] ⇄  …  ⇄ [ 9 ] ⇄ [ 4 ] ⇄ … ⇄ [ 5 ] ─┘
      next[0]: the next block given out       prev[0]: the last one
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

NULL_BLOCK = 0

# A block that is not in the list links to itself with this; no block has a negative id.
_ABSENT = -1


class FreeList:
    """Blocks ``1 … num_blocks``, all free at first, in ascending order; or none of them, if it is to be ``empty``."""

    def __init__(self, num_blocks: int, *, empty: bool = False) -> None:
        ids = np.arange(num_blocks + 1, dtype=np.int32)
        if empty:
            self._next = _int_array(np.where(ids == NULL_BLOCK, NULL_BLOCK, _ABSENT))
            self._prev = _int_array(np.zeros_like(ids))
        else:
            self._next = _int_array(np.roll(ids, -1))
            self._prev = _int_array(np.roll(ids, 1))
        self._size = 0 if empty else num_blocks

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: int) -> bool:
        return block != NULL_BLOCK and self._next[block] != _ABSENT

    def __iter__(self) -> Iterator[int]:
        """The free blocks, the next one to be given out first. O(size): for checks and tests."""
        block = self._next[NULL_BLOCK]
        while block != NULL_BLOCK:
            yield block
            block = self._next[block]

    def pop(self, count: int) -> list[int]:
        """Takes the blocks at the head; the caller has checked that there are so many."""
        assert count <= self._size, f"pop of {count} from a free list of {self._size}"
        following, block = self._next, self._next[NULL_BLOCK]
        blocks = []
        for _ in range(count):
            blocks.append(block)
            after = following[block]
            following[block] = _ABSENT
            block = after
        following[NULL_BLOCK] = block
        self._prev[block] = NULL_BLOCK
        self._size -= count
        return blocks

    def remove(self, block: int) -> None:
        """Takes a block out from wherever it stands."""
        before, after = self._prev[block], self._next[block]
        assert after != _ABSENT, f"block {block} is not free"
        self._next[before] = after
        self._prev[after] = before
        self._next[block] = _ABSENT
        self._size -= 1

    def push_head(self, block: int) -> None:
        """Makes the block the next one to be given out: it holds nothing worth keeping."""
        self._insert(block, NULL_BLOCK, self._next[NULL_BLOCK])

    def push_tail(self, block: int) -> None:
        """Makes the block the last one to be given out: it was used most recently."""
        self._insert(block, self._prev[NULL_BLOCK], NULL_BLOCK)

    def _insert(self, block: int, before: int, after: int) -> None:
        assert self._next[block] == _ABSENT, f"block {block} is free already"
        self._prev[block], self._next[block] = before, after
        self._next[before] = self._prev[after] = block
        self._size += 1

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping."""
        return len(self._next) * self._next.itemsize + len(self._prev) * self._prev.itemsize


def _int_array(values: np.ndarray) -> array[int]:
    # array.array reads and writes single elements twice as fast as numpy does.
    return array("i", values.astype(np.int32).tobytes())
