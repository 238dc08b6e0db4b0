"""BlockManager: prefix sharing, reservation, growth, fork, copy-on-write, deduplication, retraction.

Also quotas, explained misses, pins and invalidation. What it does with lower tiers is in ``test_manager_tiers``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blocks import SIZE, Tokens, count_operations, evict, interpret, start, tokens
from factories import forget_idle, make_manager

from octavo.block_manager.manager import BlockCopy, BlockManager
from octavo.block_manager.misses import EvictionHistory, Miss, MissReason
from octavo.block_manager.pins import Pin
from octavo.block_manager.tiers import Tier


def blocks(manager: BlockManager, row: int) -> list[int]:
    return manager.tables.blocks(row)


@pytest.fixture
def manager() -> BlockManager:
    return make_manager(num_blocks=8, block_size=SIZE, num_rows=4)


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_tokens_need_whole_blocks(manager: BlockManager, count: int, expected: int) -> None:
    assert manager.columns_for(count) == expected


@pytest.mark.parametrize(("columns", "largest"), [(8, 32), (3, 12), (20, 32)])
def test_one_sequence_can_have_what_both_pool_and_table_hold(columns: int, largest: int) -> None:
    manager = BlockManager(num_blocks=8, block_size=SIZE, num_rows=1, max_blocks_per_row=columns)
    assert manager.max_tokens() == largest


# ── prefix matching ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_cache_matches_nothing(manager: BlockManager) -> None:
    match = manager.match_prefix(tokens(9))
    assert (match.blocks, match.idle) == ([], 0)


def test_a_match_is_the_longest_run_of_whole_equal_blocks(manager: BlockManager) -> None:
    start(manager, 0, tokens(12))
    other = np.concatenate((tokens(8), tokens(6, start=40)))
    assert manager.match_prefix(other).blocks == blocks(manager, 0)[:2]
    other[0] = 50
    assert manager.match_prefix(other).blocks == []


@pytest.mark.parametrize(("length", "matched"), [(4, 0), (5, 1), (8, 1), (9, 2)])
def test_a_match_leaves_at_least_one_token_to_compute(manager: BlockManager, length: int, matched: int) -> None:
    start(manager, 0, tokens(8))
    assert len(manager.match_prefix(tokens(length)).blocks) == matched


def test_a_partial_block_is_never_matched(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    assert manager.match_prefix(tokens(12)).blocks == blocks(manager, 0)[:1]


def test_another_salt_matches_nothing(manager: BlockManager) -> None:
    start(manager, 0, tokens(8), salt="a")
    assert manager.match_prefix(tokens(12), "b").blocks == []
    assert manager.match_prefix(tokens(12)).blocks == []
    assert len(manager.match_prefix(tokens(12), "a").blocks) == 2


def test_matching_takes_nothing(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    before = manager.pool.counts
    manager.match_prefix(tokens(12))
    assert manager.pool.counts == before


def test_a_match_counts_the_blocks_that_nobody_owns(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    assert manager.match_prefix(tokens(12)).idle == 0
    manager.release(0)
    assert manager.match_prefix(tokens(12)).idle == 2


def test_without_prefix_caching_nothing_is_published_or_matched() -> None:
    manager = make_manager(num_blocks=8, block_size=SIZE, caching=False)
    start(manager, 0, tokens(8))
    assert manager.match_prefix(tokens(12)).blocks == []
    manager.release(0)
    assert manager.pool.counts.cached == 0
    assert manager.prefix_queries == 0


def test_colliding_hashes_cost_misses_and_never_wrong_hits() -> None:
    manager = make_manager(num_blocks=8, block_size=SIZE, hash_mask=0)
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(8, start=20))
    assert manager.match_prefix(tokens(9)).blocks == blocks(manager, 0)
    assert manager.match_prefix(tokens(9, start=20)).blocks == blocks(manager, 1)
    assert manager.match_prefix(tokens(9, start=40)).blocks == []
    assert manager.check_integrity() == []


# ── reservation ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_length_is_reserved_at_once(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(10)), tokens(10))
    assert len(blocks(manager, 0)) == 3
    assert manager.pool.counts.used == 3


def test_matched_blocks_are_shared_and_the_rest_is_new(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    start(manager, 1, tokens(10))
    first, second = blocks(manager, 0), blocks(manager, 1)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert [manager.pool.owners(block) for block in first] == [2, 2, 1]
    assert manager.check_integrity() == []


def test_prefix_hits_and_queries_count_tokens(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    start(manager, 1, tokens(10))
    assert (manager.prefix_queries, manager.prefix_hits) == (20, {Tier.DEVICE: 8})


def test_shortfall_is_the_number_of_blocks_that_are_missing(manager: BlockManager) -> None:
    nothing = manager.match_prefix(tokens(1))
    assert manager.shortfall(nothing, 8 * SIZE) == 0
    assert manager.shortfall(nothing, 8 * SIZE + 1) == 1
    assert manager.shortfall(nothing, 8 * SIZE, keep_free=2) == 2


def test_sharing_idle_blocks_uses_up_available_ones(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.release(0)
    match = manager.match_prefix(tokens(32))
    assert (len(match.blocks), match.idle) == (2, 2)
    assert manager.shortfall(match, 8 * SIZE) == 0
    assert manager.shortfall(match, 8 * SIZE, keep_free=1) == 1


def test_sharing_used_blocks_costs_nothing(manager: BlockManager) -> None:
    start(manager, 0, tokens(24))
    match = manager.match_prefix(tokens(32))
    assert manager.pool.available == 2
    assert manager.shortfall(match, 32) == 0
    assert manager.shortfall(match, 33) == 1


def test_taking_new_blocks_never_evicts_the_matched_ones(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.release(0)
    match = manager.match_prefix(tokens(32))
    manager.reserve(0, match, tokens(32))
    assert blocks(manager, 0)[:2] == match.blocks
    assert len(set(blocks(manager, 0))) == 8
    assert manager.check_integrity() == []


def test_a_row_in_use_cannot_be_reserved_again(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    with pytest.raises(AssertionError, match="row 0 is in use"):
        manager.reserve(0, manager.match_prefix(tokens(4)), tokens(4))


def test_growing_appends_one_block(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    manager.grow([0])
    assert len(blocks(manager, 0)) == 2
    assert manager.pool.counts.used == 2


# ── release and eviction ────────────────────────────────────────────────────────────────────────────────────


def test_a_released_rows_full_blocks_stay_cached(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    manager.release(0)
    assert blocks(manager, 0) == []
    assert manager.pool.counts[1:] == (0, 2, 6)
    assert len(manager.match_prefix(tokens(12)).blocks) == 2
    assert manager.check_integrity() == []


def test_tails_are_given_up_before_heads() -> None:
    manager = make_manager(num_blocks=3, block_size=SIZE)
    start(manager, 0, tokens(12))
    manager.release(0)
    for left in (2, 1, 0):
        manager.pool.take()
        assert len(manager.match_prefix(tokens(13)).blocks) == left


def test_what_a_sequence_costs_does_not_depend_on_the_pools_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def operations(num_blocks: int) -> int:
        manager = make_manager(num_blocks, SIZE)
        count = count_operations(manager.pool, manager.pool._free, manager.cache)
        for row in (0, 1):
            start(manager, row, tokens(14))
            manager.grow([row])
        manager.fork(0, 2)
        manager.make_writable(2, 13)
        for row in (0, 1, 2):
            manager.release(row)
        return count()

    interpret(monkeypatch)
    assert operations(16) == operations(4_096) > 0


# ── publishing ──────────────────────────────────────────────────────────────────────────────────────────────


def test_only_blocks_that_are_full_are_published(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(12)), tokens(12))
    for computed, published in ((3, 0), (4, 1), (7, 1), (12, 3)):
        manager.publish(0, tokens(12), computed)
        assert len(manager.cache) == published
    assert manager.check_integrity() == []


def test_a_second_row_with_equal_content_keeps_its_block_private_during_the_step(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(8)), tokens(8))
    manager.publish(0, tokens(8), 8)
    manager.publish(1, tokens(8), 8)
    assert not set(blocks(manager, 0)) & set(blocks(manager, 1))
    assert manager.rows_with_duplicates == {1}


def test_duplicates_are_merged_after_the_step(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(10)), tokens(10))
    for row in (0, 1):
        manager.publish(row, tokens(10), 10)
    manager.merge_duplicates(1, tokens(10), 10)
    assert blocks(manager, 0)[:2] == blocks(manager, 1)[:2]
    assert blocks(manager, 0)[2] != blocks(manager, 1)[2]
    assert manager.deduplicated == 2
    assert manager.pool.counts.used == 4
    assert manager.rows_with_duplicates == frozenset()
    assert manager.check_integrity() == []


def test_what_follows_a_merged_block_is_published_under_its_twin(manager: BlockManager) -> None:
    prompts = [tokens(8), np.concatenate((tokens(4), tokens(4, start=40)))]
    for row, prompt in enumerate(prompts):
        manager.reserve(row, manager.match_prefix(prompt), prompt)
    for row, prompt in enumerate(prompts):
        manager.publish(row, prompt, 8)
    assert len(manager.cache) == 2
    manager.merge_duplicates(1, prompts[1], 8)
    assert len(manager.cache) == 3
    assert manager.match_prefix(np.append(prompts[1], [1]).astype(np.int32)).blocks == blocks(manager, 1)
    assert blocks(manager, 0)[0] == blocks(manager, 1)[0]
    assert manager.check_integrity() == []


def test_a_duplicate_whose_twin_is_gone_takes_its_place(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(4)), tokens(4))
        manager.publish(row, tokens(4), 4)
    manager.release(0)
    forget_idle(manager.pool)
    manager.merge_duplicates(1, tokens(4), 4)
    assert manager.match_prefix(tokens(5)).blocks == blocks(manager, 1)
    assert manager.deduplicated == 0


def test_merging_a_row_without_duplicates_changes_nothing(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    before = blocks(manager, 0)
    manager.merge_duplicates(0, tokens(8), 8)
    assert blocks(manager, 0) == before


# ── retraction ──────────────────────────────────────────────────────────────────────────────────────────────


def test_retracting_takes_back_what_the_failed_step_promised(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(12)), tokens(12))
    manager.publish(0, tokens(12), 5)
    manager.publish(0, tokens(12), 12)
    manager.retract(0, 5)
    assert manager.match_prefix(tokens(13)).blocks == blocks(manager, 0)[:1]
    assert manager.check_integrity() == []
    manager.publish(0, tokens(12), 12)
    assert len(manager.match_prefix(tokens(13)).blocks) == 3


def test_retracting_reaches_those_who_shared_the_promise(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(12))
    assert blocks(manager, 1)[:2] == blocks(manager, 0)
    for row, computed in ((0, 0), (1, 8)):
        manager.retract(row, computed)
    manager.release(1)
    manager.release(0)
    assert manager.pool.counts[1:] == (0, 0, 8)
    assert manager.check_integrity() == []


def test_retracting_forgets_that_a_row_had_duplicates(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(4)), tokens(4))
        manager.publish(row, tokens(4), 4)
    manager.retract(1, 0)
    assert manager.rows_with_duplicates == frozenset()


def test_a_released_row_has_no_duplicates_left(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(4)), tokens(4))
        manager.publish(row, tokens(4), 4)
    manager.release(1)
    assert manager.rows_with_duplicates == frozenset()


# ── fork and copy-on-write ──────────────────────────────────────────────────────────────────────────────────


def test_a_fork_shares_every_block_the_partial_one_included(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    manager.fork(0, 1)
    assert blocks(manager, 0) == blocks(manager, 1)
    assert manager.pool.counts.used == 2
    assert manager.pool.saved == 2
    assert manager.check_integrity() == []


def test_a_fork_needs_an_empty_row(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    start(manager, 1, tokens(4, start=20))
    with pytest.raises(AssertionError, match="row 1 is in use"):
        manager.fork(0, 1)


def test_the_first_writer_copies_and_the_last_writes_in_place(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    manager.fork(0, 1)
    shared = blocks(manager, 0)[1]
    (copy,) = manager.make_writable(0, 6)
    assert copy == BlockCopy(source=shared, destination=blocks(manager, 0)[1])
    assert copy.destination != shared
    assert manager.make_writable(1, 6) == []
    assert blocks(manager, 1)[1] == shared
    assert manager.copies == 1
    assert manager.check_integrity() == []


def test_a_block_of_ones_own_needs_no_copy(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    assert manager.make_writable(0, 6) == []


def test_k_writers_of_one_block_need_one_copy_less(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    for row in (1, 2):
        manager.fork(0, row)
    assert manager.copies_needed([(0, 6), (1, 6), (2, 6)]) == 2


def test_a_writer_whose_sharers_do_not_write_needs_a_copy(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    for row in (1, 2):
        manager.fork(0, row)
    assert manager.copies_needed([(0, 6)]) == 1
    assert manager.copies_needed([(0, 6), (1, 6)]) == 2
    assert manager.copies_needed([]) == 0


def test_the_copies_needed_are_the_blocks_that_are_taken(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    start(manager, 1, tokens(6, start=20))
    manager.fork(0, 2)
    manager.fork(1, 3)
    writes = [(row, 6) for row in range(4)]
    needed, before = manager.copies_needed(writes), manager.pool.available
    for row, position in writes:
        manager.make_writable(row, position)
    assert before - manager.pool.available == needed == 2
    assert manager.check_integrity() == []


def test_siblings_that_write_the_same_content_are_merged(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    manager.fork(0, 1)
    for row in (0, 1):
        manager.make_writable(row, 6)
    for row in (0, 1):
        manager.publish(row, tokens(8), 8)
    manager.merge_duplicates(1, tokens(8), 8)
    assert blocks(manager, 0) == blocks(manager, 1)
    assert manager.check_integrity() == []


def test_a_fork_inherits_what_its_source_still_has_to_merge(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(12)), tokens(12))
    manager.publish(0, tokens(4), 4)
    manager.publish(1, tokens(12), 12)
    manager.fork(1, 2)
    for row in (1, 2):
        manager.merge_duplicates(row, tokens(12), 12)
    assert blocks(manager, 1) == blocks(manager, 2)
    assert blocks(manager, 1)[0] == blocks(manager, 0)[0]
    assert manager.check_integrity() == []


def test_a_fork_keeps_its_sources_namespace(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(3), "a"), tokens(3))
    manager.fork(0, 1)
    manager.release(0)
    manager.publish(1, tokens(4), 4)
    assert manager.match_prefix(tokens(5), "a").blocks == blocks(manager, 1)
    assert manager.match_prefix(tokens(5)).blocks == []


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────


def two_tenants(floor: int = 0, ceiling: int | None = None, **limits: Any) -> BlockManager:
    """A manager whose tenant 1 has a floor and a ceiling."""
    return make_manager(8, SIZE, floors=[0, floor], ceilings=[None, ceiling], **limits)


def test_blocks_are_charged_to_the_tenant_that_takes_them() -> None:
    manager = two_tenants()
    start(manager, 0, tokens(10), tenant=1)
    start(manager, 1, tokens(3), tenant=0)
    assert manager.quota.used == [1, 3]
    manager.grow([0])
    assert manager.quota.used == [1, 4]
    manager.release(0)
    assert manager.quota.used == [1, 0]
    assert manager.check_integrity() == []


def test_tenants_never_share_blocks() -> None:
    manager = two_tenants()
    start(manager, 0, tokens(8), tenant=0)
    assert start(manager, 1, tokens(9), tenant=1).blocks == []
    assert manager.quota.used == [2, 3]


def test_sharing_used_blocks_is_charged_to_nobody() -> None:
    manager = two_tenants()
    for row in (0, 1):
        start(manager, row, tokens(10), tenant=1)
    assert manager.quota.used == [0, 4]
    manager.release(0)
    assert manager.quota.used == [0, 3]
    manager.release(1)
    assert manager.quota.used == [0, 0]


def test_sharing_idle_blocks_is_charged_like_taking_them() -> None:
    manager = two_tenants()
    start(manager, 0, tokens(8), tenant=1)
    manager.release(0)
    start(manager, 0, tokens(9), tenant=1)
    assert manager.quota.used == [0, 3]
    assert manager.check_integrity() == []


def test_a_fork_is_charged_nothing_and_its_copy_one_block() -> None:
    manager = two_tenants()
    start(manager, 0, tokens(6), tenant=1)
    manager.fork(0, 1)
    assert manager.quota.used == [0, 2]
    assert len(manager.make_writable(1, 6)) == 1
    assert manager.quota.used == [0, 3]
    assert manager.make_writable(0, 6) == []
    assert manager.quota.used == [0, 3]
    manager.grow([1])
    manager.release(1)
    assert manager.quota.used == [0, 2]
    assert manager.check_integrity() == []


def test_merging_duplicates_gives_blocks_back() -> None:
    manager = two_tenants()
    matches = [manager.match_prefix(tokens(8), tenant=1) for _ in range(2)]
    for row, match in enumerate(matches):
        manager.reserve(row, match, tokens(8), 1)
        manager.publish(row, tokens(8), 8)
    assert manager.quota.used == [0, 4]
    manager.merge_duplicates(1, tokens(8), 8)
    assert manager.quota.used == [0, 2]


def test_merging_with_a_twin_that_nobody_owns_takes_as_much_as_it_gives_back() -> None:
    manager = two_tenants()
    matches = [manager.match_prefix(tokens(8), tenant=1) for _ in range(2)]
    for row, match in enumerate(matches):
        manager.reserve(row, match, tokens(8), 1)
        manager.publish(row, tokens(8), 8)
    manager.release(0)
    manager.merge_duplicates(1, tokens(8), 8)
    assert manager.quota.used == [0, 2]
    assert manager.check_integrity() == []


def test_the_room_of_a_tenant_is_what_its_quota_leaves() -> None:
    manager = two_tenants(floor=2, ceiling=5)
    assert [manager.room(tenant) for tenant in (0, 1)] == [6, 5]
    start(manager, 0, tokens(4), tenant=1)
    assert [manager.room(tenant) for tenant in (0, 1)] == [6, 4]


def test_one_sequence_can_have_what_its_tenant_can() -> None:
    manager = two_tenants(floor=2, ceiling=5)
    assert [manager.max_tokens(tenant) for tenant in (0, 1)] == [6 * SIZE, 5 * SIZE]


@pytest.mark.parametrize(("tenant", "blocks", "missing"), [(0, 6, 0), (0, 7, 1), (1, 5, 0), (1, 6, 1), (1, 8, 3)])
def test_a_shortfall_respects_floors_and_ceilings(tenant: int, blocks: int, missing: int) -> None:
    manager = two_tenants(floor=2, ceiling=5)
    nothing = manager.match_prefix(tokens(1), tenant=tenant)
    assert manager.shortfall(nothing, blocks * SIZE, tenant=tenant) == missing


@pytest.mark.parametrize("ceiling", [None, 7])
def test_a_shortfall_counts_all_that_has_to_stay_free(ceiling: int | None) -> None:
    manager = two_tenants(ceiling=ceiling)
    start(manager, 0, tokens(6 * SIZE))
    nothing = manager.match_prefix(tokens(1), tenant=1)
    assert [manager.shortfall(nothing, SIZE, keep_free, tenant=1) for keep_free in (0, 1, 2, 5)] == [0, 0, 1, 4]


# ── misses are explained ────────────────────────────────────────────────────────────────────────────────────


def explain(manager: BlockManager, prompt: Tokens, salt: str = "", tenant: int = 0) -> Miss:
    return manager.explain_miss(prompt, manager.match_prefix(prompt, salt, tenant))


@pytest.mark.parametrize("length", [1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1])
def test_where_the_rest_fills_no_block_or_must_be_computed_nothing_was_missed(
    manager: BlockManager, length: int
) -> None:
    start(manager, 0, tokens(8))
    assert explain(manager, tokens(length)) == (MissReason.SHORTER_THAN_A_BLOCK, None)


def test_what_nobody_ever_sent_was_never_seen(manager: BlockManager) -> None:
    assert explain(manager, tokens(9)) == (MissReason.NEVER_SEEN, None)
    start(manager, 0, tokens(9))
    assert explain(manager, np.concatenate((tokens(4), tokens(5, start=40)))) == (MissReason.NEVER_SEEN, None)


def test_what_was_evicted_tells_when() -> None:
    now = 100.0
    manager = make_manager(8, SIZE, clock=lambda: now)
    start(manager, 0, tokens(8))
    manager.release(0)
    evict(manager, 7)
    now = 107.5
    assert len(manager.match_prefix(tokens(9)).blocks) == 1
    assert explain(manager, tokens(9)) == (MissReason.EVICTED, 7.5)
    assert explain(manager, np.concatenate((tokens(4), tokens(5, start=40)))) == (MissReason.NEVER_SEEN, None)


def test_the_same_tokens_under_another_salt_were_not_evicted() -> None:
    manager = make_manager(2, SIZE)
    start(manager, 0, tokens(4), "a")
    manager.release(0)
    evict(manager, 2)
    assert explain(manager, tokens(5), "a").reason is MissReason.EVICTED
    assert explain(manager, tokens(5), "b").reason is MissReason.NEVER_SEEN


@pytest.mark.parametrize(("salt", "tenant"), [("b", 0), ("", 1)])
def test_what_lies_under_another_salt_or_tenant_is_named_as_such(salt: str, tenant: int) -> None:
    manager = two_tenants()
    start(manager, 0, tokens(8), salt, tenant=tenant)
    assert explain(manager, tokens(9)) == (MissReason.OTHER_SALT, None)
    assert explain(manager, tokens(9, start=1)) == (MissReason.NEVER_SEEN, None)


def test_another_salt_explains_only_that_the_very_first_block_is_missing(manager: BlockManager) -> None:
    start(manager, 0, tokens(4), "a")
    start(manager, 1, tokens(8), "b")
    assert explain(manager, tokens(9), "a") == (MissReason.NEVER_SEEN, None)


def test_an_eviction_explains_more_than_another_salt() -> None:
    manager = make_manager(2, SIZE, clock=lambda: 0.0)
    start(manager, 0, tokens(4), "a")
    manager.release(0)
    evict(manager, 2)
    start(manager, 0, tokens(4), "b")
    assert explain(manager, tokens(5), "a") == (MissReason.EVICTED, 0.0)


def test_without_prefix_caching_that_is_the_reason() -> None:
    manager = make_manager(8, SIZE, caching=False)
    assert explain(manager, tokens(9)) == (MissReason.CACHE_OFF, None)
    assert explain(manager, tokens(3)) == (MissReason.SHORTER_THAN_A_BLOCK, None)


def test_of_two_evictions_the_later_one_is_remembered() -> None:
    now = 1.0
    history = EvictionHistory(lambda: now)
    history.add(np.array([5]))
    now = 3.0
    history.add(np.array([4, 5, -7]))
    now = 10.0
    assert history.seconds_since(5) == history.seconds_since(4) == history.seconds_since(-7) == 7.0
    assert history.seconds_since(6) is history.seconds_since(7) is None


def test_before_any_eviction_none_is_remembered() -> None:
    history = EvictionHistory(lambda: 1.0)
    assert history.seconds_since(0) is None  # what a look-up tells that missed nothing
    assert history.seconds_since(EvictionHistory.SLOTS) is None


def test_a_later_eviction_takes_an_earlier_ones_place() -> None:
    history = EvictionHistory(lambda: 0.0)
    later = 3 + EvictionHistory.SLOTS
    history.add(np.array([3, 4]))
    history.add(np.array([later]))
    assert history.seconds_since(3) is None
    assert history.seconds_since(4) == history.seconds_since(later) == 0.0


# ── pins ────────────────────────────────────────────────────────────────────────────────────────────────────


def pin(manager: BlockManager, prompt: Tokens, salt: str = "", tenant: int = 0) -> Pin:
    """Pins the full blocks of a prompt, which are all cached."""
    blocks, namespace = manager.find_pinnable(prompt, salt, tenant)
    assert len(blocks) == len(prompt) // SIZE
    return manager.pin(blocks, namespace, tenant, expires=1.0)


@pytest.mark.parametrize(("length", "pinnable"), [(3, 0), (4, 1), (7, 1), (8, 2), (12, 2)])
def test_all_full_blocks_that_are_cached_can_be_pinned(manager: BlockManager, length: int, pinnable: int) -> None:
    start(manager, 0, tokens(8))
    assert manager.find_pinnable(tokens(length))[0] == blocks(manager, 0)[:pinnable]
    assert manager.find_pinnable(tokens(length), "other salt")[0] == []
    assert manager.find_pinnable(tokens(length), tenant=1)[0] == []


def test_pinned_blocks_are_never_given_up() -> None:
    manager = make_manager(4, SIZE, pin_budget=2)
    start(manager, 0, tokens(8))
    manager.release(0)
    pin(manager, tokens(8))
    assert manager.pool.counts[1:] == (2, 0, 2)
    evict(manager, 2)
    assert len(manager.match_prefix(tokens(9)).blocks) == 2
    assert manager.check_integrity() == []


def test_a_pin_is_charged_to_its_tenant() -> None:
    manager = two_tenants(pin_budget=4)
    start(manager, 0, tokens(8), tenant=1)
    manager.release(0)
    kept = pin(manager, tokens(8), tenant=1)
    assert manager.quota.used == [0, 2]
    manager.unpin(kept)
    assert manager.quota.used == [0, 0]
    assert manager.check_integrity() == []


def test_pinning_what_is_used_is_charged_once_until_both_are_gone() -> None:
    manager = two_tenants(pin_budget=4)
    start(manager, 0, tokens(8), tenant=1)
    kept = pin(manager, tokens(8), tenant=1)
    assert manager.quota.used == [0, 2]
    manager.release(0)
    assert manager.quota.used == [0, 2]
    start(manager, 0, tokens(9), tenant=1)
    assert manager.quota.used == [0, 3]
    manager.unpin(kept)
    assert manager.quota.used == [0, 3]
    assert manager.check_integrity() == []
    manager.release(0)
    assert manager.quota.used == [0, 0]


def test_a_beginning_that_two_pins_share_is_charged_once() -> None:
    manager = make_manager(8, SIZE, pin_budget=3)
    other = np.concatenate((tokens(4), tokens(4, start=40)))
    start(manager, 0, tokens(8))
    start(manager, 1, other)
    for row in (0, 1):
        manager.release(row)
    pins = [pin(manager, tokens(8)), pin(manager, other)]
    assert (manager.pins.num_blocks, manager.quota.used) == (3, [3])
    assert manager.check_integrity() == []
    manager.unpin(pins[0])
    assert (manager.pins.num_blocks, manager.quota.used) == (2, [2])
    assert len(manager.match_prefix(tokens(9)).blocks) == 2
    assert manager.check_integrity() == []


def test_an_unpinned_prefix_is_cached_and_its_tail_given_up_first() -> None:
    manager = make_manager(3, SIZE, pin_budget=3)
    start(manager, 0, tokens(12))
    manager.release(0)
    manager.unpin(pin(manager, tokens(12)))
    for left in (2, 1, 0):
        manager.pool.take()
        assert len(manager.match_prefix(tokens(13)).blocks) == left


def test_only_what_nobody_else_owns_is_won_by_releasing_a_row() -> None:
    manager = make_manager(8, SIZE, pin_budget=1)
    start(manager, 0, tokens(12))
    start(manager, 1, tokens(3, start=40))
    pin(manager, tokens(4))
    rows = np.array([1, 0, 2], dtype=np.int32)
    assert manager.exclusive_blocks(rows).tolist() == [1, 2, 0]
    manager.fork(0, 3)
    assert manager.exclusive_blocks(rows).tolist() == [1, 0, 0]
    before = manager.pool.available
    manager.release(1)
    assert manager.pool.available == before + 1


# ── invalidation ────────────────────────────────────────────────────────────────────────────────────────────


def found(manager: BlockManager, prompt: Tokens, salt: str = "", tenant: int = 0) -> int:
    """How many of a prompt's full blocks are cached."""
    return len(manager.find_pinnable(prompt, salt, tenant)[0])


