"""BlockPool: used + cached + free = total; what is taken, shared, released and evicted when."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
from blocks import Tokens, count_operations, insert_run, interpret
from factories import forget_idle

from octavo.block_manager.loops import SPAN_BOUNDS
from octavo.block_manager.pool import BlockAge, BlockCounts, BlockPool
from octavo.block_manager.prefix_cache import PrefixCache

Pool = BlockPool[PrefixCache]

BLOCK_SIZE = 2


def make_pool(num_blocks: int = 4, on_evict: Callable[[Tokens], None] | None = None) -> Pool:
    return BlockPool(num_blocks, PrefixCache(num_blocks, BLOCK_SIZE), on_evict)


def cached_pool(num_blocks: int = 4, on_evict: Callable[[Tokens], None] | None = None) -> Pool:
    """A pool whose blocks were all used once, in ascending order, and are all cached; 1 is the oldest."""
    pool = make_pool(num_blocks, on_evict)
    for block in pool.take_many(num_blocks):
        index(pool, block)
        pool.release((block,))
    return pool


def index(pool: Pool, block: int) -> None:
    assert insert_run(pool.cache, [block], -1, content_of(block)) == (1, 0)


def content_of(block: int) -> Tokens:
    return np.array([block, block], dtype=np.int32)


def test_a_new_pool_is_free() -> None:
    pool = make_pool(4)
    assert pool.counts == BlockCounts(total=4, used=0, cached=0, free=4)
    assert pool.available == 4
    assert pool.check() == []


def test_a_taken_block_has_one_owner() -> None:
    pool = make_pool(4)
    block = pool.take()
    assert block != 0
    assert pool.owners(block) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=0, free=3)


def test_a_shared_block_is_used_until_its_last_owner_leaves() -> None:
    pool = make_pool(4)
    block = pool.take()
    pool.share((block,))
    assert (pool.owners(block), pool.shared, pool.saved) == (2, 1, 1)
    pool.release((block,))
    assert (pool.owners(block), pool.shared, pool.saved) == (1, 0, 0)
    assert pool.counts.used == 1
    pool.release((block,))
    assert pool.counts == BlockCounts(total=4, used=0, cached=0, free=4)
    assert pool.check() == []


def test_a_third_owner_does_not_make_a_second_shared_block() -> None:
    pool = make_pool(4)
    block = pool.take()
    pool.share((block,))
    pool.share((block,))
    assert (pool.shared, pool.saved) == (1, 2)
    pool.release((block,))
    assert (pool.shared, pool.saved) == (1, 1)
    assert pool.check() == []


def test_an_indexed_block_is_cached_when_it_is_released() -> None:
    pool = cached_pool()
    assert pool.counts == BlockCounts(total=4, used=0, cached=4, free=0)
    assert pool.available == 4
    assert pool.check() == []


def test_sharing_a_cached_block_takes_it_back_into_use() -> None:
    pool = cached_pool()
    pool.share((2,))
    assert pool.owners(2) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=3, free=0)
    assert 2 in pool.cache
    assert pool.check() == []


def test_the_least_recently_used_content_is_evicted_first() -> None:
    pool = cached_pool()
    pool.share((1,))
    pool.release((1,))
    assert [pool.take() for _ in range(4)] == [2, 3, 4, 1]
    assert pool.evictions == 4


def test_an_evicted_block_is_no_longer_indexed() -> None:
    pool = cached_pool()
    block = pool.take()
    assert block not in pool.cache
    assert pool.counts == BlockCounts(total=4, used=1, cached=3, free=0)
    assert pool.check() == []


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = make_pool(4)
    index(pool, cached := pool.take())
    pool.release((cached,))
    plain = pool.take()
    pool.release((plain,))
    assert [pool.take() for _ in range(3)].count(cached) == 0
    assert pool.evictions == 0
    assert pool.take() == cached
    assert pool.evictions == 1


def test_a_sequences_tail_is_given_up_before_its_head() -> None:
    pool = make_pool(3)
    head, tail, _ = (pool.take() for _ in range(3))
    index(pool, head)
    index(pool, tail)
    pool.release((head, tail))
    assert [pool.take(), pool.take()] == [tail, head]


def test_releasing_tells_how_many_blocks_have_no_owner_left() -> None:
    pool = make_pool(4)
    shared, own, cached, _ = pool.take_many(4)
    pool.share((shared,))
    index(pool, cached)
    assert pool.release((shared, own, cached)) == 2
    assert pool.release((shared,)) == 1
    assert pool.release(()) == 0


def test_many_blocks_are_taken_in_the_order_of_the_list() -> None:
    pool = cached_pool()
    assert pool.take_many(3).tolist() == [1, 2, 3]
    assert pool.evictions == 3
    assert pool.take_many(0).tolist() == []
    assert pool.counts == BlockCounts(total=4, used=3, cached=1, free=0)
    assert pool.check() == []


def test_whoever_is_told_of_an_eviction_can_still_ask_what_the_block_held() -> None:
    told = []

    def ask(blocks: list[int]) -> None:
        told.extend((block, pool.cache.tokens_of(block), block in pool.cache) for block in blocks)

    pool = cached_pool(on_evict=ask)
    pool.take_many(2)
    assert told == [(1, content_of(1).tobytes(), True), (2, content_of(2).tobytes(), True)]
    assert 1 not in pool.cache


def test_nobody_is_told_of_blocks_that_held_nothing_or_were_forgotten() -> None:
    told: list[list[int]] = []
    pool = cached_pool(on_evict=told.append)
    pool.forget(1)
    pool.release(pool.take_many(1))
    assert told == []


def test_a_touched_block_is_the_last_one_to_be_given_up() -> None:
    pool = cached_pool()
    pool.touch(2)
    assert pool.take_many(4).tolist() == [1, 3, 4, 2]


def test_touching_a_used_block_leaves_it_where_it_is() -> None:
    pool = cached_pool()
    pool.share((2,))
    pool.touch(2)
    assert pool.owners(2) == 1
    assert pool.take_many(3).tolist() == [1, 3, 4]
    assert pool.check() == []


def test_reference_counts_are_the_owners_of_all_blocks_as_they_change() -> None:
    pool = make_pool(3)
    counts = pool.reference_counts
    first, second = pool.take_many(2)
    pool.share((second,))
    assert counts.tolist() == [0, 1, 2, 0]
    assert [pool.owners(block) for block in range(4)] == counts.tolist()
    assert first != second


def test_forgetting_an_idle_block_makes_it_the_next_one_taken() -> None:
    pool = cached_pool()
    pool.forget(3)
    assert pool.counts == BlockCounts(total=4, used=0, cached=3, free=1)
    assert pool.check() == []
    assert pool.take() == 3
    assert pool.evictions == 0


def test_forgetting_a_used_block_leaves_its_owner_alone() -> None:
    pool = cached_pool()
    pool.share((3,))
    pool.forget(3)
    assert pool.owners(3) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=3, free=0)
    pool.release((3,))
    assert pool.counts == BlockCounts(total=4, used=0, cached=3, free=1)


def test_how_old_a_block_is_and_how_long_blocks_lived() -> None:
    now = 100.0
    pool = BlockPool(2, PrefixCache(2, BLOCK_SIZE), clock=lambda: now)
    block = pool.take()
    index(pool, block)
    now = 103.0
    pool.release((block,))
    assert pool.age_of(block) == BlockAge(3.0, 0.0, 0)
    now = 105.0
    pool.share((block,))
    pool.share((block,))
    assert pool.age_of(block) == BlockAge(5.0, None, 2)
    pool.release((block, block))
    now = 109.0
    assert pool.age_of(block) == BlockAge(9.0, 4.0, 2)
    pool.release((pool.take(),))  # the other one, which held nothing, for no time at all
    assert pool.age_of(3 - block) == BlockAge(None, None, 0)
    pool.take_many(2)  # evicts
    assert pool.age_of(block) == BlockAge(0.0, None, 0)
    spans = pool.span_counts()
    assert {name: (sum(counts), total) for name, (counts, total) in spans.items()} == {
        "block_lifetime": (2, 9.0),
        "block_idle": (1, 4.0),
        "block_reuse_gap": (1, 2.0),
    }
    assert spans["block_idle"][0][SPAN_BOUNDS.index(5_000)] == 1
    assert spans["block_reuse_gap"][0][SPAN_BOUNDS.index(5_000)] == 1


def test_ages_outlast_the_wrapping_of_milliseconds() -> None:
    now = 2**32 / 1000 - 1.0
    pool = BlockPool(1, PrefixCache(1, BLOCK_SIZE), clock=lambda: now)
    block = pool.take()
    now += 3.0
    assert pool.age_of(block).taken == pytest.approx(3.0, abs=0.002)


def test_all_idle_content_can_be_forgotten_at_once() -> None:
    pool = cached_pool()
    pool.share((2,))
    assert forget_idle(pool) == 3
    assert pool.counts == BlockCounts(total=4, used=1, cached=0, free=3)
    assert 2 in pool.cache
    assert pool.check() == []


@pytest.mark.parametrize("block", [0, 3])
def test_losing_an_owner_that_was_never_there_is_our_bug(block: int) -> None:
    pool = make_pool(4)
    with pytest.raises(AssertionError, match=f"block {block} has no owner to lose"):
        pool.release((block,))


@pytest.mark.parametrize("block", [0, 3])
def test_sharing_what_is_free_is_our_bug(block: int) -> None:
    with pytest.raises(AssertionError, match=f"block {block} is free and holds nothing to share"):
        make_pool(4).share((block,))


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("_idle_cached", "counts 1 cached, finds 0"),
        ("_shared", "counts 1 shared, finds 0"),
        ("_references", "counts 1 references, finds 0"),
    ],
)
def test_check_names_a_counter_that_drifted(field: str, problem: str) -> None:
    pool = make_pool(4)
    setattr(pool, field, 1)
    assert pool.check() == [problem]


def test_check_names_a_block_that_is_owned_and_free() -> None:
    pool = make_pool(4)
    pool.reference_counts[2] = 1
    pool._references = 1
    assert pool.check() == ["block 2 has 1 owners and is free"]


def test_check_notices_that_the_null_block_is_owned() -> None:
    pool = make_pool(4)
    pool.reference_counts[0] = pool._references = 1
    assert pool.check() == ["the null block is owned, free or cached"]


def operations(num_blocks: int, work: Callable[[Pool], object]) -> int:
    """Array elements that some work reads and writes in a pool whose blocks are all cached."""
    # Every block's hash is its number: however large the pool, no two share a bucket.
    cache = PrefixCache(num_blocks, BLOCK_SIZE)
    pool = BlockPool(num_blocks, cache)
    for block in pool.take_many(num_blocks):
        index(pool, block)
        pool.release((block,))
    count = count_operations(pool, pool._free, pool.cache)
    work(pool)
    return count()


def share_and_release(pool: Pool) -> None:
    pool.share((7,))
    pool.release((7,))


@pytest.mark.parametrize(
    "work",
    [
        lambda pool: pool.take_many(3),
        lambda pool: (pool.release(pool.take_many(3)), pool.available, pool.counts),
        lambda pool: pool.touch(7),
        lambda pool: pool.forget(7),
        lambda pool: pool.cache.find_run(-1, content_of(7), 1),
        lambda pool: insert_run(pool.cache, pool.take_many(2).tolist(), -1, np.array([1, 1, 2, 2], dtype=np.int32)),
        share_and_release,
    ],
    ids=["take", "take and release", "touch", "forget", "find", "take and index", "share and release"],
)
def test_what_a_block_costs_does_not_depend_on_the_pools_size(
    work: Callable[[Pool], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(monkeypatch)
    assert operations(16, work) == operations(8_192, work) > 0


def test_bookkeeping_costs_at_most_64_bytes_a_block() -> None:
    for num_blocks in (1, 1000, 2**16, 2**16 + 1):
        assert BlockPool(num_blocks, PrefixCache(num_blocks, 16)).nbytes <= 64 * (num_blocks + 1)


def test_no_python_object_exists_per_block() -> None:
    def objects_of(num_blocks: int) -> int:
        gc.collect()
        before = len(gc.get_objects())
        pool = make_pool(num_blocks)
        for block in [pool.take() for _ in range(num_blocks)]:
            index(pool, block)
            pool.release((block,))
        gc.collect()
        return len(gc.get_objects()) - before

    objects_of(8)  # whatever is made once
    assert abs(objects_of(4096) - objects_of(8)) <= 8
