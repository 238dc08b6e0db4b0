"""The free blocks, in the order in which they are given out: an intrusive doubly linked list.

Every operation is O(1), whatever the pool's size, and no Python object exists per block: the links live in an int
array indexed by block id. Id 0 is the null block, which is never free, so it serves as the list's sentinel:

        ┌────────────────────────────────────────────────────┐
        ▼                                                    │
    [ 0 ] ⇄ [ 7 ] ⇄ [ 2 ] ⇄  …  ⇄ [ 9 ] ⇄ [ 4 ] ⇄ … ⇄ [ 5 ] ─┘
      next of 0: the next block given out     previous of 0: the last one
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from octavo.block_manager import loops
from octavo.block_manager.loops import ABSENT, NULL_BLOCK

Int32s = npt.NDArray[np.int32]
Blocks = Int32s | Sequence[int]


def ids(blocks: Blocks) -> Int32s:
    """Block ids as a contiguous int32 array."""
    return np.ascontiguousarray(blocks, dtype=np.int32)


class FreeList:
    """Blocks ``1 … num_blocks``, all free at first, in ascending order; or none of them, if it is to be ``empty``.

    Attributes:
        links: int32 ``[2, num_blocks + 1]``, each free block's next and previous one.
        size: Free blocks. Who changes the links with `octavo.block_manager.loops` keeps it up to date.
    """

    def __init__(self, num_blocks: int, *, empty: bool = False) -> None:
        ids = np.arange(num_blocks + 1, dtype=np.int32)
        self.links: Int32s = np.stack((np.roll(ids, -1), np.roll(ids, 1)))
        self.size = num_blocks
        if empty:
            self.links[0, 1:] = ABSENT
            self.links[:, NULL_BLOCK] = NULL_BLOCK
            self.size = 0

    def __len__(self) -> int:
        return self.size

    def __contains__(self, block: int) -> bool:
        return block != NULL_BLOCK and int(self.links[0, block]) != ABSENT

    def __iter__(self) -> Iterator[int]:
        """The free blocks, the next one to be given out first. O(size): for checks and tests."""
        following = self.links[0].tolist()
        block = following[NULL_BLOCK]
        while block != NULL_BLOCK:
            yield block
            block = following[block]

    def pop(self, count: int) -> Int32s:
        """Takes the blocks at the head; the caller has checked that there are so many."""
        assert count <= self.size, f"pop of {count} from a free list of {self.size}"
        self.size -= count
        blocks = np.empty(count, dtype=np.int32)
        loops.pop(self.links, blocks)
        return blocks

    def remove(self, block: int) -> None:
        """Takes a block out from wherever it stands."""
        assert block in self, f"block {block} is not free"
        loops.unlink(self.links, block)
        self.size -= 1

    def push_head(self, block: int) -> None:
        """Makes the block the next one to be given out: it holds nothing worth keeping."""
        assert block not in self, f"block {block} is free already"
        loops.link_first(self.links, block)
        self.size += 1

    def push_tail(self, block: int) -> None:
        """Makes the block the last one to be given out: it was used most recently."""
        assert block not in self, f"block {block} is free already"
        loops.link_last(self.links, block)
        self.size += 1

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping."""
        return self.links.nbytes