def test_all_that_is_cached_for_a_tenant_is_forgotten() -> None:
    manager = two_tenants()
    for row, (salt, tenant) in enumerate([("", 0), ("a", 0), ("", 1)]):
        start(manager, row, tokens(8), salt, tenant=tenant)
        manager.release(row)
    assert manager.invalidate_namespaces(0) == 4
    assert [found(manager, tokens(8), *where) for where in [("", 0), ("a", 0), ("", 1)]] == [0, 0, 2]
    assert manager.pool.counts[1:] == (0, 2, 6)
    assert manager.check_integrity() == []


def test_a_single_salt_can_be_forgotten() -> None:
    manager = two_tenants()
    for row, (salt, tenant) in enumerate([("", 0), ("a", 0), ("a", 1)]):
        start(manager, row, tokens(8), salt, tenant=tenant)
    assert manager.invalidate_namespaces(0, "a") == 2
    assert [found(manager, tokens(8), *where) for where in [("", 0), ("a", 0), ("a", 1)]] == [2, 0, 2]
    assert manager.invalidate_namespaces(0, "never used") == 0
    assert manager.check_integrity() == []


def test_a_running_row_goes_on_with_its_blocks_and_publishes_no_more(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    before = blocks(manager, 0)
    manager.invalidate_namespaces(0)
    assert blocks(manager, 0) == before
    manager.grow([0])
    manager.publish(0, tokens(12), 12)
    assert len(manager.cache) == 0
    assert manager.check_integrity() == []
    manager.release(0)
    assert manager.pool.counts[1:] == (0, 0, 8)


def test_what_is_computed_after_an_invalidation_is_published_again(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.invalidate_namespaces(0)
    assert start(manager, 1, tokens(8)).blocks == []
    assert not set(blocks(manager, 0)) & set(blocks(manager, 1))
    manager.release(0)
    assert start(manager, 0, tokens(9)).blocks == blocks(manager, 1)
    assert found(manager, tokens(8)) == 2
    assert manager.check_integrity() == []


def test_a_row_publishes_again_once_its_next_sequence_has_it(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.invalidate_namespaces(0)
    manager.release(0)
    start(manager, 0, tokens(8))
    assert found(manager, tokens(8)) == 2


def test_a_fork_of_an_invalidated_row_publishes_nothing_either(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    manager.invalidate_namespaces(0)
    manager.fork(0, 1)
    manager.make_writable(1, 6)
    manager.publish(1, tokens(8), 8)
    assert len(manager.cache) == 0


def test_an_invalidated_row_merges_nothing(manager: BlockManager) -> None:
    matches = [manager.match_prefix(tokens(4)) for _ in range(2)]
    for row, match in enumerate(matches):
        manager.reserve(row, match, tokens(4))
        manager.publish(row, tokens(4), 4)
    manager.invalidate_namespaces(0)
    assert manager.rows_with_duplicates == frozenset()
    manager.merge_duplicates(1, tokens(4), 4)
    assert blocks(manager, 0) != blocks(manager, 1)
    assert len(manager.cache) == 0


def test_a_row_of_another_namespace_goes_on_publishing(manager: BlockManager) -> None:
    start(manager, 0, tokens(4), "a")
    manager.invalidate_namespaces(0, "b")
    manager.invalidate_namespaces(0, "")
    manager.grow([0])
    manager.publish(0, tokens(8), 8)
    assert found(manager, tokens(8), "a") == 2


def test_a_prefix_is_forgotten_with_all_that_follows_it(manager: BlockManager) -> None:
    for row, tail in enumerate((20, 40)):
        start(manager, row, np.concatenate((tokens(8), tokens(4, start=tail))))
        manager.release(row)
    assert manager.invalidate_prefix(tokens(8)) == 3
    assert found(manager, tokens(8)) == 1
    assert manager.pool.counts[1:] == (0, 1, 7)
    assert manager.check_integrity() == []


def test_only_the_full_blocks_of_a_prefix_count(manager: BlockManager) -> None:
    start(manager, 0, tokens(12))
    assert manager.invalidate_prefix(tokens(3)) == 0
    assert manager.invalidate_prefix(tokens(8, start=1)) == 0
    assert manager.invalidate_prefix(tokens(8), "other salt") == 0
    assert manager.invalidate_prefix(tokens(7)) == 3
    assert manager.check_integrity() == []


def test_a_prefix_that_is_cached_only_in_part_stays(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    assert manager.invalidate_prefix(tokens(8)) == 0
    assert found(manager, tokens(4)) == 1


def test_rows_that_begin_with_an_invalidated_prefix_publish_no_more_and_others_do(manager: BlockManager) -> None:
    other = np.concatenate((tokens(4), tokens(4, start=40)))
    start(manager, 0, tokens(8))
    start(manager, 1, other)
    assert manager.invalidate_prefix(tokens(8)) == 1
    for row, prompt in ((0, tokens(12)), (1, np.append(other, other[4:]).astype(np.int32))):
        manager.grow([row])
        manager.publish(row, prompt, 12)
    assert found(manager, tokens(12)) == 1
    assert found(manager, np.append(other, other[4:]).astype(np.int32)) == 3
    assert manager.check_integrity() == []


def test_pins_of_an_invalidated_tenant_are_dropped() -> None:
    manager = two_tenants(pin_budget=8)
    for tenant in (0, 1):
        start(manager, tenant, tokens(8), tenant=tenant)
        manager.release(tenant)
        pin(manager, tokens(8), tenant=tenant)
    manager.invalidate_namespaces(0)
    assert [(kept.tenant, len(kept.blocks)) for kept in manager.pins.listed()] == [(1, 2)]
    assert manager.quota.used == [0, 2]
    assert manager.check_integrity() == []


def test_pins_that_begin_with_an_invalidated_prefix_are_dropped(manager: BlockManager) -> None:
    manager.pins.budget = 8
    start(manager, 0, tokens(12))
    manager.release(0)
    short, *_ = pin(manager, tokens(4)), pin(manager, tokens(8)), pin(manager, tokens(12))
    assert manager.invalidate_prefix(tokens(8)) == 2
    assert manager.pins.listed() == [short]
    assert manager.pool.counts[1:] == (1, 0, 7)
    assert manager.check_integrity() == []


def test_a_pinned_block_that_a_row_uses_stays_with_the_row(manager: BlockManager) -> None:
    manager.pins.budget = 8
    start(manager, 0, tokens(8))
    pin(manager, tokens(8))
    manager.invalidate_namespaces(0)
    assert manager.pool.counts.used == 2
    assert manager.check_integrity() == []
    manager.release(0)
    assert manager.pool.counts.free == 8


# ── check_integrity sees what is wrong ──────────────────────────────────────────────────────────────────────


def test_check_names_a_block_that_is_in_a_table_and_has_no_owner(manager: BlockManager) -> None:
    manager.tables.extend(0, [3])
    assert "block 3 is in 1 tables and 0 pins and counts 0 owners" in manager.check_integrity()


def test_check_names_a_table_with_leftovers(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.tables.lengths[0] = 1
    assert "row 0 has blocks past its length 1" in manager.check_integrity()


def test_check_names_a_published_block_that_is_not_indexed(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.pool.forget(blocks(manager, 0)[1])
    assert manager.check_integrity() == ["row 0's block 1 counts as published and is not chained to its predecessor"]


def test_check_names_a_charge_that_was_forgotten(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.quota.used[0] = 1
    assert manager.check_integrity() == ["tenants use 1 blocks and the pool 2"]


def test_check_names_a_pin_that_owns_nothing(manager: BlockManager) -> None:
    manager.pins.budget = 1
    manager.pins.add([3], -2, 0, 1.0)
    assert manager.check_integrity() == ["block 3 is in 0 tables and 1 pins and counts 0 owners"]


def test_check_names_pins_beyond_their_budget(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    pin(manager, tokens(8))
    assert manager.check_integrity() == ["2 blocks are pinned, 0 may be"]
