"""The physical blocks of one tier: take, share, release, evict.

Every block is in exactly one of three states, and used + cached + free = total, always:

    used    reference count ≥ 1: that many block tables hold it
    cached  no owner, content indexed: free to be taken, and until then a prefix hit
    free    no owner, nothing worth keeping

Cached and free blocks share one list: free ones at its head, then cached ones, least recently used first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.block_manager import loops
from octavo.block_manager.free_list import Blocks, FreeList, Int32s, ids
from octavo.block_manager.loops import ABSENT, NULL_BLOCK


class ContentIndex(Protocol):
    """What a tier knows of its blocks' content."""

    @property
    def indexed(self) -> Int32s:
        """int32 ``[num_blocks + 1]``: not 0 for blocks whose content can be found."""

    def __contains__(self, block: int) -> bool:
        """Whether the block's content can be found."""

    def remove(self, blocks: Blocks) -> None:
        """Forgets what blocks hold."""

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
    def reference_counts(self) -> Int32s: ...

    def age_of(self, block: int) -> BlockAge: ...
    def span_counts(self) -> dict[str, tuple[list[int], float]]: ...
    def owners(self, block: int) -> int: ...
    def take(self) -> int: ...
    def take_many(self, count: int) -> Int32s: ...
    def take_into(self, blocks: Int32s) -> None: ...
    def share(self, blocks: Blocks) -> None: ...
    def release(self, blocks: Blocks) -> int: ...
    def forget(self, block: int) -> None: ...
    def check(self) -> list[str]: ...


Index = TypeVar("Index", bound=ContentIndex)


class BlockCounts(NamedTuple):
    """How many blocks are in which state; used + cached + free = total."""

    total: int
    used: int
    cached: int
    free: int


class BlockAge(NamedTuple):
    """How long a block has been what it is.

    Attributes:
        taken: Seconds since it was taken for what it holds; None if it holds nothing.
        idle: Seconds since it lost its last owner; None while it has one, or holds nothing.
        shares: How often somebody came to share it since it was taken.
    """

    taken: float | None = None
    idle: float | None = None
    shares: int = 0


def _seconds_between(began: int, now: int) -> float:
    return ((now - began) & 0xFFFFFFFF) / 1000


