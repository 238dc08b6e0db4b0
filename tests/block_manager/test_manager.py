"""BlockManager: prefix sharing, reservation, growth, fork, copy-on-write, deduplication, retraction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from factories import make_manager

from octavo.block_manager.manager import BlockCopy, BlockManager, PrefixMatch

SIZE = 4


def tokens(count: int, start: int = 0) -> npt.NDArray[np.int32]:
    return np.arange(start, start + count, dtype=np.int32)


def start(manager: BlockManager, row: int, prompt: npt.NDArray[np.int32], salt: str = "") -> PrefixMatch:
    """Gives a row its blocks and publishes the full ones, as a step that computes the whole prompt does."""
    match = manager.match_prefix(prompt, salt)
    assert manager.shortfall(match, len(prompt)) == 0
    manager.reserve(row, match, len(prompt))
    manager.publish(row, prompt, len(prompt))
    return match


def blocks(manager: BlockManager, row: int) -> list[int]:
    return manager.tables.blocks(row)


@pytest.fixture
def manager() -> BlockManager:
    return make_manager(num_blocks=8, block_size=SIZE, num_rows=4)


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_tokens_need_whole_blocks(manager: BlockManager, count: int, expected: int) -> None:
    assert manager.blocks_for(count) == expected


@pytest.mark.parametrize(("columns", "largest"), [(8, 32), (3, 12), (20, 32)])
def test_one_sequence_can_have_what_both_pool_and_table_hold(columns: int, largest: int) -> None:
    manager = BlockManager(num_blocks=8, block_size=SIZE, num_rows=1, max_blocks_per_row=columns)
    assert manager.max_tokens == largest


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
    manager = make_manager(num_blocks=8, block_size=SIZE, hasher=lambda parent, content: 7)
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(8, start=20))
    assert manager.match_prefix(tokens(9)).blocks == blocks(manager, 0)
    assert manager.match_prefix(tokens(9, start=20)).blocks == blocks(manager, 1)
    assert manager.match_prefix(tokens(9, start=40)).blocks == []
    assert manager.check_integrity() == []


# ── reservation ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_length_is_reserved_at_once(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(10)), 10)
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
    assert (manager.prefix_queries, manager.prefix_hits) == (20, 8)


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
    manager.reserve(0, match, 32)
    assert blocks(manager, 0)[:2] == match.blocks
    assert len(set(blocks(manager, 0))) == 8
    assert manager.check_integrity() == []


def test_a_row_in_use_cannot_be_reserved_again(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    with pytest.raises(AssertionError, match="row 0 is in use"):
        manager.reserve(0, manager.match_prefix(tokens(4)), 4)


def test_growing_appends_one_block(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    manager.grow(0)
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


# ── publishing ──────────────────────────────────────────────────────────────────────────────────────────────


def test_only_blocks_that_are_full_are_published(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(12)), 12)
    for computed, published in ((3, 0), (4, 1), (7, 1), (12, 3)):
        manager.publish(0, tokens(12), computed)
        assert len(manager.pool.cache) == published
    assert manager.check_integrity() == []


def test_a_second_row_with_equal_content_keeps_its_block_private_during_the_step(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(8)), 8)
    manager.publish(0, tokens(8), 8)
    manager.publish(1, tokens(8), 8)
    assert not set(blocks(manager, 0)) & set(blocks(manager, 1))
    assert manager.rows_with_duplicates == {1}


def test_duplicates_are_merged_after_the_step(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(10)), 10)
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
        manager.reserve(row, manager.match_prefix(prompt), 8)
    for row, prompt in enumerate(prompts):
        manager.publish(row, prompt, 8)
    assert len(manager.pool.cache) == 2
    manager.merge_duplicates(1, prompts[1], 8)
    assert len(manager.pool.cache) == 3
    assert manager.match_prefix(np.append(prompts[1], [1]).astype(np.int32)).blocks == blocks(manager, 1)
    assert blocks(manager, 0)[0] == blocks(manager, 1)[0]
    assert manager.check_integrity() == []


def test_a_duplicate_whose_twin_is_gone_takes_its_place(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(4)), 4)
        manager.publish(row, tokens(4), 4)
    manager.release(0)
    manager.pool.forget_idle()
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
    manager.reserve(0, manager.match_prefix(tokens(12)), 12)
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
        manager.reserve(row, manager.match_prefix(tokens(4)), 4)
        manager.publish(row, tokens(4), 4)
    manager.retract(1, 0)
    assert manager.rows_with_duplicates == frozenset()


def test_a_released_row_has_no_duplicates_left(manager: BlockManager) -> None:
    for row in (0, 1):
        manager.reserve(row, manager.match_prefix(tokens(4)), 4)
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
    copy = manager.make_writable(0, 6)
    assert copy == BlockCopy(source=shared, destination=blocks(manager, 0)[1])
    assert copy.destination != shared
    assert manager.make_writable(1, 6) is None
    assert blocks(manager, 1)[1] == shared
    assert manager.copies == 1
    assert manager.check_integrity() == []


def test_a_block_of_ones_own_needs_no_copy(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    assert manager.make_writable(0, 6) is None


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
        manager.reserve(row, manager.match_prefix(tokens(12)), 12)
    manager.publish(0, tokens(4), 4)
    manager.publish(1, tokens(12), 12)
    manager.fork(1, 2)
    for row in (1, 2):
        manager.merge_duplicates(row, tokens(12), 12)
    assert blocks(manager, 1) == blocks(manager, 2)
    assert blocks(manager, 1)[0] == blocks(manager, 0)[0]
    assert manager.check_integrity() == []


def test_a_fork_keeps_its_sources_namespace(manager: BlockManager) -> None:
    manager.reserve(0, manager.match_prefix(tokens(3), "a"), 3)
    manager.fork(0, 1)
    manager.release(0)
    manager.publish(1, tokens(4), 4)
    assert manager.match_prefix(tokens(5), "a").blocks == blocks(manager, 1)
    assert manager.match_prefix(tokens(5)).blocks == []


# ── check_integrity sees what is wrong ──────────────────────────────────────────────────────────────────────


def test_check_names_a_block_that_is_in_a_table_and_has_no_owner(manager: BlockManager) -> None:
    manager.tables.extend(0, [3])
    assert "block 3 is in 1 tables and counts 0 owners" in manager.check_integrity()


def test_check_names_a_table_with_leftovers(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.tables.lengths[0] = 1
    assert "row 0 has blocks past its length 1" in manager.check_integrity()


def test_check_names_a_published_block_that_is_not_indexed(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.pool.forget(blocks(manager, 0)[1])
    assert manager.check_integrity() == ["row 0's block 1 counts as published and is not chained to its predecessor"]
