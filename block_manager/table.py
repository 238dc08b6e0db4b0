"""Block tables: which blocks hold a sequence's KV, in order.

All tables live in one int32 matrix, one row per running sequence. The matrix is also the kernels' input: it is
never rebuilt, only the entries that change are written. Entries past a row's length are 0, the null block.

    position p of row r  →  slot  ids[r, p // block_size] · block_size + p % block_size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from octavo.block_manager.loops import NULL_BLOCK


class BlockTables:
    """Block tables of up to ``num_rows`` sequences of up to ``max_blocks`` blocks.

    Attributes:
        ids: int32 ``[num_rows, max_blocks]``.
        lengths: int32 ``[num_rows]``, blocks in each row.
    """

    def __init__(self, num_rows: int, max_blocks: int) -> None:
        self.ids: npt.NDArray[np.int32] = np.zeros((num_rows, max_blocks), dtype=np.int32)
        self.lengths: npt.NDArray[np.int32] = np.zeros(num_rows, dtype=np.int32)

    def blocks(self, row: int) -> list[int]:
        """The row's blocks, first to last."""
        ids: list[int] = self.ids[row, : self.lengths[row]].tolist()
        return ids

    def extend(self, row: int, blocks: npt.NDArray[np.int32] | Sequence[int]) -> None:
        """Appends blocks to a row."""
        self.lengthen(row, len(blocks))[:] = blocks

    def lengthen(self, row: int, count: int) -> npt.NDArray[np.int32]:
        """Appends so many entries to a row, which the caller fills: a view, int32 ``[count]``."""
        length = int(self.lengths[row])
        self.lengths[row] = length + count
        return self.ids[row, length : length + count]

    def append(self, rows: Sequence[int], blocks: npt.NDArray[np.int32]) -> None:
        """Appends one block to each of these rows."""
        self.ids[rows, self.lengths[rows]] = blocks
        self.lengths[rows] += 1

    def clear(self, row: int) -> npt.NDArray[np.int32]:
        """Empties a row and returns what was in it."""
        blocks = self.ids[row, : self.lengths[row]].copy()
        self.ids[row, : len(blocks)] = NULL_BLOCK
        self.lengths[row] = 0
        return blocks
