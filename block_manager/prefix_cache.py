"""Finds the block that already holds some tokens' KV: hash → block, verified token by token.

The index is intrusive like the free list: buckets and chains are int arrays over block ids, so ten million
cached blocks mean no Python objects and nothing for the garbage collector to walk.

    bucket[hash & mask] ─► block 7 ─chain─► block 31 ─chain─► 0
                           hash, parent, tokens of each live in arrays beside it

A block's identity is (parent block, tokens). The parent is a block id, or a negative namespace id for a
prompt's first block. A parent outlives its indexed children (blocks are evicted tails before heads, and
duplicates are merged before they can have indexed children), so the id names the parent exactly.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.block_manager import loops
from octavo.block_manager.free_list import Blocks, Int32s, ids
from octavo.block_manager.hashing import ALL_BITS, Content, new_hasher, root_content
from octavo.block_manager.loops import ABSENT, NULL_BLOCK

_NOTHING: Int32s = np.empty(0, dtype=np.int32)


class PrefixCache:
    """Index of blocks whose content is known and complete.

    Args:
        num_blocks: Ids are ``1 … num_blocks``. block_size: tokens in each.
        hash_mask: Bits of the hashes that are kept; fewer make them collide, for tests.

    Attributes:
        indexed: int32 ``[num_blocks + 1]``, each indexed block's parent; 0 for the others.
    """

    def __init__(self, num_blocks: int, block_size: int, hash_mask: int = ALL_BITS) -> None:
        self.block_size = block_size
        self._hasher = new_hasher(hash_mask)
        self._bucket: Int32s = np.zeros(1 << num_blocks.bit_length(), dtype=np.int32)
        self._chain: Int32s = np.zeros(num_blocks + 1, dtype=np.int32)
        self._hash: npt.NDArray[np.int64] = np.zeros(num_blocks + 1, dtype=np.int64)
        self.indexed: Int32s = np.zeros(num_blocks + 1, dtype=np.int32)
        # numpy's zeros are mapped lazily: tokens cost memory only for blocks that were ever cached.
        self._tokens: Int32s = np.zeros((num_blocks + 1, block_size), dtype=np.int32)
        self._contents: dict[int, Content] = {}  # of blocks whose content had to be named for another tier
        # What the loops that look content up are given first.
        self._index: tuple[Any, Any, Any, Any, Any, Any] = (
            self._bucket,
            self._chain,
            self._hash,
            self.indexed,
            self._tokens,
            self._hasher,
        )
        self._size = 0
        self.namespaces = Namespaces()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: int) -> bool:
        return bool(self.indexed[block])

    def find_run(self, parent: int, tokens: Int32s, count: int) -> tuple[Int32s, int]:
        """The blocks that hold these tokens, one after another, up to the first that none holds: int32 ``[≤ count]``.

        Args:
            parent: What the first one follows: a block id, or a namespace's (negative) id at a prompt's beginning.
            tokens: int32 ``[≥ count · block_size]``, contiguous.
            count: How many blocks to look for.

        Returns:
            The blocks, and the hash of what the first missing one would hold (see `hash_after`).
        """
        blocks = np.empty(count, dtype=np.int32)
        found, missed = loops.find_run(*self._index, parent, tokens, blocks)
        return blocks[:found] if found else _NOTHING, missed

    def hash_after(self, parent: int, tokens: Int32s) -> int:
        """The hash that the last of some full blocks would have after this parent: int32 ``[n · block_size]``."""
        before = self.hash_of(parent) if parent > 0 else parent
        found: int = loops.chain_hash(self._hasher, before, tokens, self.block_size)
        return found

    def publish_row(
        self, tables: Int32s, tokens: Int32s, namespaces: Int32s, published: Int32s, row: int, end: int
    ) -> int:
        """Indexes a sequence's blocks that are complete, up to the first whose content another block stands for.

        Blocks that are indexed already (a forked sibling's) are taken as they are.

        Args:
            tables: int32 ``[num_rows, max_blocks]``. tokens: int32 ``[≥ end · block_size]``, the row's.
            namespaces: Per row. published: per row, its leading blocks that are indexed; brought up to date.
            end: How many of the row's leading blocks are complete.

        Returns:
            That other block, or the null block if there is none.
        """
        inserted, begins, twin = loops.publish_row(*self._index, tables, tokens, namespaces, published, row, end)
        self._size += inserted
        if begins:
            self.namespaces.count(int(namespaces[row]), +1)
        return int(twin)

    def publish(
        self, tables: Int32s, token_ids: Int32s, namespaces: Int32s, published: Int32s, rows: Int32s, ends: Int32s
    ) -> Int32s:
        """`publish_row` for many sequences at once.

        Args:
            token_ids: int32 ``[num_rows, max_tokens]``.
            rows: int32 ``[n]``. ends: int32 ``[n]``, how many of their leading blocks are complete.

        Returns:
            The rows that ended at a block whose content another block stands for.
        """
        results = np.empty(len(rows), dtype=np.int32)
        self._size += loops.publish(*self._index, tables, token_ids, namespaces, published, rows, ends, results)
        for row in rows[results & 1 != 0].tolist():
            self.namespaces.count(int(namespaces[row]), +1)
        twins: Int32s = rows[results & 2 != 0]
        return twins

    def remove(self, blocks: Blocks) -> None:
        """Forgets what blocks hold."""
        blocks = ids(blocks)
        namespaces = np.empty(len(blocks), dtype=np.int32)
        first, unknown = loops.remove(self._bucket, self._chain, self._hash, self.indexed, blocks, namespaces)
        assert unknown == ABSENT, f"block {unknown} is not indexed"
        for namespace in namespaces[:first].tolist():
            self.namespaces.count(namespace, -1)
        if self._contents:
            for block in blocks.tolist():
                self._contents.pop(block, None)
        self._size -= len(blocks)

    def parent_of(self, block: int) -> int:
        """The parent of an indexed block; 0 if the block is not indexed."""
        return int(self.indexed[block])

    def tokens_of(self, block: int) -> bytes:
        """The tokens of an indexed block, as int32 bytes."""
        tokens: bytes = self._tokens[block].tobytes()
        return tokens

    def hash_of(self, block: int) -> int:
        """The hash of an indexed block."""
        return int(self._hash[block])

    def hashes_of(self, blocks: Int32s) -> npt.NDArray[np.int64]:
        """The hashes of indexed blocks: int64 ``[n]``."""
        hashes: npt.NDArray[np.int64] = self._hash[blocks]
        return hashes

    def content_of(self, block: int) -> Content:
        """The name of an indexed block's content that holds in every tier.

        Blocks are evicted tails first, so the first one of a chain names all its ancestors, and each name is
        computed once.
        """
        unnamed = []
        while block > 0 and block not in self._contents:
            unnamed.append(block)
            block = self.parent_of(block)
        content = self._contents[block] if block > 0 else root_content(block)
        for child in reversed(unnamed):
            content = self._contents[child] = content.followed_by(self.tokens_of(child))
        return content

    def descendants(self, *ancestors: int) -> list[int]:
        """Every indexed block that follows one of these (blocks, themselves included, or namespaces); children last.

        O(num_blocks · log(longest chain)), in numpy: for administrators, not for steps.
        """
        parents = self.indexed
        # Pointer doubling: ``above[block]`` climbs 1, 2, 4 … blocks at a time, and stops at an ancestor.
        above = np.where(parents > 0, parents, np.arange(len(parents), dtype=np.int32))
        found = np.isin(parents, ancestors)
        blocks = [ancestor for ancestor in ancestors if ancestor > 0]
        found[blocks] = parents[blocks] != 0
        above[blocks] = blocks
        depth = np.where(above == np.arange(len(parents)), 0, 1)
        while True:
            found |= found[above]
            depth = depth + depth[above]
            higher = above[above]
            if (higher == above).all():
                break
            above = higher
        following = np.flatnonzero(found)
        ordered: list[int] = following[np.argsort(depth[following], kind="stable")].tolist()
        return ordered

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping, without the tokens themselves (4 bytes per slot)."""
        return sum(array.nbytes for array in (self._bucket, self._chain, self._hash, self.indexed))

    def check(self) -> list[str]:
        """Every way in which the index contradicts itself; O(num_blocks)."""
        problems = []
        reached = set()
        for slot, head in enumerate(self._bucket.tolist()):
            block = head
            while block != NULL_BLOCK:
                if block in reached:
                    problems.append(f"block {block} is reached twice in the index")
                    break
                reached.add(block)
                if self._hash[block] & (len(self._bucket) - 1) != slot:
                    problems.append(f"block {block} hangs in bucket {slot}, not in its hash's")
                if self.hash_after(self.parent_of(block), self._tokens[block]) != self._hash[block]:
                    problems.append(f"block {block}'s hash is not that of its tokens and parent")
                block = int(self._chain[block])
        indexed = set(np.flatnonzero(self.indexed).tolist())
        if indexed != reached:
            problems.append(f"indexed but unreachable, or reachable but not indexed: {sorted(indexed ^ reached)[:8]}")
        orphans = [b for b in indexed if self.parent_of(b) > 0 and self.parent_of(b) not in indexed]
        if orphans:
            problems.append(f"indexed blocks have outlived their parents: {orphans[:8]}")
        if len(reached) != self._size:
            problems.append(f"the index counts {self._size} blocks and holds {len(reached)}")
        return problems


class Namespaces:
    """Key (tenant and cache salt) → namespace id, the parent of a prompt's first block.

    Ids are negative and never used twice. A namespace without any indexed block may be forgotten and its key given a
    new id later, which can only cause a miss; so salts chosen by clients cannot fill the memory.
    """

    _FORGET_ABOVE = 4096

    def __init__(self) -> None:
        self._ids: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}
        self._blocks: dict[int, int] = {}
        self._last = -1
        self._forget_at = self._FORGET_ABOVE

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, key: Hashable) -> int:
        """The key's namespace id."""
        known = self._ids.get(key)
        if known is None:
            if len(self._ids) >= self._forget_at:
                self._forget_empty()
            self._last -= 1
            known = self._ids[key] = self._last
            self._keys[known] = key
        return known

    def others(self, namespace: int, limit: int) -> list[int]:
        """Up to ``limit`` other namespaces that have indexed blocks, the youngest first."""
        if len(self._blocks) <= (namespace in self._blocks):
            return []
        youngest = islice(reversed(self._blocks), limit + 1)
        return [other for other in youngest if other != namespace][:limit]

    def matching(self, tenant: Hashable, salt: Hashable | None) -> list[tuple[int, Hashable]]:
        """(id, key) of the namespaces of a tenant, or of the one with this salt; keys are (tenant, salt)."""
        return [
            (number, key)
            for key, number in self._ids.items()
            if isinstance(key, tuple) and key[0] == tenant and (salt is None or key[1] == salt)
        ]

    def renew(self, key: Hashable) -> None:
        """Gives a key a new id at its next use: nothing that was indexed under the old one is found again."""
        self._keys.pop(self._ids.pop(key), None)

    def count(self, namespace: int, change: int) -> None:
        """Notes that a first block of this namespace was indexed (+1) or forgotten (-1)."""
        left = self._blocks.get(namespace, 0) + change
        if left:
            self._blocks[namespace] = left
        else:
            self._blocks.pop(namespace, None)

    def _forget_empty(self) -> None:
        for namespace in [n for n in self._keys if n not in self._blocks]:
            del self._ids[self._keys.pop(namespace)]
        self._forget_at = max(self._FORGET_ABOVE, 2 * len(self._ids))
