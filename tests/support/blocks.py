"""Sequences on a block manager, without a scheduler; and what any manager's transfers do to the content of blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import BlockManager, PrefixMatch, SwappedBlocks
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
