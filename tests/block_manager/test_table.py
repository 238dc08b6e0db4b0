"""BlockTables: one matrix whose rows are sequences' blocks, padded with the null block."""

from __future__ import annotations

import numpy as np

from octavo.block_manager.table import BlockTables


def test_a_row_is_extended_at_its_end() -> None:
    tables = BlockTables(2, 4)
    tables.extend(1, [5, 6])
    tables.extend(1, [7])
    assert tables.blocks(1) == [5, 6, 7]
    assert tables.ids.tolist() == [[0, 0, 0, 0], [5, 6, 7, 0]]
    assert tables.lengths.tolist() == [0, 3]


def test_extending_by_nothing_changes_nothing() -> None:
    tables = BlockTables(1, 2)
    tables.extend(0, [])
    assert tables.blocks(0) == []


def test_a_row_can_be_filled_to_its_end() -> None:
    tables = BlockTables(1, 2)
    tables.extend(0, [5, 6])
    assert tables.blocks(0) == [5, 6]


def test_a_cleared_row_is_all_null_blocks_and_returns_what_it_held() -> None:
    tables = BlockTables(2, 3)
    tables.extend(0, [5, 6])
    tables.extend(1, [7])
    assert tables.clear(0).tolist() == [5, 6]
    assert tables.ids.tolist() == [[0, 0, 0], [7, 0, 0]]
    assert tables.lengths.tolist() == [0, 1]


def test_the_matrix_is_never_rebuilt() -> None:
    tables = BlockTables(1, 3)
    ids = tables.ids
    tables.extend(0, [5, 6])
    tables.clear(0)
    tables.extend(0, [7])
    assert tables.ids is ids
    assert ids.dtype == np.int32
