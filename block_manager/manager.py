"""BlockManager: the block tables of all running sequences over one pool.

Sequences are known by their row only. A row's life:

    match_prefix ─► reserve ─► publish … grow … publish ─► release
                       └─► fork ─► make_writable …

"Published" blocks are complete and indexed for reuse. They are published when a step that fills them is
*scheduled*: within a step every layer writes all K/V before it attends, so a request admitted in the same step
can share them already. If that step fails, `retract` takes the promise back.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.free_list import NULL_BLOCK
from octavo.block_manager.hashing import ChainHash, chain_hash
from octavo.block_manager.pool import BlockPool
from octavo.block_manager.table import BlockTables

Tokens = npt.NDArray[np.int32]


class PrefixMatch(NamedTuple):
    """The longest cached beginning of some tokens.

    Attributes:
        blocks: The cached blocks, in order. Nobody has taken them yet.
        idle: How many of them have no owner; sharing those uses up available blocks.
        namespace: The namespace that the look-up was made in.
    """

    blocks: list[int]
    idle: int
    namespace: int


class BlockCopy(NamedTuple):
    """A block whose KV has to be copied before the step writes to the destination."""

    source: int
    destination: int


class BlockManager:
    """Decides which blocks each sequence owns.

    Args:
        num_blocks: Blocks that can be owned; ids are ``1 … num_blocks``.
        block_size: Tokens in a block.
        num_rows: Sequences that can own blocks at the same time.
        max_blocks_per_row: Blocks that one sequence can own.
        prefix_caching: Whether full blocks are published for reuse.
        hasher: Replaces the content hash, for tests.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_rows: int,
        max_blocks_per_row: int,
        prefix_caching: bool = True,
        hasher: ChainHash = chain_hash,
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size, hasher)
        self.tables = BlockTables(num_rows, max_blocks_per_row)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.copies = 0
        self.deduplicated = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._published = array("i", bytes(4 * num_rows))  # per row: its leading blocks that are indexed
        self._namespace = array("i", bytes(4 * num_rows))
        self._duplicates: set[int] = set()  # rows whose next block to publish is already someone else's

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    @property
    def max_tokens(self) -> int:
        """The most tokens that one sequence can ever keep in the pool: more is an answer of "never"."""
        num_columns: int = self.tables.ids.shape[1]
        return min(self.pool.num_blocks, num_columns) * self.block_size

    def match_prefix(self, tokens: Tokens, salt: str = "") -> PrefixMatch:
        """Finds the longest cached prefix, in whole blocks, leaving at least one token to compute.

        Args:
            tokens: int32 ``[num_tokens]``.
            salt: Requests with different salts never see each other's blocks.
        """
        namespace = self.pool.cache.namespaces.id_of(salt)
        blocks: list[int] = []
        if not self.prefix_caching:
            return PrefixMatch(blocks, 0, namespace)
        parent, idle = namespace, 0
        size, width = self.block_size, 4 * self.block_size
        content = tokens.tobytes()
        for index in range((len(tokens) - 1) // size):
            block = self.pool.cache.find(parent, content[index * width : (index + 1) * width])
            if not block:
                break
            idle += self.pool.owners(block) == 0
            blocks.append(block)
            parent = block
        return PrefixMatch(blocks, idle, namespace)

    def shortfall(self, match: PrefixMatch, num_tokens: int, keep_free: int = 0) -> int:
        """Blocks that are missing for `reserve` to succeed and leave ``keep_free`` blocks; 0 if none are."""
        needed = self.blocks_for(num_tokens) - len(match.blocks) + match.idle + keep_free
        return max(0, needed - self.pool.available)

    def reserve(self, row: int, match: PrefixMatch, num_tokens: int) -> None:
        """Gives an empty row its matched blocks, and new ones for the rest of ``num_tokens``.

        The caller has seen `shortfall` return 0. A request's whole known length is reserved at once, so no two
        half-admitted requests can wait for each other.
        """
        assert self.tables.lengths[row] == 0, f"row {row} is in use"
        # Matched blocks first: they might be the very ones that taking new blocks would evict.
        for block in match.blocks:
            self.pool.share(block)
        fresh = self.pool.take_many(self.blocks_for(num_tokens) - len(match.blocks))
        self.tables.extend(row, match.blocks + fresh)
        self._published[row] = len(match.blocks)
        self._namespace[row] = match.namespace
        if self.prefix_caching:
            self.prefix_queries += num_tokens
            self.prefix_hits += len(match.blocks) * self.block_size

    def grow(self, row: int) -> None:
        """Appends one block to a row; the caller has checked `BlockPool.available`."""
        self.tables.extend(row, [self.pool.take()])

    def fork(self, source: int, target: int) -> None:
        """Makes an empty row share all blocks of another, a last partial one included."""
        assert self.tables.lengths[target] == 0, f"row {target} is in use"
        blocks = self.tables.blocks(source)
        for block in blocks:
            self.pool.share(block)
        self.tables.extend(target, blocks)
        self._published[target] = self._published[source]
        self._namespace[target] = self._namespace[source]
        if source in self._duplicates:
            self._duplicates.add(target)

    def copies_needed(self, writes: Iterable[tuple[int, int]]) -> int:
        """Blocks that `make_writable` takes for all of these (row, position) together.

        Of the owners of a block the last one writes in place, so k of its k owners need k - 1 copies.
        """
        writers = Counter(int(self.tables.ids[row, position // self.block_size]) for row, position in writes)
        return sum(min(count, self.pool.owners(block) - 1) for block, count in writers.items())

    def make_writable(self, row: int, position: int) -> BlockCopy | None:
        """Makes sure that the row alone owns the block of a position (copy-on-write).

        The caller has checked `copies_needed` against `BlockPool.available`.

        Returns:
            The copy of KV that has to run before anything is written in this step; None if none is needed.
        """
        index = position // self.block_size
        source = int(self.tables.ids[row, index])
        if self.pool.owners(source) == 1:
            return None
        destination = self.pool.take()
        self.tables.ids[row, index] = destination
        self.pool.release((source,))
        self.copies += 1
        return BlockCopy(source, destination)

    def publish(self, row: int, tokens: Tokens, num_computed: int) -> None:
        """Indexes the row's blocks that are full once ``num_computed`` tokens are.

        A block whose content another row already provides stays private until `merge_duplicates`, because this
        step is still going to write to it.

        Args:
            tokens: int32, the sequence's tokens, at least ``num_computed`` of them.
        """
        if not self.prefix_caching:
            return
        if self._publish_run(row, tokens, num_computed // self.block_size):
            self._duplicates.add(row)

    def merge_duplicates(self, row: int, tokens: Tokens, num_computed: int) -> None:
        """After the step: replaces the row's blocks by equal ones that were published before, and publishes on."""
        if row not in self._duplicates:
            return
        self._duplicates.discard(row)
        while twin := self._publish_run(row, tokens, num_computed // self.block_size):
            index = self._published[row]
            mine = int(self.tables.ids[row, index])
            self.pool.share(twin)
            self.tables.ids[row, index] = twin
            self.pool.release((mine,))
            self._published[row] = index + 1
            self.deduplicated += 1

    @property
    def rows_with_duplicates(self) -> frozenset[int]:
        """Rows that `merge_duplicates` has something to do for."""
        return frozenset(self._duplicates)

    def retract(self, row: int, num_computed: int) -> None:
        """Takes back what was published past ``num_computed`` tokens: the step that should fill it failed."""
        for index in range(num_computed // self.block_size, self._published[row]):
            block = int(self.tables.ids[row, index])
            if block in self.pool.cache:
                self.pool.forget(block)
        self._published[row] = min(self._published[row], num_computed // self.block_size)
        self._duplicates.discard(row)

    def release(self, row: int) -> None:
        """Empties a row. Its published blocks stay cached until they are needed, tails given up before heads."""
        self.pool.release(reversed(self.tables.clear(row)))
        self._published[row] = 0
        self._duplicates.discard(row)

    def check_integrity(self) -> list[str]:
        """Every invariant that does not hold, in words; an empty list is good news. O(num_blocks)."""
        problems = self.pool.check()
        held = np.bincount(self.tables.ids.ravel(), minlength=self.pool.num_blocks + 1)
        for block in range(1, self.pool.num_blocks + 1):
            if held[block] != self.pool.owners(block):
                problems.append(f"block {block} is in {held[block]} tables and counts {self.pool.owners(block)} owners")
        for row, length in enumerate(self.tables.lengths.tolist()):
            if self.tables.ids[row, length:].any():
                problems.append(f"row {row} has blocks past its length {length}")
            problems += self._check_published(row)
        return problems

    def _check_published(self, row: int) -> list[str]:
        return [
            f"row {row}'s block {index} counts as published and is not chained to its predecessor"
            for index in range(self._published[row])
            if self.pool.cache.parent_of(int(self.tables.ids[row, index])) != self._parent(row, index)
        ]

    def _publish_run(self, row: int, tokens: Tokens, end: int) -> int:
        """Publishes the row's blocks up to index ``end``, or up to the first one that has a twin, which it returns."""
        first, size, cache = self._published[row], self.block_size, self.pool.cache
        content, width = tokens[first * size : end * size].tobytes(), 4 * size
        parent = self._parent(row, first)
        for offset, block in enumerate(self.tables.ids[row, first:end].tolist()):
            # A forked sequence may hold the very block that its sibling has published.
            if block not in cache:
                standing = cache.insert(block, parent, content[offset * width : (offset + 1) * width])
                if standing != block:
                    self._published[row] = first + offset
                    return standing
            parent = block
        self._published[row] = max(first, end)
        return NULL_BLOCK

    def _parent(self, row: int, index: int) -> int:
        return int(self.tables.ids[row, index - 1]) if index else self._namespace[row]
