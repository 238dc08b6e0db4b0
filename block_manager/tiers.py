"""The tiers below the device: host memory, and a disk under it.

    DEVICE   blocks that the model reads        block_manager.pool, one table entry per block
      │ ▲
      ▼ │    swap out / sink · swap in / promote
    HOST     blocks in (pinned) host memory
      │ ▲
      ▼ │
    DISK     blocks in a file, checksummed

A lower tier is content-addressed: the same beginning of a prompt lies there once, whoever left it. It holds

    held     what swapped-out sequences come back for; also half-filled blocks, which have no content name
    cached   what sank when the tier above needed the block; given up least recently used first, sinking further

Copies are planned in an order that is right when they are executed one after another, and `take_planned` hands
them to the step. Everything here is ids: `octavo.engine.kv_cache` moves the bytes.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.free_list import Blocks, Int32s, ids
from octavo.block_manager.hashing import Content, root_content
from octavo.block_manager.pool import BlockCounts, BlockPool


class Tier(enum.IntEnum):
    """Where a block lies; the higher the number, the further from the model."""

    DEVICE = 0
    HOST = 1
    DISK = 2

    __hash__ = int.__hash__  # that of an enumeration is computed in Python, and tiers are keys in what steps count


class Transfer(NamedTuple):
    """A block whose KV has to be copied from one tier to another. Ids start at 1 in every tier."""

    source: Tier
    source_block: int
    target: Tier
    target_block: int


class TransferTiming(NamedTuple):
    """How long it took to copy some blocks in one direction."""

    source: Tier
    target: Tier
    num_blocks: int
    seconds: float


class TransferOutcome(NamedTuple):
    """What came of a step's transfers.

    Attributes:
        lost: Those whose content did not arrive intact (a full disk, a damaged file); their target holds garbage.
        timings: What was measured.
    """

    lost: tuple[Transfer, ...] = ()
    timings: tuple[TransferTiming, ...] = ()


class Place(NamedTuple):
    """A block of a lower tier."""

    tier: Tier
    block: int


class ContentBlocks:
    """Index of a lower tier: content → block.

    Attributes:
        indexed: int32 ``[num_blocks + 1]``, 1 for blocks whose content is known.
    """

    def __init__(self, num_blocks: int) -> None:
        self.indexed: npt.NDArray[np.int32] = np.zeros(num_blocks + 1, dtype=np.int32)
        self._blocks: dict[bytes, int] = {}
        self._contents: dict[int, Content] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._contents

    def find(self, digest: bytes) -> int:
        """The block that holds this content, or the null block."""
        return self._blocks.get(digest, 0)

    def insert(self, block: int, content: Content) -> None:
        """Notes what a block holds; no other block may hold the same."""
        assert content.digest not in self._blocks, f"block {block} holds what block {self.find(content.digest)} holds"
        self._blocks[content.digest] = block
        self._contents[block] = content
        self.indexed[block] = 1

    def remove(self, blocks: Blocks) -> None:
        """Forgets what blocks hold."""
        for block in ids(blocks).tolist():
            del self._blocks[self._contents.pop(block).digest]
            self.indexed[block] = 0

    def content_of(self, block: int) -> Content:
        """What a block holds."""
        return self._contents[block]

    def of_namespaces(self, namespaces: Container[int]) -> list[int]:
        """The blocks whose content belongs to one of these namespaces."""
        return [block for block, content in self._contents.items() if content.namespace in namespaces]

    @property
    def nbytes(self) -> int:
        """Bytes of bookkeeping, estimated: two dictionary entries, a tuple and a digest per block."""
        return 300 * len(self._contents)

    def check(self) -> list[str]:
        """Every way in which the index contradicts itself."""
        mirrored = {block: content.digest for block, content in self._contents.items()}
        agree = mirrored == {b: d for d, b in self._blocks.items()}
        agree &= sorted(mirrored) == np.flatnonzero(self.indexed).tolist()
        return [] if agree else ["digests and blocks disagree"]


Level = BlockPool[ContentBlocks]


class Tiers:
    """The host and disk blocks, and the copies between all tiers.

    Args:
        num_host_blocks, num_disk_blocks: Blocks of each; 0 if there is no such tier.

    Attributes:
        worthwhile: The tiers from which a block comes back sooner than it could be computed anew; the scheduler,
            which knows the costs, keeps it up to date. Nothing sinks to or is promoted from the others.
        copied: (source, target) → blocks planned to be copied, since the start.
        lost: Blocks whose content did not arrive, since the start.
    """

    def __init__(self, num_host_blocks: int = 0, num_disk_blocks: int = 0) -> None:
        self._levels: dict[Tier, Level] = {}
        for tier, size in ((Tier.HOST, num_host_blocks), (Tier.DISK, num_disk_blocks)):
            if size:
                self._levels[tier] = BlockPool(size, ContentBlocks(size), partial(self._sink_further, tier))
        self.worthwhile: frozenset[Tier] = frozenset(self._levels)
        self.copied: Counter[tuple[Tier, Tier]] = Counter()
        self.lost = 0
        self._planned: list[Transfer] = []

    def __bool__(self) -> bool:
        return bool(self._levels)

    @property
    def existing(self) -> tuple[Tier, ...]:
        """The lower tiers that there are, nearest first."""
        return tuple(self._levels)

    def counts(self, tier: Tier) -> BlockCounts:
        """A tier's blocks by state; used ones are held by swapped-out sequences."""
        return self._levels[tier].counts if tier in self._levels else BlockCounts(0, 0, 0, 0)

    def level(self, tier: Tier) -> Level:
        """The blocks of a tier that there is; to be read only."""
        return self._levels[tier]

    @property
    def room(self) -> int:
        """Blocks that `store` can give out."""
        return sum(level.available for level in self._levels.values())

    # ── content ───────────────────────────────────────────────────────────────────────────────────────────

    def find(self, digest: bytes) -> Place | None:
        """Where this content lies, nearest first."""
        for tier, level in self._levels.items():
            if block := level.cache.find(digest):
                return Place(tier, block)
        return None

    def sink(self, source: Tier, block: int, content: Content) -> None:
        """Plans to keep what a block holds, which is about to be given up, in the next tier that is worth it."""
        for tier, level in self._levels.items():
            if tier <= source or tier not in self.worthwhile:
                continue
            if known := level.cache.find(content.digest):
                level.touch(known)
                return
            if level.available:
                target = self._take(tier, content)
                self._plan(Transfer(source, block, tier, target))
                level.release((target,))
                return

    def _sink_further(self, tier: Tier, blocks: Int32s) -> None:
        for block in blocks.tolist():
            self.sink(tier, block, self._levels[tier].cache.content_of(block))

    # ── swapped-out sequences ─────────────────────────────────────────────────────────────────────────────

    def is_idle(self, place: Place) -> bool:
        """Whether no swapped-out sequence holds the block: holding it uses up room."""
        return self._levels[place.tier].owners(place.block) == 0

    def store(self, block: int, content: Content | None) -> Place:
        """Plans to copy a device block down and holds the copy; the caller has checked `room`."""
        tier = next(tier for tier, level in self._levels.items() if level.available)
        place = Place(tier, self._take(tier, content))
        self._plan(Transfer(Tier.DEVICE, block, *place))
        return place

    def hold(self, place: Place) -> None:
        """Keeps a block's content until `drop`."""
        self._levels[place.tier].share((place.block,))

    def drop(self, places: Iterable[Place]) -> None:
        """Ends the holding of blocks; what has a content name stays cached. A sequence's tail comes first."""
        for tier, block in places:
            self._levels[tier].release((block,))

    def fetch(self, place: Place, block: int) -> None:
        """Plans to copy a held block up into a device block."""
        self._plan(Transfer(*place, Tier.DEVICE, block))

    # ── what becomes of the plan ──────────────────────────────────────────────────────────────────────────

    def take_planned(self) -> tuple[Transfer, ...]:
        """The copies planned since the last call, in order."""
        planned = tuple(self._planned)
        self._planned.clear()
        return planned

    def forget(self, place: Place) -> None:
        """Drops what is known of a block, because it did not arrive or was made invalid."""
        level = self._levels[place.tier]
        if place.block in level.cache:
            level.forget(place.block)

    def forget_namespaces(self, namespaces: Container[int]) -> int:
        """Drops all content of these namespaces; returns how many blocks that were."""
        return self._forget_all(self._of_namespaces(namespaces))

    def forget_after(self, content: Content, on_device: Iterable[Content] = ()) -> int:
        """Drops this content and everything that follows it; returns how many blocks that were.

        What lies between two blocks may be in another tier, or nowhere any more. Therefore a block stays only if its
        whole beginning is known and does not lead through ``content``.

        Args:
            on_device: What the device holds in this namespace.
        """
        places = self._of_namespaces((content.namespace,))
        children = defaultdict(set)
        for known in (*on_device, *places.values()):
            if known.digest != content.digest:
                children[known.parent].add(known.digest)
        stays, unseen = set[bytes](), [root_content(content.namespace).digest]
        while unseen:
            digest = unseen.pop()
            stays.add(digest)
            unseen += children[digest]
        return self._forget_all(place for place, known in places.items() if known.digest not in stays)

    def _of_namespaces(self, namespaces: Container[int]) -> dict[Place, Content]:
        return {
            Place(tier, block): level.cache.content_of(block)
            for tier, level in self._levels.items()
            for block in level.cache.of_namespaces(namespaces)
        }

    def _forget_all(self, places: Iterable[Place]) -> int:
        forgotten = list(places)
        for place in forgotten:
            self.forget(place)
        return len(forgotten)

    def check(self, held: Counter[Place]) -> list[str]:
        """Every way in which the tiers contradict themselves or what swapped-out sequences hold; O(num_blocks)."""
        problems = []
        for tier, level in self._levels.items():
            problems += [f"{tier.name.lower()}: {problem}" for problem in level.check()]
            for block in range(1, level.num_blocks + 1):
                if level.owners(block) != held[Place(tier, block)]:
                    problems.append(
                        f"{tier.name.lower()} block {block} has {level.owners(block)} owners, and "
                        f"{held[Place(tier, block)]} swapped-out sequences hold it"
                    )
        return problems

    def _take(self, tier: Tier, content: Content | None) -> int:
        level = self._levels[tier]
        block = level.take()
        if content is not None:
            level.cache.insert(block, content)
        return block

    def _plan(self, transfer: Transfer) -> None:
        self._planned.append(transfer)
        self.copied[transfer.source, transfer.target] += 1
