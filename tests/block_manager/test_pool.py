"""BlockPool: used + cached + free = total; what is taken, shared, released and evicted when."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from octavo.block_manager.pool import BlockCounts, BlockPool


def cached_pool(num_blocks: int = 4) -> BlockPool:
    """A pool whose blocks were all used once, in ascending order, and are all cached; 1 is the oldest."""
    pool = BlockPool(num_blocks, 2)
    for block in [pool.take() for _ in range(num_blocks)]:
        index(pool, block)
        pool.release((block,))
    return pool


def index(pool: BlockPool, block: int) -> None:
    pool.cache.insert(block, -1, np.array([block, block], dtype=np.int32).tobytes())


def test_a_new_pool_is_free() -> None:
    pool = BlockPool(4, 2)
    assert pool.counts == BlockCounts(total=4, used=0, cached=0, free=4)
    assert pool.available == 4
    assert pool.check() == []


def test_a_taken_block_has_one_owner() -> None:
    pool = BlockPool(4, 2)
    block = pool.take()
    assert block != 0
    assert pool.owners(block) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=0, free=3)


def test_a_shared_block_is_used_until_its_last_owner_leaves() -> None:
    pool = BlockPool(4, 2)
    block = pool.take()
    pool.share(block)
    assert (pool.owners(block), pool.shared, pool.saved) == (2, 1, 1)
    pool.release((block,))
    assert (pool.owners(block), pool.shared, pool.saved) == (1, 0, 0)
    assert pool.counts.used == 1
    pool.release((block,))
    assert pool.counts == BlockCounts(total=4, used=0, cached=0, free=4)
    assert pool.check() == []


def test_a_third_owner_does_not_make_a_second_shared_block() -> None:
    pool = BlockPool(4, 2)
    block = pool.take()
    pool.share(block)
    pool.share(block)
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
    pool.share(2)
    assert pool.owners(2) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=3, free=0)
    assert 2 in pool.cache
    assert pool.check() == []


def test_the_least_recently_used_content_is_evicted_first() -> None:
    pool = cached_pool()
    pool.share(1)
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
    pool = BlockPool(4, 2)
    index(pool, cached := pool.take())
    pool.release((cached,))
    plain = pool.take()
    pool.release((plain,))
    assert [pool.take() for _ in range(3)].count(cached) == 0
    assert pool.evictions == 0
    assert pool.take() == cached
    assert pool.evictions == 1


def test_blocks_are_given_up_in_the_order_of_their_release() -> None:
    pool = BlockPool(3, 2)
    head, tail, _ = (pool.take() for _ in range(3))
    index(pool, head)
    index(pool, tail)
    pool.release((tail, head))
    assert [pool.take(), pool.take()] == [tail, head]


def test_forgetting_an_idle_block_makes_it_the_next_one_taken() -> None:
    pool = cached_pool()
    pool.forget(3)
    assert pool.counts == BlockCounts(total=4, used=0, cached=3, free=1)
    assert pool.check() == []
    assert pool.take() == 3
    assert pool.evictions == 0


def test_forgetting_a_used_block_leaves_its_owner_alone() -> None:
    pool = cached_pool()
    pool.share(3)
    pool.forget(3)
    assert pool.owners(3) == 1
    assert pool.counts == BlockCounts(total=4, used=1, cached=3, free=0)
    pool.release((3,))
    assert pool.counts == BlockCounts(total=4, used=0, cached=3, free=1)


def test_all_idle_content_can_be_forgotten_at_once() -> None:
    pool = cached_pool()
    pool.share(2)
    assert pool.forget_idle() == 3
    assert pool.counts == BlockCounts(total=4, used=1, cached=0, free=3)
    assert 2 in pool.cache
    assert pool.check() == []


def test_losing_an_owner_that_was_never_there_is_our_bug() -> None:
    pool = BlockPool(4, 2)
    with pytest.raises(AssertionError, match="block 3 has no owner to lose"):
        pool.release((3,))


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("_idle_cached", "counts 1 cached, finds 0"),
        ("_shared", "counts 1 shared, finds 0"),
        ("_references", "counts 1 references, finds 0"),
    ],
)
def test_check_names_a_counter_that_drifted(field: str, problem: str) -> None:
    pool = BlockPool(4, 2)
    setattr(pool, field, 1)
    assert pool.check() == [problem]


def test_check_names_a_block_that_is_owned_and_free() -> None:
    pool = BlockPool(4, 2)
    pool._owners[2] = 1
    pool._references = 1
    assert pool.check() == ["block 2 has 1 owners and is free"]


def test_check_notices_that_the_null_block_is_owned() -> None:
    pool = BlockPool(4, 2)
    pool._owners[0] = pool._references = 1
    assert pool.check() == ["the null block is owned, free or cached"]


def test_bookkeeping_costs_at_most_64_bytes_a_block() -> None:
    for num_blocks in (1, 1000, 2**16, 2**16 + 1):
        assert BlockPool(num_blocks, 16).nbytes <= 64 * (num_blocks + 1)


def test_no_python_object_exists_per_block() -> None:
    def objects_of(num_blocks: int) -> int:
        gc.collect()
        before = len(gc.get_objects())
        pool = BlockPool(num_blocks, 2)
        for block in [pool.take() for _ in range(num_blocks)]:
            index(pool, block)
            pool.release((block,))
        gc.collect()
        return len(gc.get_objects()) - before

    objects_of(8)  # whatever is made once
    assert abs(objects_of(4096) - objects_of(8)) <= 8
