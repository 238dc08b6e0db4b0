"""ColumnPool: columns and their frames, who owns and who needs them, and in which order they are given up."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from blocks import Tokens, insert_run

from octavo.block_manager.column_pool import ColumnPool
from octavo.block_manager.free_list import FreeList
from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.pool import BlockCounts
from octavo.block_manager.prefix_cache import PrefixCache

BLOCK_SIZE = 2
NAMESPACE = -1


def make_pool(
    num_blocks: int = 12,
    *,
    full: int = 1,
    windowed: int = 2,
    num_columns: int | None = None,
    on_evict: Callable[[Tokens], None] | None = None,
) -> ColumnPool:
    """A pool of a model with so many groups of each kind, one layer in each."""
    groups = LayerGroups(tuple((layer,) for layer in range(full + windowed)), num_full=full, window=8)
    columns = num_columns or num_blocks // full
    return ColumnPool(num_blocks, columns, groups, PrefixCache(columns, BLOCK_SIZE), on_evict)


def index(pool: ColumnPool, column: int, content: int | None = None) -> None:
    tokens = np.array([column if content is None else content] * BLOCK_SIZE, dtype=np.int32)
    assert insert_run(pool.cache, [column], NAMESPACE, tokens) == (1, 0)


def used_once(pool: ColumnPool, count: int) -> list[int]:
    """Columns that were used with their frames, in this order, and are cached."""
    columns = []
    for _ in range(count):
        column = pool.take()
        pool.need(column)
        index(pool, column)
        pool.leave(column)
        pool.release((column,))
        columns.append(column)
    return columns


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_pool_is_free() -> None:
    pool = make_pool()
    assert pool.counts == BlockCounts(total=12, used=0, cached=0, free=12)
    assert (pool.available, pool.shared, pool.saved, pool.evictions) == (12, 0, 0, 0)
    assert pool.check() == []


def test_a_column_takes_its_full_blocks_and_no_frames() -> None:
    pool = make_pool(full=2, windowed=2)
    column = pool.take()
    assert column != 0
    assert (pool.owners(column), pool.needs(column), pool.has_frames(column)) == (1, 0, False)
    assert np.count_nonzero(pool.blocks[:, column]) == 2
    assert pool.counts == BlockCounts(total=12, used=2, cached=0, free=10)
    assert pool.check() == []


def test_columns_taken_together_share_no_block() -> None:
    pool = make_pool(full=2, windowed=2)
    columns = pool.take_many(3)
    assert len(set(pool.blocks[:2, columns].ravel().tolist())) == 6
    assert pool.take_many(0).tolist() == []
    assert pool.check() == []


def test_a_shared_column_is_in_use_until_its_last_owner_leaves() -> None:
    pool = make_pool()
    column = pool.take()
    pool.share((column,))
    assert pool.release((column,)) == 0
    assert pool.counts.used == 1
    assert pool.release((column,)) == 1
    assert pool.counts == BlockCounts(total=12, used=0, cached=0, free=12)
    assert pool.check() == []


def test_a_column_that_is_known_stays_cached_with_its_frames() -> None:
    pool = make_pool()
    (column,) = used_once(pool, 1)
    assert pool.counts == BlockCounts(total=12, used=0, cached=3, free=9)
    assert pool.available == 12
    assert pool.has_frames(column)
    assert pool.check() == []


def test_sharing_a_cached_column_takes_its_full_blocks_back_into_use_and_not_its_frames() -> None:
    pool = make_pool()
    (column,) = used_once(pool, 1)
    before = pool.blocks[:, column].tolist()
    pool.share((column,))
    assert pool.counts == BlockCounts(total=12, used=1, cached=2, free=9)
    pool.need(column)
    assert pool.counts == BlockCounts(total=12, used=3, cached=0, free=9)
    assert pool.blocks[:, column].tolist() == before
    assert pool.check() == []


def test_misuse_is_our_bug() -> None:
    pool = make_pool()
    column = pool.take()
    with pytest.raises(AssertionError, match="nobody needs"):
        pool.leave(column)
    with pytest.raises(AssertionError, match="holds nothing to share"):
        pool.share((column + 1 if column < pool.num_columns else column - 1,))
    pool.need(column)
    with pytest.raises(AssertionError, match="has frames"):
        pool.adopt(column, column)
    with pytest.raises(AssertionError, match="its frames are needed"):
        pool.release((column,))
    pool = make_pool()
    column = pool.take()
    pool.release((column,))
    with pytest.raises(AssertionError, match="no owner to lose"):
        pool.release((column,))


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_frames_are_taken_when_they_are_first_needed() -> None:
    pool = make_pool()
    column = pool.take()
    pool.need(column)
    assert pool.has_frames(column)
    assert len(set(pool.blocks[:, column].tolist()) - {0}) == 3
    assert pool.counts == BlockCounts(total=12, used=3, cached=0, free=9)
    assert pool.check() == []


def test_the_first_of_two_that_leave_frames_changes_nothing() -> None:
    pool = make_pool()
    column = pool.take()
    pool.share((column,))
    pool.need(column)
    pool.need(column)
    assert (pool.needs(column), pool.counts.used) == (2, 3)
    pool.leave(column)
    assert (pool.needs(column), pool.counts.used) == (1, 3)
    assert pool.check() == []


def test_frames_that_nobody_needs_are_free_unless_the_column_is_known() -> None:
    pool = make_pool()
    unknown, known = pool.take_many(2)
    index(pool, known)
    for column in (unknown, known):
        pool.need(column)
        pool.leave(column)
    assert not pool.has_frames(unknown)
    assert pool.has_frames(known)
    assert pool.counts == BlockCounts(total=12, used=2, cached=2, free=8)
    assert pool.check() == []


def test_what_is_promised_is_not_available() -> None:
    pool = make_pool()
    pool.promised = 5
    assert (pool.available, pool.counts.free) == (7, 12)
    column = pool.take()
    assert pool.available == 6
    pool.need(column)
    pool.promised -= 2
    assert pool.available == 6
    pool.promised = 0
    assert pool.check() == []


def test_more_promised_than_there_is_makes_available_negative() -> None:
    pool = make_pool()
    pool.promised = 14
    assert pool.available == -2
    assert pool.check() == ["2 more blocks are promised than there are"]


def test_adopted_frames_change_their_column_and_keep_who_needs_them() -> None:
    pool = make_pool(num_blocks=4)
    (known,) = used_once(pool, 1)
    pool.share((known,))
    other = pool.take()
    pool.need(other)  # takes the frames of the known one
    assert not pool.has_frames(known)
    frames = pool.blocks[1:, other].tolist()
    before = pool.available
    pool.adopt(known, other)
    assert pool.blocks[1:, known].tolist() == frames
    assert (pool.needs(known), pool.needs(other), pool.has_frames(other)) == (1, 0, False)
    assert pool.available == before
    pool.release((other,))
    assert pool.check() == []


# ── giving up ───────────────────────────────────────────────────────────────────────────────────────────────


def test_frames_are_given_up_before_the_columns_that_were_released_after_them() -> None:
    told: list[int] = []
    pool = make_pool(num_blocks=6, on_evict=told.extend)
    first, second = used_once(pool, 2)
    third = pool.take()  # the first one's frames
    assert told == [first]
    assert not pool.has_frames(first)
    assert first in pool.cache
    pool.take()
    assert told == [first]  # one block of its frames was left
    pool.take()  # the first one's full block
    assert told == [first, first]
    assert first not in pool.cache
    assert pool.has_frames(second)
    assert pool.evictions == 2 + 1  # blocks
    assert third != first
    assert pool.check() == []


def test_frames_and_columns_are_given_up_least_recently_used_first() -> None:
    told: list[int] = []
    pool = make_pool(num_blocks=12, on_evict=told.extend)
    columns = used_once(pool, 4)
    pool.share((columns[0],))
    pool.release((columns[0],))  # the column, not its frames
    pool.share((columns[1],))
    pool.need(columns[1])
    pool.leave(columns[1])
    pool.release((columns[1],))
    # frames 0 · frames 2, column 2 · frames 3, column 3 · column 0 · frames 1, column 1
    assert len(pool.take_many(12)) == 12
    zero, one, two, three = columns
    assert told == [zero, two, two, three, three, zero, one, one]
    assert pool.check() == []


def test_evicting_tells_while_the_column_is_still_known() -> None:
    known: list[bool] = []
    pool = make_pool(num_blocks=3, on_evict=lambda columns: known.extend(column in pool.cache for column in columns))
    used_once(pool, 1)
    pool.take_many(3)
    assert known == [True, True]


def test_forgetting_an_idle_column_frees_all_its_blocks() -> None:
    pool = make_pool()
    (column,) = used_once(pool, 1)
    pool.forget(column)
    assert pool.counts == BlockCounts(total=12, used=0, cached=0, free=12)
    assert pool.evictions == 0
    assert pool.check() == []


def test_forgetting_a_column_in_use_frees_the_frames_that_nobody_needs() -> None:
    pool = make_pool()
    seen, unseen = pool.take_many(2)
    for column in (seen, unseen):
        pool.need(column)
        index(pool, column)
    pool.leave(unseen)
    for column in (seen, unseen):
        pool.forget(column)
    assert (pool.has_frames(seen), pool.has_frames(unseen)) == (True, False)
    assert pool.counts == BlockCounts(total=12, used=4, cached=0, free=8)
    pool.leave(seen)
    assert pool.counts == BlockCounts(total=12, used=2, cached=0, free=10)
    assert pool.check() == []


def test_without_full_groups_a_cached_column_is_recycled_when_none_is_left() -> None:
    told: list[int] = []
    pool = make_pool(num_blocks=8, full=0, windowed=2, num_columns=3, on_evict=told.extend)
    columns = used_once(pool, 3)
    assert pool.counts == BlockCounts(total=8, used=0, cached=6, free=2)
    taken = pool.take_many(2)
    assert pool.counts.used == 0
    assert set(taken) == set(columns[:2])
    assert told == [columns[0], columns[0], columns[1], columns[1]]
    assert pool.has_frames(columns[2])
    assert pool.check() == []


def test_with_full_groups_a_cached_column_is_recycled_too() -> None:
    pool = make_pool(num_blocks=4, full=1, windowed=1)
    for column in pool.take_many(4):
        index(pool, column)
        pool.release((column,))
    assert pool.counts == BlockCounts(total=4, used=0, cached=4, free=0)
    assert len(pool.take_many(4)) == 4
    assert pool.evictions == 4
    assert pool.counts == BlockCounts(total=4, used=4, cached=0, free=0)
    assert pool.check() == []


def test_a_list_can_be_empty_at_first() -> None:
    listed = FreeList(3, empty=True)
    assert (len(listed), list(listed)) == (0, [])
    assert [column in listed for column in (0, 1, 2, 3)] == [False] * 4
    with pytest.raises(AssertionError):
        listed.pop(1)
    with pytest.raises(AssertionError):
        listed.remove(2)
    for column in (2, 3):
        listed.push_tail(column)
    listed.push_head(1)
    listed.remove(2)
    assert (len(listed), list(listed)) == (2, [1, 3])
    assert listed.pop(2).tolist() == [1, 3]
    assert listed.nbytes == FreeList(3).nbytes


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_shared_and_saved_count_blocks_of_columns_and_of_frames() -> None:
    pool = make_pool(full=1, windowed=2)
    column, other = pool.take_many(2)
    pool.share((column,))
    pool.share((column,))
    pool.need(column)
    assert (pool.shared, pool.saved) == (1, 2)
    pool.need(column)
    assert (pool.shared, pool.saved) == (1 + 2, 2 + 2)
    pool.need(other)
    assert (pool.shared, pool.saved) == (1 + 2, 2 + 2)
    pool.leave(column)
    assert (pool.shared, pool.saved) == (1, 2)
    assert pool.check() == []


def test_counts_per_column_can_be_looked_up_all_at_once() -> None:
    pool = make_pool()
    column = pool.take()
    pool.share((column,))
    pool.need(column)
    assert (pool.reference_counts[column], pool.need_counts[column]) == (2, 1)
    assert (pool.reference_counts.sum(), pool.need_counts.sum()) == (2, 1)


def test_bookkeeping_grows_with_the_pool_and_not_with_its_use() -> None:
    small, large = make_pool(num_blocks=64), make_pool(num_blocks=128)
    assert 0 < small.nbytes < large.nbytes
    before = large.nbytes
    large.take_many(100)
    assert large.nbytes == before


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────


def in_all_states() -> tuple[ColumnPool, int, int, int]:
    """A pool with a column whose frames are needed, one whose frames are cached, and one that is cached."""
    pool = make_pool(num_blocks=24)
    (cached,) = used_once(pool, 1)
    needed, left = pool.take_many(2)
    pool.need(needed)
    pool.need(left)
    index(pool, left)
    pool.leave(left)
    assert pool.check() == []
    return pool, needed, left, cached


def lose_a_block(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._free.pop()


def use_a_block_twice(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool.blocks[0, needed] = pool.blocks[0, left]


def lose_a_full_block(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._free.append(int(pool.blocks[0, needed]))
    pool.blocks[0, needed] = 0


def lose_a_frame(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._free.append(int(pool.blocks[2, needed]))
    pool.blocks[2, needed] = 0


def add_an_owner(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._owners[needed] += 1


def add_a_need(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._needs[needed] += 1


def keep_needed_frames_evictable(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._evictable.push_tail(pool.num_columns + needed)


def keep_a_column_in_use_evictable(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._evictable.push_tail(left)


def lose_a_cached_column(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._evictable.remove(cached)


def lose_cached_frames(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._evictable.remove(pool.num_columns + left)


def list_a_column_in_use_as_unused(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._unused.append(needed)


def forget_content_only(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool.cache.remove((cached,))


def miscount_columns(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._used_columns += 1


def miscount_frames(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._used_frames -= 1


def miscount_references(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._references += 1


def miscount_references_to_frames(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool._references_to_frames += 1


def promise_too_much(pool: ColumnPool, needed: int, left: int, cached: int) -> None:
    pool.promised = 1000


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lose_a_block, "is in 0 places"),
        (use_a_block_twice, "is in 2 places"),
        (lose_a_full_block, "has the full blocks [0]"),
        (lose_a_frame, "are needed 1 times"),
        (add_an_owner, "counts 2 references, finds 3"),
        (add_a_need, "are needed 2 times by 1 owners"),
        (keep_needed_frames_evictable, "are needed 1 times by 1 owners"),
        (keep_a_column_in_use_evictable, "is listed as evictable"),
        (lose_a_cached_column, "is not listed as evictable"),
        (lose_cached_frames, "are needed 0 times"),
        (list_a_column_in_use_as_unused, "is listed as unused"),
        (forget_content_only, "is not listed as unused"),
        (miscount_columns, "counts 3 columns in use, finds 2"),
        (miscount_frames, "counts 0 frames in use, finds 1"),
        (miscount_references, "counts 3 references, finds 2"),
        (miscount_references_to_frames, "counts 2 references to frames, finds 1"),
        (promise_too_much, "more blocks are promised than there are"),
    ],
)
def test_a_contradiction_is_found(corrupt: Callable[[ColumnPool, int, int, int], None], message: str) -> None:
    pool, *columns = in_all_states()
    corrupt(pool, *columns)
    assert any(message in problem for problem in pool.check()), pool.check()


# ── at random ───────────────────────────────────────────────────────────────────────────────────────────────


class Model:
    """What a pool should do, written down plainly: holders as a list, what may be given up as a list, oldest first."""

    def __init__(self, num_blocks: int, num_columns: int, full: int, windowed: int) -> None:
        self.sizes = (num_blocks, num_columns, full, windowed)
        self.holders: list[list[int]] = []  # column, whether the holder needs its frames
        self.known: set[int] = set()
        self.existing: set[int] = set()
        self.framed: set[int] = set()
        self.idle: list[tuple[int, str]] = []
        self.evictions = 0
        self.told: list[int] = []

    def owners(self, column: int) -> int:
        return sum(holder[0] == column for holder in self.holders)

    def needs(self, column: int) -> int:
        return sum(holder == [column, 1] for holder in self.holders)

    @property
    def used(self) -> int:
        _, _, full, windowed = self.sizes
        needed = {column for column, needs in self.holders if needs}
        return full * len({column for column, _ in self.holders}) + windowed * len(needed)

    @property
    def free(self) -> int:
        total, _, full, windowed = self.sizes
        return total - full * len(self.existing) - windowed * len(self.framed)

    def give_up(self) -> None:
        column, what = self.idle.pop(0)
        self.told.append(column)
        self.evictions += self.sizes[3 if what == "frames" else 2]
        if what == "frames":
            self.framed.remove(column)
        else:
            self.dissolve(column)

    def dissolve(self, column: int) -> None:
        self.known.discard(column)
        self.existing.remove(column)
        self.framed.discard(column)
        self.idle = [(other, what) for other, what in self.idle if other != column]

    def take(self, columns: list[int]) -> None:
        _, num_columns, full, _ = self.sizes
        while num_columns - len(self.existing) < len(columns):
            self.give_up()
        while self.free < full * len(columns):
            self.give_up()
        self.existing.update(columns)
        self.holders += [[column, 0] for column in columns]

    def share(self, column: int) -> None:
        self.idle = [entry for entry in self.idle if entry != (column, "column")]
        self.holders.append([column, 0])

    def need(self, holder: list[int]) -> None:
        column = holder[0]
        if not self.needs(column):
            self.idle = [entry for entry in self.idle if entry != (column, "frames")]
            while column not in self.framed and self.free < self.sizes[3]:
                self.give_up()
            self.framed.add(column)
        holder[1] = 1

    def leave(self, holder: list[int]) -> None:
        column = holder[0]
        holder[1] = 0
        if self.needs(column):
            return
        if column in self.known:
            self.idle.append((column, "frames"))
        else:
            self.framed.remove(column)

    def release(self, holder: list[int]) -> None:
        column = holder[0]
        self.holders = [other for other in self.holders if other is not holder]
        if not self.owners(column):
            if column in self.known:
                self.idle.append((column, "column"))
            else:
                self.dissolve(column)

    def forget(self, column: int) -> None:
        self.known.remove(column)
        if not self.owners(column):
            self.dissolve(column)
        elif not self.needs(column) and column in self.framed:
            self.framed.remove(column)
            self.idle.remove((column, "frames"))


class Walk:
    """One seed's pool and model, which do the same."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        full, windowed = rng.choice([(1, 1), (1, 3), (2, 1), (0, 1), (0, 2)])
        num_blocks = rng.randrange(4, 30)
        num_columns = num_blocks // full if full else rng.randrange(3, 30)
        self.told: list[int] = []
        self.pool = make_pool(
            num_blocks, full=full, windowed=windowed, num_columns=num_columns, on_evict=self.told.extend
        )
        self.model = Model(num_blocks, num_columns, full, windowed)
        self.contents = 0

    def step(self) -> None:
        rng, pool, model = self.rng, self.pool, self.model
        _, num_columns, full, windowed = model.sizes
        kind = rng.choice(["take", "share", "need", "need", "leave", "release", "index", "index", "forget", "promise"])
        needing = [holder for holder in model.holders if holder[1]]
        others = [holder for holder in model.holders if not holder[1]]
        if kind == "take":
            count = rng.randrange(1, 4)
            fits = len({column for column, _ in model.holders}) + count <= num_columns
            if fits and full * count <= pool.available:
                model.take(pool.take_many(count))
        elif kind == "share" and model.known:
            column = rng.choice(sorted(model.known))
            if pool.owners(column) or full <= pool.available:
                pool.share((column,))
                model.share(column)
        elif kind == "need" and others:
            holder = rng.choice(others)
            if model.needs(holder[0]) or windowed <= pool.available:
                pool.need(holder[0])
                model.need(holder)
        elif kind == "leave" and needing:
            holder = rng.choice(needing)
            pool.leave(holder[0])
            model.leave(holder)
        elif kind == "release" and others:
            holder = rng.choice(others)
            pool.release((holder[0],))
            model.release(holder)
        elif kind == "index" and (new := sorted({column for column, _ in model.holders} - model.known)):
            column = rng.choice(new)
            self.contents += 1
            index(pool, column, content=self.contents)
            model.known.add(column)
        elif kind == "forget" and model.known and rng.random() < 0.3:
            column = rng.choice(sorted(model.known))
            pool.forget(column)
            model.forget(column)
        elif kind == "promise":
            pool.promised = rng.randrange(model.sizes[0] - model.used + 1) if rng.random() < 0.5 else 0

    def compare(self) -> None:
        pool, model = self.pool, self.model
        total, num_columns, _, _ = model.sizes
        assert self.told == model.told
        assert pool.evictions == model.evictions
        assert pool.counts == BlockCounts(total, model.used, total - model.used - model.free, model.free)
        assert pool.available == total - model.used - pool.promised
        columns = range(1, num_columns + 1)
        assert [pool.owners(column) for column in columns] == [model.owners(column) for column in columns]
        assert [pool.needs(column) for column in columns] == [model.needs(column) for column in columns]
        assert {column for column in columns if pool.has_frames(column)} == model.framed
        assert pool.check() == []


@pytest.mark.parametrize("seed", range(20))
def test_a_random_walk_agrees_with_a_plain_model(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(150):
        walk.step()
        walk.compare()