class BlockPool(Generic[Index]):
    """Blocks ``1 … num_blocks``. Id 0 is the null block, which nobody ever owns and padding points to.

    Args:
        num_blocks: Blocks that can be owned.
        cache: Finds blocks by their content.
        on_evict: Told of the cached blocks whose content is about to be given up, while the index still knows it.
        clock: Seconds, monotonic.

    Attributes:
        reference_counts: int32 ``[num_blocks + 1]``, to be read only.
    """

    def __init__(
        self,
        num_blocks: int,
        cache: Index,
        on_evict: Callable[[Int32s], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_blocks = num_blocks
        self.cache = cache
        self.evictions = 0
        self.on_evict = on_evict
        self._free = FreeList(num_blocks)
        self.reference_counts: Int32s = np.zeros(num_blocks + 1, dtype=np.int32)
        self._clock = clock
        self._ages: npt.NDArray[np.uint32] = np.zeros((3, num_blocks + 1), dtype=np.uint32)
        self._spans: npt.NDArray[np.int64] = np.zeros((3, len(loops.SPAN_BOUNDS) + 2), dtype=np.int64)
        self._arrays = self._free.links, self.reference_counts, cache.indexed, self._ages, self._spans
        self._idle_cached = 0  # blocks that are in the free list and indexed
        self._shared = 0  # blocks with more than one owner
        self._references = 0  # sum of all reference counts

    @property
    def available(self) -> int:
        """Blocks that can be taken now: free ones and cached ones."""
        return self._free.size

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
        return self.reference_counts.nbytes + self._free.nbytes + self._ages.nbytes + self.cache.nbytes

    @property
    def _now(self) -> int:
        """Milliseconds; wraps around."""
        return int(self._clock() * 1000) & 0xFFFFFFFF

    @property
    def _state(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        """What the loops that take, share and release are given first."""
        return *self._arrays, self._now

    def age_of(self, block: int) -> BlockAge:
        """How old a block's content is, in seconds."""
        taken, idle, shares = self._ages[:, block].tolist()
        now = self._now
        known = block in self.cache or self.owners(block) > 0
        return BlockAge(
            _seconds_between(taken, now) if known else None,
            _seconds_between(idle, now) if known and not self.owners(block) else None,
            shares if known else 0,
        )

    def span_counts(self) -> dict[str, tuple[list[int], float]]:
        """How long blocks lived, were idle before they were given up, and before somebody shared them again.

        Returns:
            By name, counts for the bounds of `octavo.block_manager.loops.SPAN_BOUNDS` and for what exceeds them, and
            the sum in seconds.
        """
        names = ("block_lifetime", "block_idle", "block_reuse_gap")
        return {name: (row[:-1].tolist(), float(row[-1]) / 1000) for name, row in zip(names, self._spans, strict=True)}

    def owners(self, block: int) -> int:
        """The block's reference count."""
        return int(self.reference_counts[block])

    def take(self) -> int:
        """Gives out one block; see `take_many`."""
        return int(self.take_many(1)[0])

    def take_many(self, count: int) -> Int32s:
        """Gives out blocks to one owner, evicting the least recently used content if need be.

        The caller has checked `available`.
        """
        blocks = np.empty(count, dtype=np.int32)
        self.take_into(blocks)
        return blocks

    def take_into(self, blocks: Int32s) -> None:
        """`take_many`, as many as find room in ``blocks``."""
        count = len(blocks)
        assert count <= self._free.size, f"{count} blocks are to be taken of {self._free.size}"
        evicted = loops.take(*self._state, blocks)
        self._free.size -= count
        self._references += count
        if evicted:
            self._evict(blocks if evicted == count else blocks[self.cache.indexed[blocks] != 0])

    def _evict(self, blocks: Int32s) -> None:
        if self.on_evict is not None:
            self.on_evict(blocks)
        self.cache.remove(blocks)
        self._idle_cached -= len(blocks)
        self.evictions += len(blocks)

    def touch(self, block: int) -> None:
        """Makes a cached block the most recently used one; one that has owners will become it anyway."""
        if self.reference_counts[block] == 0:
            self._free.remove(block)
            self._free.push_tail(block)

    def share(self, blocks: Blocks) -> None:
        """Adds an owner to each of these blocks, which are in use or cached."""
        blocks = ids(blocks)
        idle, single, blank = loops.share(*self._state, blocks)
        assert blank == ABSENT, f"block {blank} is free and holds nothing to share"
        self._free.size -= idle
        self._idle_cached -= idle
        self._shared += single
        self._references += len(blocks)

    def release(self, blocks: Blocks) -> int:
        """Takes one owner from each block and returns how many have none left.

        Args:
            blocks: In a sequence's order. Its tail is given up before its head, so that the beginnings that others may
                share stay cached longest.
        """
        blocks = ids(blocks)
        cached: int
        blank: int
        cached, blank, single, ownerless = loops.release(*self._state, blocks)
        assert ownerless == ABSENT, f"block {ownerless} has no owner to lose"
        self._free.size += cached + blank
        self._idle_cached += cached
        self._shared -= single
        self._references -= len(blocks)
        return cached + blank

    def forget(self, block: int) -> None:
        """Drops what is known of a block's content; without an owner it becomes free."""
        self.cache.remove((block,))
        if self.reference_counts[block] == 0:
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
            owners = self.owners(block)
            if (owners == 0) != (block in free):
                problems.append(f"block {block} has {owners} owners and is {'' if block in free else 'not '}free")
        if self.reference_counts[NULL_BLOCK] or NULL_BLOCK in free or NULL_BLOCK in self.cache:
            problems.append("the null block is owned, free or cached")
        expected = {
            "cached": (self._idle_cached, sum(block in self.cache for block in free)),
            "shared": (self._shared, int((self.reference_counts > 1).sum())),
            "references": (self._references, int(self.reference_counts.sum())),
        }
        problems += [f"counts {a} {name}, finds {b}" for name, (a, b) in expected.items() if a != b]
        return problems
