"""The physical blocks of one tier: take, share, release, evict.

Every block is in exactly one of three states, and used + cached + free = total, always:

    used    reference count ≥ 1: that many block tables hold it
    cached  no owner, content indexed: free to be taken, and until then a prefix hit
    free    no owner, nothing worth keeping

Cached and free blocks share one list: free ones at its head, then cached ones, least recently used first.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.block_manager.free_list import NULL_BLOCK, FreeList


class ContentIndex(Protocol):
    """What a tier knows of its blocks' content."""

    def __contains__(self, block: int) -> bool:
        """Whether the block's content can be found."""

    def remove(self, block: int) -> None:
        """Forgets what a block holds."""

    def check(self) -> list[str]:
        """Every way in which the index contradicts itself."""

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping."""


class DevicePool(Protocol):
    """What the block manager asks of the device's blocks; `BlockPool` says what each means.

    In a model with sliding-window layers a block id of a table names a column of several blocks; see
    `octavo.block_manager.column_pool`. ``num_blocks`` and `available` count blocks all the same.
    """

    num_blocks: int
    evictions: int

    @property
    def available(self) -> int: ...

    @property
    def counts(self) -> BlockCounts: ...

    @property
    def shared(self) -> int: ...

    @property
    def saved(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def reference_counts(self) -> npt.NDArray[np.int32]: ...

    def owners(self, block: int) -> int: ...
    def take(self) -> int: ...
    def take_many(self, count: int) -> list[int]: ...
    def share(self, block: int) -> None: ...
    def release(self, blocks: Iterable[int]) -> int: ...
    def forget(self, block: int) -> None: ...
    def check(self) -> list[str]: ...


Index = TypeVar("Index", bound=ContentIndex)


class BlockCounts(NamedTuple):
    """How many blocks are in which state; used + cached + free = total."""

    total: int
    used: int
    cached: int
    free: int


class BlockPool(Generic[Index]):
    """Blocks ``1 … num_blocks``. Id 0 is the null block, which nobody ever owns and padding points to.

    Args:
        num_blocks: Blocks that can be owned.
        cache: Finds blocks by their content.
        on_evict: Told of every cached block whose content is about to be given up, while the index still knows it.
    """

    def __init__(self, num_blocks: int, cache: Index, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self.cache = cache
        self.evictions = 0
        self.on_evict = on_evict
        self._free = FreeList(num_blocks)
        self._owners = array("i", bytes(4 * (num_blocks + 1)))
        self._idle_cached = 0  # blocks that are in the free list and indexed
        self._shared = 0  # blocks with more than one owner
        self._references = 0  # sum of all reference counts

    @property
    def available(self) -> int:
        """Blocks that can be taken now: free ones and cached ones."""
        return len(self._free)

    @property
    def counts(self) -> BlockCounts:
        """The pool's blocks by state."""
        available = len(self._free)
        return BlockCounts(
            self.num_blocks, self.num_blocks - available, self._idle_cached, available - self._idle_cached
        )

    @property
    def shared(self) -> int:
        """Blocks with more than one owner."""
        return self._shared

    @property
    def saved(self) -> int:
        """Blocks that would be needed on top if nothing were shared."""
        return self._references - (self.num_blocks - len(self._free))

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping, without the cached blocks' tokens (4 bytes per slot)."""
        return len(self._owners) * self._owners.itemsize + self._free.nbytes + self.cache.nbytes

    def owners(self, block: int) -> int:
        """The block's reference count."""
        return self._owners[block]

    @property
    def reference_counts(self) -> npt.NDArray[np.int32]:
        """A view: int32 ``[num_blocks + 1]``, every block's reference count."""
        return np.frombuffer(self._owners, dtype=np.int32)

    def take(self) -> int:
        """Gives out one block; see `take_many`."""
        return self.take_many(1)[0]

    def take_many(self, count: int) -> list[int]:
        """Gives out blocks to one owner, evicting the least recently used content if need be.

        The caller has checked `available`.
        """
        blocks = self._free.pop(count)
        owners = self._owners
        for block in blocks:
            owners[block] = 1
        self._references += count
        if not self._idle_cached:  # nobody's content is lost
            return blocks
        for block in blocks:
            if block in self.cache:
                if self.on_evict is not None:
                    self.on_evict(block)
                self.cache.remove(block)
                self._idle_cached -= 1
                self.evictions += 1
        return blocks

    def touch(self, block: int) -> None:
        """Makes a cached block the most recently used one; one that has owners will become it anyway."""
        if self._owners[block] == 0:
            self._free.remove(block)
            self._free.push_tail(block)

    def share(self, block: int) -> None:
        """Adds an owner to a block that is in use or cached."""
        owners = self._owners[block]
        if owners == 0:
            assert block in self.cache, f"block {block} is free and holds nothing to share"
            self._free.remove(block)
            self._idle_cached -= 1
        elif owners == 1:
            self._shared += 1
        self._owners[block] = owners + 1
        self._references += 1

    def release(self, blocks: Iterable[int]) -> int:
        """Takes one owner from each block and returns how many have none left.

        Args:
            blocks: In the order in which they should be given up: a sequence's tail before its head, so that
                the beginnings that others may share stay cached longest.
        """
        available = len(self._free)
        for block in blocks:
            owners = self._owners[block] - 1
            assert owners >= 0, f"block {block} has no owner to lose"
            self._owners[block] = owners
            self._references -= 1
            if owners == 1:
                self._shared -= 1
            elif owners == 0:
                if block in self.cache:
                    self._free.push_tail(block)
                    self._idle_cached += 1
                else:
                    self._free.push_head(block)
        return len(self._free) - available

    def forget(self, block: int) -> None:
        """Drops what is known of a block's content; without an owner it becomes free."""
        self.cache.remove(block)
        if self._owners[block] == 0:
            self._idle_cached -= 1
            self._free.remove(block)
            self._free.push_head(block)

    def check(self) -> list[str]:
        """Every way in which the pool contradicts itself; O(num_blocks)."""
        problems = self.cache.check()
        listed = list(self._free)
        if len(set(listed)) != len(listed) or len(listed) != len(self._free):
            problems.append(f"the free list counts {len(self._free)} blocks and holds {len(set(listed))}")
        free = set(listed)
        for block in range(1, self.num_blocks + 1):
            owners = self._owners[block]
            if (owners == 0) != (block in free):
                problems.append(f"block {block} has {owners} owners and is {'' if block in free else 'not '}free")
        if self._owners[NULL_BLOCK] or NULL_BLOCK in free or NULL_BLOCK in self.cache:
            problems.append("the null block is owned, free or cached")
        expected = {
            "cached": (self._idle_cached, sum(block in self.cache for block in free)),
            "shared": (self._shared, sum(owners > 1 for owners in self._owners)),
            "references": (self._references, sum(self._owners)),
        }
        problems += [f"counts {a} {name}, finds {b}" for name, (a, b) in expected.items() if a != b]
        return problems
