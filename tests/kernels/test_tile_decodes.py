"""What decodes compute together: every chunk of every sequence once, and only those whose blocks agree."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from octavo.kernels.cpu.tile_decodes import decode_units
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS


def tables_of(seqs: list[list[int]]) -> np.ndarray:
    tables = np.zeros((len(seqs), max(map(len, seqs), default=1)), np.int32)
    for row, blocks in zip(tables, seqs, strict=True):
        row[: len(blocks)] = blocks
    return tables


def check(tables: np.ndarray, lens: np.ndarray, size: int, group: int) -> list[list[tuple[int, int]]]:
    """The units, each sound by itself and all of them complete."""
    entries, units = decode_units(tables, lens, size, group)
    assert entries.dtype == np.int32
    assert units.dtype == np.int64
    assert entries.flags.c_contiguous
    assert units[0] == 0
    assert units[-1] == len(entries)
    together = [list(map(tuple, entries[begin:end].tolist())) for begin, end in pairwise(units)]
    assert all(together)
    every = {(seq, chunk) for seq in range(len(lens)) for chunk in range(-(-int(lens[seq]) // KEYS))}
    assert sorted(entry for unit in together for entry in unit) == sorted(every)
    for unit in together:
        assert len(unit) == 1 or len(unit) * group <= TILE_ROWS
        (chunk,) = {chunk for _, chunk in unit}
        blocks = slice(chunk * KEYS // size, ((chunk + 1) * KEYS - 1) // size + 1)
        assert len({tuple(tables[seq, blocks]) for seq, _ in unit}) == 1
        assert len(unit) == 1 or all(lens[seq] > (chunk + 1) * KEYS for seq, _ in unit)
    return together


def test_sequences_that_share_nothing_are_by_themselves() -> None:
    tables = tables_of([list(range(1, 20)), list(range(20, 24)), [30]])
    assert len(check(tables, np.array([300, 60, 1], np.int32), 16, 3)) == 3 + 1 + 1


def test_a_shared_prefix_is_computed_together_while_whole_chunks_agree() -> None:
    shared = list(range(1, 19))  # 288 tokens: two chunks, and a quarter of a third
    tables = tables_of([[*shared, 100 + seq, 200 + seq] for seq in range(4)])
    units = check(tables, np.full(4, 310, np.int32), 16, 3)
    assert sorted(map(len, units)) == [1, 1, 1, 1, 4, 4]


def test_a_unit_has_no_more_rows_than_a_tile() -> None:
    tables = tables_of([[*range(1, 9), 100 + seq] for seq in range(25)])
    sizes = [len(unit) for unit in check(tables, np.full(25, 130, np.int32), 16, 3) if unit[0][1] == 0]
    assert sizes == [10, 10, 5]
    assert {len(unit) for unit in check(tables, np.full(25, 130, np.int32), 16, 32)} == {1}


def test_prefixes_that_branch() -> None:
    first, second, third = list(range(1, 9)), list(range(10, 18)), list(range(20, 28))
    tables = tables_of([[*first, *second, 91], [*first, *second, 92], [*first, *third, 93], [*first, 94], [*third, 95]])
    units = check(tables, np.array([260, 257, 270, 130, 129], np.int32), 16, 4)
    assert sorted(len(unit) for unit in units if unit[0][1] == 0) == [1, 4]
    assert sorted(len(unit) for unit in units if unit[0][1] == 1 and len(unit) > 1) == [2]


@pytest.mark.parametrize("lens", [[], [0], [0, 5, 0]])
def test_none_and_padding(lens: list[int]) -> None:
    tables = np.zeros((len(lens), 1), np.int32)
    assert len(check(tables, np.array(lens, np.int32), 16, 3)) == sum(length > 0 for length in lens)


@pytest.mark.parametrize("seed", range(30))
def test_random_trees(seed: int) -> None:
    """Sequences grown from each other's beginnings, as a prefix cache shares them."""
    chance = random.Random(seed)
    size, group = chance.choice([1, 4, 16, 24, 32, 100]), chance.choice([1, 3, 8, 16, 32])
    seqs: list[list[int]] = []
    following = 0
    for _ in range(chance.randrange(1, 30)):
        count = chance.randrange(1, 1 + 600 // size)
        parent = chance.choice([*seqs, []])
        blocks = parent[: chance.randrange(len(parent) + 1)][: count - 1]  # the last block is its own
        own = count - len(blocks)
        seqs.append(blocks + [following + 1 + i for i in range(own)])
        following += own
    lens = np.array([chance.randrange((len(blocks) - 1) * size, len(blocks) * size) + 1 for blocks in seqs], np.int32)
    check(tables_of(seqs), lens, size, group)
