"""BlockManager: the block tables of all running sequences over one pool, and the tiers below it.

Sequences are known by their row only. A row's life:

    match_prefix ─► reserve ─► publish … grow … publish ─► release
                       │ ▲  └─► fork ─► make_writable …
              swap_out ▼ │ match_prefix, reserve
                    SwappedBlocks

"Published" blocks are complete and indexed for reuse. They are published when a step that fills them is
*scheduled*: within a step every layer writes all K/V before it attends, so a request admitted in the same step
can share them already. If that step fails, `retract` takes the promise back. A prefix is looked up on the device
first, and goes on in the lower tiers:

    tokens   [ ···block··· | ···block··· | ···block··· | ···block··· | ···  ]
               device 7      device 31     host 4        disk 9        to be computed
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.block_manager.hashing import ALL_BITS, root_content
from octavo.block_manager.misses import NEVER_SEEN, EvictionHistory, Miss, MissReason
from octavo.block_manager.pins import Pin, Pins
from octavo.block_manager.pool import BlockPool, DevicePool
from octavo.block_manager.prefix_cache import PrefixCache
from octavo.block_manager.quota import Quota
from octavo.block_manager.table import BlockTables
from octavo.block_manager.tiers import Place, Tier, Tiers, Transfer

Tokens = npt.NDArray[np.int32]
Count = TypeVar("Count", int, npt.NDArray[np.int32])

# Other tenants' and salts' namespaces that are searched to explain why a prompt's first block was not found.
_OTHER_SALTS = 8


class PrefixMatch(NamedTuple):
    """The longest beginning of some tokens whose KV lies somewhere.

    Attributes:
        blocks: The device blocks, in order. Nobody has taken them yet.
        idle: How many of them have no owner; sharing those uses up available blocks.
        namespace: The namespace that the look-up was made in.
        below: The blocks of lower tiers that follow, in order.
        num_tokens: Tokens that all of them hold.
        missed: The hash of what the first block that the device lacks would hold, where one was looked for.
        private: What lies below may have been invalidated since it was swapped out: nobody else may find it.
    """

    blocks: list[int]
    idle: int
    namespace: int
    below: list[Place]
    num_tokens: int
    missed: int = 0
    private: bool = False


class SwappedBlocks(NamedTuple):
    """What a swapped-out sequence comes back for.

    Attributes:
        places: Per block, where its copy is held; None for a block that others still used on the device.
        num_tokens: Tokens whose KV the blocks hold.
        epoch: How often something of its tenant had been invalidated; -1 if that was already true of this KV.
    """

    places: tuple[Place | None, ...]
    num_tokens: int
    epoch: int = 0

    @property
    def held(self) -> list[Place]:
        """The copies, a sequence's tail first."""
        return [place for place in reversed(self.places) if place is not None]


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
        tiers: The blocks below the device; None for none.
        floors, ceilings: Of each tenant; see `octavo.block_manager.quota.Quota`.
        pin_budget: Blocks that may be pinned at the same time.
        clock: Seconds, for telling when a block was taken and evicted.
        hash_mask: See `octavo.block_manager.prefix_cache.PrefixCache`.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_rows: int,
        max_blocks_per_row: int,
        prefix_caching: bool = True,
        tiers: Tiers | None = None,
        floors: Sequence[int] = (0,),
        ceilings: Sequence[int | None] = (None,),
        pin_budget: int = 0,
        clock: Callable[[], float] = time.monotonic,
        hash_mask: int = ALL_BITS,
    ) -> None:
        self.block_size = block_size
        self._clock = clock
        self.tiers = tiers if tiers is not None else Tiers()
        self.cache, self.pool = self._make_pool(num_blocks, hash_mask)
        self.evicted = EvictionHistory(clock)
        self.quota = Quota(num_blocks, floors, ceilings)
        self.pins = Pins(pin_budget)
        self.tables = BlockTables(num_rows, max_blocks_per_row)
        self.prefix_caching = prefix_caching
        self.copies = 0
        self.deduplicated = 0
        self.prefix_queries = 0
        self.prefix_hits: Counter[Tier] = Counter()
        self._published = np.zeros(num_rows, dtype=np.int32)  # per row: its leading blocks that are indexed
        self._namespace = np.zeros(num_rows, dtype=np.int32)
        self._tenant = np.zeros(num_rows, dtype=np.int32)
        self._epochs = Counter[int]()  # tenant -> how often something of it was invalidated
        self._private: set[int] = set()  # rows that publish nothing more: what they began with was invalidated
        self._duplicates: set[int] = set()  # rows whose next block to publish is already someone else's

    def _make_pool(self, num_blocks: int, hash_mask: int) -> tuple[PrefixCache, DevicePool]:
        cache = PrefixCache(num_blocks, self.block_size, hash_mask)
        return cache, BlockPool(num_blocks, cache, self._on_evict, self._clock)

    # ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────

    def columns_for(self, num_tokens: int) -> int:
        """Entries of a block table that so many tokens take."""
        return -(-num_tokens // self.block_size)

    @property
    def blocks_per_column(self) -> int:
        """Blocks that one more entry of a block table takes: one, or one for each group of layers."""
        return 1

    def most_blocks(self, num_tokens: int) -> int:
        """The most blocks that a sequence holds at any time until it has so many tokens."""
        return self.columns_for(num_tokens)

    def blocks_at(self, num_tokens: Count) -> Count:
        """Per sequence, the blocks that it holds when it has so many tokens and computes one at a time."""
        return -(-num_tokens // self.block_size)

    def blocks_held(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Per row, the blocks that it holds, what it is promised included."""
        return self.tables.lengths[rows]

    def max_tokens(self, tenant: int = 0) -> int:
        """The most tokens that one sequence can ever keep in the pool: more is an answer of "never"."""
        num_columns: int = self.tables.ids.shape[1]
        return min(self.quota.capacity(tenant), num_columns) * self.block_size

    def entry_of(self, block: int) -> int:
        """What stands for a block in block tables: itself; 0 if nothing does."""
        return block

    def room(self, tenant: int = 0) -> int:
        """Blocks that a tenant can take now."""
        return self.quota.room(tenant, self.pool.available)

    # ── prefixes ──────────────────────────────────────────────────────────────────────────────────────────

    def match_prefix(
        self, tokens: Tokens, salt: str = "", tenant: int = 0, swapped: SwappedBlocks | None = None
    ) -> PrefixMatch:
        """Finds the longest beginning whose KV lies somewhere, leaving at least one token to compute.

        Args:
            tokens: int32 ``[num_tokens]``.
            salt: Requests with different salts, or of different tenants, never see each other's blocks.
            swapped: What the sequence was swapped out with, a partial last block included.
        """
        namespace = self.cache.namespaces.id_of((tenant, salt))
        limit = (len(tokens) - 1) // self.block_size
        blocks, idle, missed = self._match_device(tokens, namespace, limit) if self.prefix_caching else ([], 0, 0)
        below: list[Place] = []
        if swapped is not None:
            below = self._match_swapped(tokens.tobytes(), namespace, blocks, swapped)
        elif self.tiers and self.prefix_caching and len(blocks) < limit:
            below = self._match_below(tokens.tobytes(), namespace, blocks, limit)
        found = len(blocks) + len(below)
        if swapped is None or not below:
            return PrefixMatch(blocks, idle, namespace, below, found * self.block_size, missed)
        # The tail need not be full.
        num_tokens = swapped.num_tokens if found == len(swapped.places) else found * self.block_size
        private = swapped.epoch != self._epochs[tenant]
        return PrefixMatch(blocks, idle, namespace, below, num_tokens, missed, private)

    def match_nothing(self, salt: str = "", tenant: int = 0) -> PrefixMatch:
        """What `match_prefix` answers where nothing is cached: for a sequence that has to compute all of its tokens."""
        return PrefixMatch([], 0, self.cache.namespaces.id_of((tenant, salt)), [], 0, 0)

    def _match_device(self, tokens: Tokens, namespace: int, limit: int) -> tuple[list[int], int, int]:
        """The device's blocks among the first ``limit``, how many have no owner, and the hash of the first it lacks."""
        blocks, missed = self.cache.find_run(namespace, tokens, limit)
        if not len(blocks):
            return [], 0, missed
        return blocks.tolist(), int((self.pool.reference_counts[blocks] == 0).sum()), missed

    def _match_below(self, content: bytes, namespace: int, blocks: list[int], limit: int) -> list[Place]:
        """What follows the device's blocks in tiers that it is worth coming back from."""
        below: list[Place] = []
        width = 4 * self.block_size
        name = self.cache.content_of(blocks[-1] if blocks else namespace)
        for index in range(len(blocks), limit):
            name = name.followed_by(content[index * width : (index + 1) * width])
            place = self.tiers.find(name.digest)
            if place is None or place.tier not in self.tiers.worthwhile:
                break
            below.append(place)
        return below

    def _match_swapped(self, content: bytes, namespace: int, blocks: list[int], swapped: SwappedBlocks) -> list[Place]:
        """The sequence's own copies; for blocks that others used on the device and gave up since, what sank."""
        below: list[Place] = []
        width = 4 * self.block_size
        name = self.cache.content_of(blocks[-1] if blocks else namespace)
        for index in range(len(blocks), len(swapped.places)):
            name = name.followed_by(content[index * width : (index + 1) * width])
            place = swapped.places[index] or self.tiers.find(name.digest)
            if place is None:
                break
            below.append(place)
        return below

    def explain_miss(self, tokens: Tokens, match: PrefixMatch) -> Miss:
        """Why a look-up found no more than it did."""
        size, found = self.block_size, len(match.blocks) + len(match.below)
        if found >= (len(tokens) - 1) // size:
            return Miss(MissReason.SHORTER_THAN_A_BLOCK)
        if not self.prefix_caching:
            return Miss(MissReason.CACHE_OFF)
        missed = match.missed
        if match.below:
            parent, begin = (match.blocks[-1], len(match.blocks)) if match.blocks else (match.namespace, 0)
            missed = self.cache.hash_after(parent, tokens[begin * size : (found + 1) * size])
        if (seconds := self.evicted.seconds_since(missed)) is not None:
            return Miss(MissReason.EVICTED, seconds)
        others = self.cache.namespaces.others(match.namespace, _OTHER_SALTS) if not found else []
        if others and any(len(self.cache.find_run(other, tokens, 1)[0]) for other in others):
            return Miss(MissReason.OTHER_SALT)
        return NEVER_SEEN

    def needed(self, match: PrefixMatch, num_tokens: int) -> int:
        """Available blocks that `reserve` uses up."""
        return self.columns_for(num_tokens) - len(match.blocks) + match.idle

    def won_by_release(self, match: PrefixMatch) -> int:
        """Of the matched blocks, how many would become available if their only owner gave way."""
        return sum(self.pool.owners(block) == 1 for block in match.blocks)

    def shortfall(self, match: PrefixMatch, num_tokens: int, keep_free: int = 0, tenant: int = 0) -> int:
        """Blocks that are missing for `reserve` to succeed and leave ``keep_free`` blocks; 0 if none are."""
        return self.quota.missing(tenant, self.needed(match, num_tokens), self.pool.available - keep_free)

    def reserve(self, row: int, match: PrefixMatch, tokens: Tokens, tenant: int = 0) -> None:
        """Gives an empty row its matched blocks, and new ones for the rest of its tokens.

        The caller has seen `shortfall` return 0. A request's whole known length is reserved at once, so no two
        half-admitted requests can wait for each other.

        Args:
            tokens: int32 ``[num_tokens]``, what was matched.
        """
        assert self.tables.lengths[row] == 0, f"row {row} is in use"
        available = self.pool.available
        # Matched blocks first: they might be the very ones that taking new blocks would evict.
        if match.blocks:
            self._share_prefix(match.blocks)
            self.tables.extend(row, match.blocks)
        for place in match.below:
            self.tiers.hold(place)
        self.pool.take_into(self.tables.lengthen(row, self.columns_for(len(tokens)) - len(match.blocks)))
        self._published[row] = len(match.blocks)
        self._namespace[row] = match.namespace
        self._tenant[row] = tenant
        self._entered(row, len(match.blocks))
        self._charge(tenant, available)
        if match.below:
            self._promote(row, match, tokens)
        if self.prefix_caching:
            self.prefix_queries += len(tokens)
            for tier, hits in self.hits(match).items() if match.num_tokens else ():
                self.prefix_hits[tier] += hits

    def _promote(self, row: int, match: PrefixMatch, tokens: Tokens) -> None:
        """Plans the copies that bring what lies below into the row's new blocks, which are indexed at once."""
        first, last = len(match.blocks), len(match.blocks) + len(match.below)
        for place, block in zip(match.below, self.tables.ids[row, first:last].tolist(), strict=True):
            self.tiers.fetch(place, block)
        self.tiers.drop(reversed(match.below))
        if match.private:
            self._private.add(row)
        elif self.prefix_caching:
            twin = self._publish_row(row, tokens, match.num_tokens // self.block_size)
            assert not twin, f"block {twin} holds what was looked for below the device"

    def hits(self, match: PrefixMatch) -> dict[Tier, int]:
        """The tokens that were found, by tier."""
        found = {Tier.DEVICE: len(match.blocks) * self.block_size}
        if not match.below:
            return found
        for index, place in enumerate(match.below, len(match.blocks)):
            tokens = min(self.block_size, match.num_tokens - index * self.block_size)
            found[place.tier] = found.get(place.tier, 0) + tokens
        return found

    def grow(self, rows: Sequence[int]) -> None:
        """Appends one entry to each of these rows' tables; the caller has checked `room` for `blocks_per_column`."""
        available = self.pool.available
        self.tables.append(rows, self.pool.take_many(len(rows)))
        taken_each = (available - self.pool.available) // len(rows)
        for tenant, count in Counter(self._tenant[rows].tolist()).items():
            self.quota.charge(tenant, count * taken_each)

    def slide(self, rows: npt.NDArray[np.int32], num_computed: npt.NDArray[np.int32]) -> None:
        """Gives up what lies behind the windows of rows that compute their next token at these positions."""

    def blocks_of(self, group: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The blocks of a group of layers that these entries of block tables stand for; of the same shape."""
        return ids

    def cover(self, rows: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> None:
        """Makes sure that all layers have blocks for what rows compute in this step, up to these positions."""

    def cover_row(self, row: int, end: int) -> None:
        """`cover` for one row."""

    def fork(self, source: int, target: int) -> None:
        """Makes an empty row share all blocks of another, a last partial one included."""
        assert self.tables.lengths[target] == 0, f"row {target} is in use"
        available = self.pool.available
        blocks = self.tables.blocks(source)
        self.pool.share(blocks)
        self.tables.extend(target, blocks)
        self._published[target] = self._published[source]
        self._namespace[target] = self._namespace[source]
        self._tenant[target] = self._tenant[source]
        for marked in (self._duplicates, self._private):
            if source in marked:
                marked.add(target)
        self._forked(source, target)
        self._charge(self._tenant[target], available)

    def copies_needed(self, writes: Iterable[tuple[int, int]]) -> int:
        """Blocks that `make_writable` takes for all of these (row, position) together.

        Of the owners of a block the last one writes in place, so k of its k owners need k - 1 copies.
        """
        writers = Counter(int(self.tables.ids[row, position // self.block_size]) for row, position in writes)
        copies = sum(min(count, self.pool.owners(block) - 1) for block, count in writers.items())
        return copies * self.blocks_per_column

    def make_writable(self, row: int, position: int) -> list[BlockCopy]:
        """Makes sure that the row alone owns the block of a position (copy-on-write).

        The caller has checked `copies_needed` against `room`.

        Returns:
            The copies of KV that have to run before anything is written in this step.
        """
        index = position // self.block_size
        source = int(self.tables.ids[row, index])
        if self.pool.owners(source) == 1:
            return []
        available = self.pool.available
        destination = self.pool.take()
        self.tables.ids[row, index] = destination
        copies = self._copied(source, destination)
        self.pool.release((source,))
        self._charge(self._tenant[row], available)
        self.copies += len(copies)
        return copies

    def publish(self, row: int, tokens: Tokens, num_computed: int) -> None:
        """Indexes the row's blocks that are full once ``num_computed`` tokens are.

        A block whose content another row already provides stays private until `merge_duplicates`, because this
        step is still going to write to it.

        Args:
            tokens: int32, the sequence's tokens, at least ``num_computed`` of them.
        """
        if not self.prefix_caching or row in self._private:
            return
        if self._publish_row(row, tokens, num_computed // self.block_size):
            self._duplicates.add(row)

    def publish_all(self, rows: Tokens, token_ids: Tokens, num_computed: Tokens) -> None:
        """`publish` for many rows at once.

        Args:
            rows: int32 ``[n]``. token_ids: int32 ``[num_rows, max_tokens]``. num_computed: int32 ``[n]``.
        """
        if not self.prefix_caching:
            return
        if self._private:
            public = np.isin(rows, list(self._private), invert=True)
            rows, num_computed = rows[public], num_computed[public]
        ends = num_computed // self.block_size
        twins = self.cache.publish(self.tables.ids, token_ids, self._namespace, self._published, rows, ends)
        self._duplicates.update(twins.tolist())

    def merge_duplicates(self, row: int, tokens: Tokens, num_computed: int) -> None:
        """After the step: replaces the row's blocks by equal ones that were published before, and publishes on."""
        if row not in self._duplicates:
            return
        self._duplicates.discard(row)
        while twin := self._publish_row(row, tokens, num_computed // self.block_size):
            index = int(self._published[row])
            mine = int(self.tables.ids[row, index])
            available = self.pool.available
            self.pool.share((twin,))
            self._merged(row, index, twin, mine)
            self.tables.ids[row, index] = twin
            self.pool.release((mine,))
            self._charge(self._tenant[row], available)
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
            if block in self.cache:
                self.pool.forget(block)
        self._published[row] = min(self._published[row], num_computed // self.block_size)
        self._duplicates.discard(row)

    def retract_orphans(self, rows: Sequence[int]) -> None:
        """After `retract` of other rows: takes back what these rows had published after blocks that are forgotten.

        A row that was let in with a failed step may have promoted blocks that follow what another was to compute.
        """
        retracted = True
        while retracted:
            retracted = False
            for row in rows:
                published = self.tables.ids[row, : self._published[row]].tolist()
                lost = next((index for index, block in enumerate(published) if block not in self.cache), None)
                if lost is not None:
                    self.retract(row, lost * self.block_size)
                    retracted = True

    def release(self, row: int) -> None:
        """Empties a row. Its published blocks stay cached until they are needed, tails given up before heads."""
        available = self.pool.available
        self._release_blocks(row, self.tables.clear(row))
        self._charge(self._tenant[row], available)
        self._published[row] = 0
        self._duplicates.discard(row)
        self._private.discard(row)

    # ── swapping ──────────────────────────────────────────────────────────────────────────────────────────

    def exclusive_blocks(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Per row, the blocks that releasing it would make available: int64 ``[num_rows]``."""
        return self.sole_columns(rows)

    def sole_columns(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Per row, the entries of its table that nobody shares: int64 ``[num_rows]``."""
        longest = int(self.tables.lengths[rows].max(initial=0))
        ids = self.tables.ids[rows, :longest]
        counts: npt.NDArray[np.int64] = (self.pool.reference_counts[ids] == 1).sum(axis=1)
        return counts

    def swap_out(self, row: int, num_computed: int) -> SwappedBlocks | None:
        """Plans to copy a row's blocks to the tiers below and holds the copies there; `release` the row afterwards.

        Blocks that others use stay where they are, and what lies below already is not copied again.

        Args:
            num_computed: Tokens whose KV the row holds.

        Returns:
            What to give to `match_prefix` when the sequence comes back; None, with nothing done, if the tiers
            below have no room.
        """
        sources = self.tables.blocks(row)[: self.columns_for(num_computed)]
        shared = [self.pool.owners(block) > 1 for block in sources]
        names = [self.cache.content_of(b) if i < self._published[row] else None for i, b in enumerate(sources)]
        known = [
            self.tiers.find(name.digest) if name is not None and not used else None
            for name, used in zip(names, shared, strict=True)
        ]
        uses_room = [place is None or self.tiers.is_idle(place) for place in known]
        if sum(room and not used for room, used in zip(uses_room, shared, strict=True)) > self.tiers.room:
            return None
        # What is there already is held first: storing the rest might give it up.
        for place in known:
            if place is not None:
                self.tiers.hold(place)
        places = [
            None if used else place or self.tiers.store(block, name)
            for block, name, used, place in zip(sources, names, shared, known, strict=True)
        ]
        epoch = -1 if row in self._private else self._epochs[self._tenant[row]]
        return SwappedBlocks(tuple(places), num_computed, epoch)

    def drop_swapped(self, swapped: SwappedBlocks) -> None:
        """Ends the holding of a swapped-out sequence's copies; those with a content name stay cached."""
        self.tiers.drop(swapped.held)

    def take_transfers(self) -> tuple[Transfer, ...]:
        """The copies between tiers planned since the last call; they come before everything else in a step."""
        return self.tiers.take_planned()

    def _on_evict(self, blocks: Tokens) -> None:
        self.evicted.add(self.cache.hashes_of(blocks))
        if self.tiers.worthwhile:
            for block in blocks.tolist():
                self.tiers.sink(Tier.DEVICE, block, self.cache.content_of(block))

    # ── pins and invalidation ─────────────────────────────────────────────────────────────────────────────

    def find_pinnable(self, tokens: Tokens, salt: str = "", tenant: int = 0) -> tuple[list[int], int]:
        """The device blocks of all full blocks of some tokens, as far as they are cached, and their namespace."""
        namespace = self.cache.namespaces.id_of((tenant, salt))
        blocks, *_ = self._match_device(tokens, namespace, len(tokens) // self.block_size)
        return blocks, namespace

    def blocks_to_pin(self, blocks: Sequence[int]) -> int:
        """Available blocks that `pin` uses up."""
        return sum(self.pool.owners(block) == 0 for block in blocks)

    def pin(self, blocks: Sequence[int], namespace: int, tenant: int, expires: float) -> Pin:
        """Makes a pin one more owner of cached blocks, or has the one that is there already last longer.

        The caller has checked `pins_missing` and `blocks_to_pin`.
        """
        if (renewed := self.pins.renew(blocks, expires)) is not None:
            return renewed
        available = self.pool.available
        self._share_prefix(blocks)
        self._charge(tenant, available)
        return self.pins.add(blocks, namespace, tenant, expires)

    @property
    def pinned_blocks(self) -> int:
        """Distinct blocks that pins keep."""
        return self.pins.num_blocks

    def pin_size(self, num_columns: int) -> int:
        """Blocks that a pin of so many entries of a block table keeps."""
        return num_columns

    def pins_missing(self, blocks: Sequence[int]) -> int:
        """By how many blocks the budget of pins is too small for one more pin of these; 0 if it is not."""
        return self.pins.missing(blocks)

    def unpin(self, pin: Pin) -> None:
        """Drops a pin; its blocks stay cached until they are needed."""
        self.pins.remove(pin)
        available = self.pool.available
        self._release_prefix(pin.blocks)
        self._charge(pin.tenant, available)

    def invalidate_namespaces(self, tenant: int, salt: str | None = None) -> int:
        """Forgets all that is cached for a tenant, or for one of its salts, in every tier.

        Running sequences go on with the blocks they have and publish no more; nor do swapped-out ones, whichever of the
        tenant's they are, when they come back for their copies. Pins are dropped.

        Returns:
            Blocks forgotten.
        """
        self._epochs[tenant] += 1
        keys = dict(self.cache.namespaces.matching(tenant, salt))
        for pin in [pin for pin in self.pins.listed() if pin.namespace in keys]:
            self.unpin(pin)
        forgotten = self._forget_device(self.cache.descendants(*keys)) + self.tiers.forget_namespaces(keys)
        self._make_private(row for row in self._held_rows() if self._namespace[row] in keys)
        for key in keys.values():
            self.cache.namespaces.renew(key)
        return forgotten

    def invalidate_prefix(self, tokens: Tokens, salt: str = "", tenant: int = 0) -> int:
        """Forgets the last full block of some tokens and all that follows it, in every tier.

        Sequences and pins that begin with these tokens are treated as by `invalidate_namespaces`.

        Returns:
            Blocks forgotten.
        """
        namespace = self.cache.namespaces.id_of((tenant, salt))
        count = len(tokens) // self.block_size
        if not count:
            return 0
        self._epochs[tenant] += 1
        name, width, content = root_content(namespace), 4 * self.block_size, tokens.tobytes()
        for index in range(count):
            name = name.followed_by(content[index * width : (index + 1) * width])
        on_device = self.cache.descendants(namespace) if self.tiers else []
        forgotten = self.tiers.forget_after(name, map(self.cache.content_of, on_device))
        blocks, *_ = self._match_device(tokens, namespace, count)
        if len(blocks) < count:
            return forgotten
        for pin in [pin for pin in self.pins.listed() if blocks[-1] in pin.blocks]:
            self.unpin(pin)
        self._make_private(row for row in self._held_rows() if blocks[-1] in self.tables.blocks(row))
        return forgotten + self._forget_device(self.cache.descendants(blocks[-1]))

    def _forget_device(self, blocks: list[int]) -> int:
        for block in reversed(blocks):  # children before parents
            self.pool.forget(block)
        gone = set(blocks)
        for row in self._held_rows():
            published = self.tables.ids[row, : self._published[row]].tolist()
            self._published[row] = next((i for i, block in enumerate(published) if block in gone), len(published))
        return len(blocks)

    def _make_private(self, rows: Iterable[int]) -> None:
        self._private.update(rows)
        self._duplicates -= self._private

    def _held_rows(self) -> list[int]:
        rows: list[int] = np.flatnonzero(self.tables.lengths).tolist()
        return rows

    def check_integrity(self, swapped: Iterable[SwappedBlocks] = ()) -> list[str]:
        """Every invariant that does not hold, in words; an empty list is good news. O(num_blocks).

        Args:
            swapped: What the swapped-out sequences come back for.
        """
        problems = self.pool.check() + self.quota.check(self.pool.available)
        problems += self.tiers.check(Counter(place for blocks in swapped for place in blocks.held))
        num_ids = len(self.pool.reference_counts)
        held = np.bincount(self.tables.ids.ravel(), minlength=num_ids)
        for block in range(1, num_ids):
            holders, pins, owners = int(held[block]), self.pins.held(block), self.pool.owners(block)
            if holders + pins != owners:
                problems.append(f"block {block} is in {holders} tables and {pins} pins and counts {owners} owners")
        for row, length in enumerate(self.tables.lengths.tolist()):
            if self.tables.ids[row, length:].any():
                problems.append(f"row {row} has blocks past its length {length}")
            problems += self._check_published(row)
        if self.pinned_blocks > self.pins.budget:
            problems.append(f"{self.pinned_blocks} blocks are pinned, {self.pins.budget} may be")
        return problems

    def _check_published(self, row: int) -> list[str]:
        return [
            f"row {row}'s block {index} counts as published and is not chained to its predecessor"
            for index in range(int(self._published[row]))
            if self.cache.parent_of(int(self.tables.ids[row, index])) != self._parent(row, index)
        ]

    # ── what a model with windows does on top ─────────────────────────────────────────────────────────────

    def _charge(self, tenant: int, before: int) -> None:
        """Notes in a tenant's quota what has happened since so many blocks were available."""
        self.quota.charge(tenant, before - self.pool.available)

    def _share_prefix(self, blocks: Sequence[int]) -> None:
        """One more owner for the blocks of a prompt's beginning."""
        self.pool.share(blocks)

    def _release_prefix(self, blocks: Sequence[int]) -> None:
        """Undoes `_share_prefix`."""
        self.pool.release(blocks)

    def _entered(self, row: int, num_matched: int) -> None:
        """A row has got its blocks; so many of them hold KV already."""

    def _forked(self, source: int, target: int) -> None:
        """A row has got the blocks of another."""

    def _copied(self, source: int, destination: int) -> list[BlockCopy]:
        """A row has ``destination`` instead of ``source`` from now on: what has to be copied."""
        return [BlockCopy(source, destination)]

    def _merged(self, row: int, index: int, twin: int, mine: int) -> None:
        """A row is about to replace its block by an equal one, of which it is an owner already."""

    def _release_blocks(self, row: int, blocks: Tokens) -> None:
        """Gives up all blocks of a row, whose table is empty already."""
        self.pool.release(blocks)

    def _publish_row(self, row: int, tokens: Tokens, end: int) -> int:
        """Publishes the row's blocks up to index ``end``, or up to the first one that has a twin, which it returns."""
        return self.cache.publish_row(self.tables.ids, tokens, self._namespace, self._published, row, end)

    def _parent(self, row: int, index: int) -> int:
        return int(self.tables.ids[row, index - 1] if index else self._namespace[row])
