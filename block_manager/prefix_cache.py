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

from array import array

import numpy as np

from octavo.block_manager.free_list import NULL_BLOCK
from octavo.block_manager.hashing import ChainHash, chain_hash

_TOKEN_BYTES = 4


class PrefixCache:
    """Index of blocks whose content is known and complete."""

    def __init__(self, num_blocks: int, block_size: int, hasher: ChainHash = chain_hash) -> None:
        self.block_size = block_size
        self._hasher = hasher
        self._width = block_size * _TOKEN_BYTES
        num_buckets = 1 << num_blocks.bit_length()
        self._mask = num_buckets - 1
        self._bucket = array("i", bytes(4 * num_buckets))
        self._chain = array("i", bytes(4 * (num_blocks + 1)))
        self._hash = array("q", bytes(8 * (num_blocks + 1)))
        self._parent = array("i", bytes(4 * (num_blocks + 1)))  # 0: not indexed
        # numpy's zeros are mapped lazily: tokens cost memory only for blocks that were ever cached.
        self._tokens = np.zeros((num_blocks + 1) * self._width, dtype=np.uint8).data
        self._size = 0
        self.namespaces = Namespaces(hasher)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: int) -> bool:
        return self._parent[block] != 0

    def find(self, parent: int, tokens: bytes) -> int:
        """The block that holds these tokens after this parent, or the null block.

        Args:
            parent: A block id, or a namespace's (negative) id for the first block of a prompt.
            tokens: ``block_size`` int32 token ids.
        """
        return self._find(self._key(parent, tokens), parent, tokens)

    def insert(self, block: int, parent: int, tokens: bytes) -> int:
        """Indexes a block, unless an equal one is indexed already.

        Returns:
            The block that now stands for this content: ``block`` itself, or the earlier one.
        """
        key = self._key(parent, tokens)
        if twin := self._find(key, parent, tokens):
            return twin
        assert self._parent[block] == 0, f"block {block} is indexed already"
        self._hash[block] = key
        self._parent[block] = parent
        self._tokens[block * self._width : (block + 1) * self._width] = tokens
        slot = key & self._mask
        self._chain[block] = self._bucket[slot]
        self._bucket[slot] = block
        self._size += 1
        if parent < 0:
            self.namespaces.count(parent, +1)
        return block

    def remove(self, block: int) -> None:
        """Forgets what a block holds."""
        parent = self._parent[block]
        assert parent != 0, f"block {block} is not indexed"
        slot = self._hash[block] & self._mask
        following = self._chain[block]
        if self._bucket[slot] == block:
            self._bucket[slot] = following
        else:
            other = self._bucket[slot]
            while self._chain[other] != block:
                other = self._chain[other]
            self._chain[other] = following
        self._parent[block] = 0
        self._size -= 1
        if parent < 0:
            self.namespaces.count(parent, -1)

    def parent_of(self, block: int) -> int:
        """The parent of an indexed block; 0 if the block is not indexed."""
        return self._parent[block]

    def tokens_of(self, block: int) -> bytes:
        """The tokens of an indexed block, as int32 bytes."""
        return bytes(self._tokens[block * self._width : (block + 1) * self._width])

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping, without the tokens themselves (4 bytes per slot)."""
        return sum(len(a) * a.itemsize for a in (self._bucket, self._chain, self._hash, self._parent))

    def check(self) -> list[str]:
        """Every way in which the index contradicts itself; O(num_blocks)."""
        problems = []
        reached = set()
        for slot, head in enumerate(self._bucket):
            block = head
            while block != NULL_BLOCK:
                if block in reached:
                    problems.append(f"block {block} is reached twice in the index")
                    break
                reached.add(block)
                if self._hash[block] & self._mask != slot:
                    problems.append(f"block {block} hangs in bucket {slot}, not in its hash's")
                if self._key(self._parent[block], self.tokens_of(block)) != self._hash[block]:
                    problems.append(f"block {block}'s hash is not that of its tokens and parent")
                block = self._chain[block]
        indexed = {block for block, parent in enumerate(self._parent) if parent != 0}
        if indexed != reached:
            problems.append(f"indexed but unreachable, or reachable but not indexed: {sorted(indexed ^ reached)[:8]}")
        orphans = [block for block in indexed if self._parent[block] > 0 and self._parent[block] not in indexed]
        if orphans:
            problems.append(f"indexed blocks have outlived their parents: {orphans[:8]}")
        if len(reached) != self._size:
            problems.append(f"the index counts {self._size} blocks and holds {len(reached)}")
        return problems

    def _key(self, parent: int, tokens: bytes) -> int:
        return self._hasher(self._hash[parent] if parent > 0 else self.namespaces.hash_of(parent), tokens)

    def _find(self, key: int, parent: int, tokens: bytes) -> int:
        block = self._bucket[key & self._mask]
        while block != NULL_BLOCK:
            if (
                self._hash[block] == key
                and self._parent[block] == parent
                and self._tokens[block * self._width : (block + 1) * self._width] == tokens
            ):
                return block
            block = self._chain[block]
        return NULL_BLOCK


class Namespaces:
    """Cache salt → namespace id, the parent of a prompt's first block. Ids are negative and never used twice.

    A namespace without any indexed block may be forgotten and its salt given a new id later, which can only
    cause a miss; so salts chosen by clients cannot fill the memory.
    """

    _FORGET_ABOVE = 4096

    def __init__(self, hasher: ChainHash) -> None:
        self._hasher = hasher
        self._ids: dict[str, int] = {}
        self._salts: dict[int, str] = {}
        self._blocks: dict[int, int] = {}
        self._last = -1  # Python's hash(-1) equals hash(-2), so ids begin at -2
        self._forget_at = self._FORGET_ABOVE

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, salt: str) -> int:
        """The salt's namespace id."""
        known = self._ids.get(salt)
        if known is None:
            if len(self._ids) >= self._forget_at:
                self._forget_empty()
            self._last -= 1
            known = self._ids[salt] = self._last
            self._salts[known] = salt
        return known

    def hash_of(self, namespace: int) -> int:
        """What a first block's hash is chained to."""
        return self._hasher(namespace, b"")

    def count(self, namespace: int, change: int) -> None:
        """Notes that a first block of this namespace was indexed (+1) or forgotten (-1)."""
        left = self._blocks.get(namespace, 0) + change
        if left:
            self._blocks[namespace] = left
        else:
            self._blocks.pop(namespace, None)

    def _forget_empty(self) -> None:
        for namespace in [n for n in self._salts if n not in self._blocks]:
            del self._ids[self._salts.pop(namespace)]
        self._forget_at = max(self._FORGET_ABOVE, 2 * len(self._ids))
