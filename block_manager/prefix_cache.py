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
from collections.abc import Hashable, Iterable

import numpy as np

from octavo.block_manager.free_list import NULL_BLOCK
from octavo.block_manager.hashing import ChainHash, Content, chain_hash, root_content

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
        self._contents: dict[int, Content] = {}  # of blocks whose content had to be named for another tier
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
        key = self._key(parent, tokens)
        return self._search(self._bucket[key & self._mask], key, parent, tokens)

    def insert_run(self, blocks: Iterable[int], parent: int, content: bytes) -> tuple[int, int]:
        """Indexes blocks that follow one another, up to the first whose content another block stands for already.

        One call for a whole prompt: this loop is most of what adding a request costs.

        Args:
            blocks: In order. Those that are indexed already (a forked sibling's) are taken as they are.
            parent: What the first one follows: a block id, or a namespace id.
            content: ``block_size`` int32 token ids for each block.

        Returns:
            How many of the blocks are indexed now, and the block that stands for the next one's content, or the
            null block if all are.
        """
        hashes, parents, buckets, chain = self._hash, self._parent, self._bucket, self._chain
        hasher, mask, width, all_tokens = self._hasher, self._mask, self._width, self._tokens
        parent_hash, inserted, position, twin = self._hash_of(parent), 0, -1, NULL_BLOCK
        for position, block in enumerate(blocks):
            if not parents[block]:
                tokens = content[position * width : (position + 1) * width]
                key = hasher(parent_hash, tokens)
                slot = key & mask
                if (head := buckets[slot]) and (twin := self._search(head, key, parent, tokens)):
                    break
                hashes[block] = key
                parents[block] = parent
                all_tokens[block * width : (block + 1) * width] = tokens
                chain[block] = head
                buckets[slot] = block
                inserted += 1
                if parent < 0:
                    self.namespaces.count(parent, +1)
            parent, parent_hash = block, hashes[block]
        else:
            position += 1
        self._size += inserted
        return position, twin

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
        self._contents.pop(block, None)
        self._size -= 1
        if parent < 0:
            self.namespaces.count(parent, -1)

    def parent_of(self, block: int) -> int:
        """The parent of an indexed block; 0 if the block is not indexed."""
        return self._parent[block]

    def tokens_of(self, block: int) -> bytes:
        """The tokens of an indexed block, as int32 bytes."""
        return bytes(self._tokens[block * self._width : (block + 1) * self._width])

    def key_of(self, block: int) -> int:
        """The hash of an indexed block."""
        return self._hash[block]

    def chain_key(self, namespace: int, tokens: bytes) -> int:
        """The hash that the last of these full blocks would have."""
        key = self.namespaces.hash_of(namespace)
        for start in range(0, len(tokens), self._width):
            key = self._hasher(key, tokens[start : start + self._width])
        return key

    def content_of(self, block: int) -> Content:
        """The name of an indexed block's content that holds in every tier.

        Blocks are evicted tails first, so the first one of a chain names all its ancestors, and each name is
        computed once.
        """
        unnamed = []
        while block > 0 and block not in self._contents:
            unnamed.append(block)
            block = self._parent[block]
        content = self._contents[block] if block > 0 else root_content(block)
        for child in reversed(unnamed):
            content = self._contents[child] = content.followed_by(self.tokens_of(child))
        return content

    def descendants(self, *ancestors: int) -> list[int]:
        """Every indexed block that follows one of these (blocks, themselves included, or namespaces); children last.

        O(num_blocks · log(longest chain)), in numpy: for administrators, not for steps.
        """
        parents = np.frombuffer(self._parent, dtype=np.int32)
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

    def _hash_of(self, parent: int) -> int:
        return self._hash[parent] if parent > 0 else self.namespaces.hash_of(parent)

    def _key(self, parent: int, tokens: bytes) -> int:
        return self._hasher(self._hash_of(parent), tokens)

    def _search(self, block: int, key: int, parent: int, tokens: bytes) -> int:
        """The equal block in the chain that begins with ``block``, or the null block."""
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
    """Key (tenant and cache salt) → namespace id, the parent of a prompt's first block.

    Ids are negative and never used twice. A namespace without any indexed block may be forgotten and its key given a
    new id later, which can only cause a miss; so salts chosen by clients cannot fill the memory.
    """

    _FORGET_ABOVE = 4096

    def __init__(self, hasher: ChainHash) -> None:
        self._hasher = hasher
        self._ids: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}
        self._blocks: dict[int, int] = {}
        self._last = -1  # Python's hash(-1) equals hash(-2), so ids begin at -2
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
        return [other for other in reversed(self._blocks) if other != namespace][:limit]

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
        for namespace in [n for n in self._keys if n not in self._blocks]:
            del self._ids[self._keys.pop(namespace)]
        self._forget_at = max(self._FORGET_ABOVE, 2 * len(self._ids))
