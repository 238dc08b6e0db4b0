"""Sequences on a block manager, without a scheduler; and what any manager's transfers do to the content of blocks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.block_manager import loops
from octavo.block_manager.free_list import ids
from octavo.block_manager.manager import BlockManager, PrefixMatch, SwappedBlocks
from octavo.block_manager.prefix_cache import PrefixCache
from octavo.block_manager.tiers import Tier, Transfer

SIZE = 4

Tokens = npt.NDArray[np.int32]


def tokens(count: int, start: int = 0) -> Tokens:
    """So many consecutive numbers."""
    return np.arange(start, start + count, dtype=np.int32)


def start(
    manager: BlockManager,
    row: int,
    prompt: Tokens,
    salt: str = "",
    *,
    tenant: int = 0,
    computed: int | None = None,
    swapped: SwappedBlocks | None = None,
) -> PrefixMatch:
    """Gives a row its blocks and publishes the full ones, as a step does that computes up to so many tokens."""
    match = manager.match_prefix(prompt, salt, tenant, swapped)
    assert manager.shortfall(match, len(prompt), tenant=tenant) == 0
    manager.reserve(row, match, prompt, tenant)
    manager.publish(row, prompt, len(prompt) if computed is None else computed)
    return match


def swap_out(manager: BlockManager, row: int, num_computed: int) -> SwappedBlocks:
    """Swaps a row out, for which there is room."""
    swapped = manager.swap_out(row, num_computed)
    assert swapped is not None
    manager.release(row)
    return swapped


def evict(manager: BlockManager, count: int) -> None:
    """Gives up the content of blocks that nobody owns: the next ones to be taken."""
    manager.pool.release(manager.pool.take_many(count))


def transfer(contents: dict[tuple[Tier, int], Any], transfers: Iterable[Transfer]) -> None:
    """Executes transfers one after another."""
    for source, source_block, target, target_block in transfers:
        contents[target, target_block] = contents.get((source, source_block))


class CountedArray:
    """A one- or two-dimensional array that counts how many of its elements, or rows, are read or written."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.operations = 0

    def __getitem__(self, key: Any) -> Any:
        self.operations += self._elements(key)
        return self.values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.operations += self._elements(key)
        self.values[key] = value

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.values.shape
        return shape

    def _elements(self, key: Any) -> int:
        if isinstance(key, slice):
            return len(range(*key.indices(len(self.values))))
        return len(key) if isinstance(key, np.ndarray) else 1


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs what is compiled in Python. A block's first token is its hash, so that no two share a bucket."""
    for name, function in vars(loops).items():
        if hasattr(function, "py_func"):
            monkeypatch.setattr(loops, name, function.py_func)
    monkeypatch.setattr(loops, "_hash", lambda hasher, parent, tokens, begin, end: int(tokens[begin]))


def insert_run(
    cache: PrefixCache, blocks: Sequence[int], parent: int, tokens: npt.NDArray[np.int32]
) -> tuple[int, int]:
    """Indexes blocks that follow one another and then ``parent``: how many are indexed now, and the next one's twin."""
    known = [parent] if parent > 0 else []
    before = np.zeros(len(known) * cache.block_size, dtype=np.int32)
    published = ids([len(known)])
    row = 0, len(known) + len(blocks)
    twin = cache.publish_row(
        ids([*known, *blocks])[None], np.concatenate((before, tokens)), ids([parent]), published, *row
    )
    return int(published[0]) - len(known), twin


def count_operations(*owners: object) -> Callable[[], int]:
    """Counts the elements that are read or written from now on in all arrays of these objects; see `interpret`.

    Arrays in tuples, in which an object keeps what it passes on together, are counted as well.
    """
    counted: dict[int, CountedArray] = {}

    def count(value: object) -> object:
        if isinstance(value, array | np.ndarray):
            return counted.setdefault(id(value), CountedArray(value))
        return tuple(map(count, value)) if type(value) is tuple else value

    for owner in owners:
        for name, value in vars(owner).items():
            setattr(owner, name, count(value))
    return lambda: sum(values.operations for values in counted.values())
