"""BlockManager over lower tiers: swapping out and coming back, promotion, and what becomes of it all in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blocks import SIZE, evict, start, swap_out, tokens, transfer
from factories import make_manager

from octavo.block_manager.manager import BlockManager, SwappedBlocks
from octavo.block_manager.tiers import Place, Tier, Transfer

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK

Contents = dict[tuple[Tier, int], Any]


def blocks(manager: BlockManager, row: int) -> list[int]:
    return manager.tables.blocks(row)


def transfers(manager: BlockManager) -> list[tuple[Tier, int, Tier, int]]:
    return list(manager.take_transfers())


@pytest.fixture
def manager() -> BlockManager:
    return make_manager(num_blocks=8, block_size=SIZE, num_rows=4, host_blocks=8)


# ── swapping out ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_block_of_a_row_is_copied_a_half_filled_one_included(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = manager.swap_out(0, 9)
    assert swapped == SwappedBlocks((Place(HOST, 1), Place(HOST, 2), Place(HOST, 3)), 9)
    assert transfers(manager) == [(DEVICE, block, HOST, copy) for copy, block in enumerate(blocks(manager, 0), 1)]
    assert manager.tiers.counts(HOST).used == 3
    assert manager.check_integrity([swapped]) == []


def test_only_full_blocks_can_be_found_below(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    evict(manager, 8)
    assert manager.match_prefix(tokens(13)).below == list(swapped.places[:2])


def test_blocks_without_computed_tokens_are_not_copied(manager: BlockManager) -> None:
    start(manager, 0, tokens(16), computed=5)
    swapped = manager.swap_out(0, 5)
    assert swapped is not None
    assert len(swapped.places) == 2
    assert len(manager.take_transfers()) == 2


def test_blocks_that_another_row_uses_stay_where_they_are(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(13))
    swapped = manager.swap_out(1, 12)
    assert swapped == SwappedBlocks((None, None, Place(HOST, 1)), 12)
    assert transfers(manager) == [(DEVICE, blocks(manager, 1)[2], HOST, 1)]


def test_blocks_that_are_pinned_stay_where_they_are(manager: BlockManager) -> None:
    manager.pins.budget = 1
    start(manager, 0, tokens(9))
    manager.pin(*manager.find_pinnable(tokens(4)), tenant=0, expires=1.0)
    swapped = swap_out(manager, 0, 9)
    assert swapped.places == (None, Place(HOST, 1), Place(HOST, 2))
    assert len(manager.match_prefix(tokens(9)).blocks) == 2


def test_of_two_siblings_the_last_one_takes_the_shared_blocks_down(manager: BlockManager) -> None:
    start(manager, 0, tokens(6))
    manager.fork(0, 1)
    first = swap_out(manager, 0, 6)
    assert first.places == (None, None)
    assert manager.take_transfers() == ()
    second = swap_out(manager, 1, 6)
    assert second.places == (Place(HOST, 1), Place(HOST, 2))
    assert manager.check_integrity([first, second]) == []


def test_a_sibling_whose_source_has_gone_leaves_content_that_others_find(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    manager.fork(0, 1)
    manager.release(0)
    manager.drop_swapped(swap_out(manager, 1, 10))
    evict(manager, 8)
    assert manager.match_prefix(tokens(10)).num_tokens == 8


def test_what_lies_below_already_is_held_and_not_copied_again(manager: BlockManager) -> None:
    start(manager, 0, tokens(9))
    first = swap_out(manager, 0, 9)
    start(manager, 0, tokens(9), swapped=first)
    manager.drop_swapped(first)
    manager.take_transfers()
    start(manager, 1, tokens(16), computed=12)
    third = blocks(manager, 1)[2]
    manager.release(0)
    second = swap_out(manager, 1, 12)
    assert second.places == (Place(HOST, 1), Place(HOST, 2), Place(HOST, 3))
    assert transfers(manager) == [(DEVICE, third, HOST, 3)]
    assert manager.check_integrity([second]) == []


def test_two_sequences_may_hold_the_same_copy(manager: BlockManager) -> None:
    start(manager, 0, tokens(5))
    first = swap_out(manager, 0, 5)
    start(manager, 0, tokens(5))
    second = swap_out(manager, 0, 5)
    assert first.places[0] == second.places[0]
    assert first.places[1] != second.places[1]
    assert manager.check_integrity([first, second]) == []
    manager.drop_swapped(first)
    assert manager.check_integrity([second]) == []


def test_storing_the_rest_never_gives_up_what_lies_below_already() -> None:
    manager = make_manager(8, SIZE, host_blocks=2)
    start(manager, 0, tokens(9))
    manager.drop_swapped(swap_out(manager, 0, 4))
    start(manager, 0, tokens(9))
    swapped = swap_out(manager, 0, 8)
    assert swapped.places == (Place(HOST, 1), Place(HOST, 2))
    assert manager.check_integrity([swapped]) == []


def test_swapping_goes_on_to_the_disk_when_the_host_is_full() -> None:
    manager = make_manager(8, SIZE, host_blocks=1, disk_blocks=2)
    start(manager, 0, tokens(10))
    assert swap_out(manager, 0, 10).places == (Place(HOST, 1), Place(DISK, 1), Place(DISK, 2))


def test_without_room_below_nothing_happens() -> None:
    manager = make_manager(8, SIZE, host_blocks=1, disk_blocks=1)
    start(manager, 0, tokens(10))
    before = blocks(manager, 0), manager.pool.counts
    assert manager.swap_out(0, 10) is None
    assert (blocks(manager, 0), manager.pool.counts) == before
    assert manager.take_transfers() == ()
    assert manager.tiers.room == 2
    assert manager.check_integrity() == []


def test_room_that_is_just_enough_is_used_up() -> None:
    manager = make_manager(8, SIZE, host_blocks=2, disk_blocks=1)
    start(manager, 0, tokens(10))
    swap_out(manager, 0, 10)
    assert manager.tiers.room == 0


def test_shared_blocks_need_no_room() -> None:
    manager = make_manager(8, SIZE, host_blocks=1)
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(10))
    assert manager.swap_out(1, 10) is not None


def test_holding_what_is_cached_below_needs_room_too() -> None:
    manager = make_manager(8, SIZE, host_blocks=2)
    start(manager, 0, tokens(12))
    manager.drop_swapped(swap_out(manager, 0, 8))
    start(manager, 0, tokens(12))
    assert manager.swap_out(0, 12) is None
    assert manager.tiers.room == 2


def test_what_others_hold_below_needs_no_more_room() -> None:
    manager = make_manager(8, SIZE, host_blocks=3)
    start(manager, 0, tokens(12))
    first = swap_out(manager, 0, 8)
    start(manager, 0, tokens(12))
    second = manager.swap_out(0, 12)
    assert second is not None
    assert second.places == (*first.places, Place(HOST, 3))


def test_without_lower_tiers_there_is_never_room() -> None:
    manager = make_manager(8, SIZE)
    start(manager, 0, tokens(9))
    assert manager.swap_out(0, 9) is None


def test_a_sequences_copies_are_dropped_tail_first(manager: BlockManager) -> None:
    swapped = SwappedBlocks((Place(HOST, 4), None, Place(DISK, 1), Place(HOST, 2)), 14)
    assert swapped.held == [Place(HOST, 2), Place(DISK, 1), Place(HOST, 4)]


# ── coming back ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sequence_comes_back_with_all_that_it_had(manager: BlockManager) -> None:
    start(manager, 0, tokens(10), computed=9)
    swapped = swap_out(manager, 0, 9)
    evict(manager, 8)
    match = manager.match_prefix(tokens(10), swapped=swapped)
    assert (match.blocks, match.below, match.num_tokens) == ([], list(swapped.places), 9)
    assert manager.needed(match, 10) == 3


def test_the_copies_bring_back_the_same_content_bit_by_bit() -> None:
    manager = make_manager(3, SIZE, host_blocks=2, disk_blocks=1)
    start(manager, 0, tokens(10), computed=9)
    contents: Contents = {(DEVICE, block): f"block {index}" for index, block in enumerate(blocks(manager, 0))}
    swapped = swap_out(manager, 0, 9)
    transfer(contents, manager.take_transfers())
    start(manager, 1, tokens(10, start=40))
    transfer(contents, manager.take_transfers())
    contents |= {(DEVICE, block): "something else" for block in blocks(manager, 1)}
    manager.release(1)
    match = start(manager, 2, tokens(10), computed=9, swapped=swapped)
    transfer(contents, manager.take_transfers())
    manager.drop_swapped(swapped)
    assert match.num_tokens == 9
    assert [contents[DEVICE, block] for block in blocks(manager, 2)] == ["block 0", "block 1", "block 2"]
    assert manager.check_integrity() == []


def test_what_still_lies_on_the_device_is_not_fetched(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    before = blocks(manager, 0)
    swapped = swap_out(manager, 0, 10)
    manager.take_transfers()
    match = start(manager, 1, tokens(11), swapped=swapped)
    assert (match.blocks, match.below, match.num_tokens) == (before[:2], [Place(HOST, 3)], 10)
    assert transfers(manager) == [(HOST, 3, DEVICE, blocks(manager, 1)[2])]


def test_a_head_on_the_device_is_followed_by_copies() -> None:
    manager = make_manager(4, SIZE, host_blocks=4)
    start(manager, 0, tokens(13))
    head = blocks(manager, 0)[0]
    swapped = swap_out(manager, 0, 13)
    evict(manager, 3)
    match = manager.match_prefix(tokens(14), swapped=swapped)
    assert (match.blocks, match.below, match.num_tokens) == ([head], list(swapped.places[1:]), 13)


def test_more_on_the_device_than_was_swapped_out_is_used_to_its_end(manager: BlockManager) -> None:
    start(manager, 0, tokens(14), computed=9)
    swapped = swap_out(manager, 0, 9)
    start(manager, 1, tokens(14))
    match = manager.match_prefix(tokens(14), swapped=swapped)
    assert (match.blocks, match.below) == (blocks(manager, 1)[:3], [])
    assert match.num_tokens == 12  # and not 9, or the sequence would write to blocks that it shares


def test_what_others_used_is_found_again_on_the_device(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(13))
    swapped = swap_out(manager, 1, 13)
    evict(manager, 6)
    match = manager.match_prefix(tokens(14), swapped=swapped)
    assert (match.blocks, match.below, match.num_tokens) == (blocks(manager, 0), list(swapped.places[2:]), 13)


def test_what_others_used_and_gave_up_is_found_where_it_sank() -> None:
    manager = make_manager(5, SIZE, host_blocks=8)
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(14), computed=13)
    swapped = swap_out(manager, 1, 13)
    manager.release(0)
    evict(manager, 5)
    match = manager.match_prefix(tokens(14), swapped=swapped)
    assert (match.blocks, match.num_tokens) == ([], 13)
    assert match.below[2:] == list(swapped.places[2:])
    assert len(set(match.below)) == 4


def test_a_sequence_computes_from_where_others_content_is_gone() -> None:
    manager = make_manager(5, SIZE, host_blocks=8)
    manager.tiers.worthwhile = frozenset()
    start(manager, 0, tokens(8))
    start(manager, 1, tokens(14), computed=13)
    swapped = swap_out(manager, 1, 13)
    manager.release(0)
    evict(manager, 4)
    match = manager.match_prefix(tokens(14), swapped=swapped)
    assert (len(match.blocks), match.below, match.num_tokens) == (1, [], 4)


def test_a_sequence_comes_back_from_tiers_that_are_not_worthwhile(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    manager.tiers.worthwhile = frozenset()
    evict(manager, 8)
    assert manager.match_prefix(tokens(11), swapped=swapped).below == list(swapped.places)


def test_the_full_blocks_of_a_sequence_that_came_back_can_be_shared_at_once(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    evict(manager, 8)
    manager.reserve(0, manager.match_prefix(tokens(11), swapped=swapped), tokens(11))
    manager.drop_swapped(swapped)
    assert manager.match_prefix(tokens(12)).blocks == blocks(manager, 0)[:2]
    assert manager.check_integrity() == []


def test_copies_with_a_name_stay_cached_when_the_sequence_is_back(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    evict(manager, 8)
    start(manager, 0, tokens(11), swapped=swapped)
    assert manager.tiers.counts(HOST)[1:] == (3, 0, 5)
    manager.drop_swapped(swapped)
    assert manager.tiers.counts(HOST)[1:] == (0, 2, 6)


def test_without_prefix_caching_a_sequence_comes_back_as_well() -> None:
    manager = make_manager(3, SIZE, host_blocks=3, caching=False)
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 9)
    manager.take_transfers()
    match = start(manager, 1, tokens(10), swapped=swapped)
    manager.drop_swapped(swapped)
    assert (match.blocks, match.below, match.num_tokens) == ([], list(swapped.places), 9)
    assert transfers(manager) == [(HOST, copy, DEVICE, block) for copy, block in enumerate(blocks(manager, 1), 1)]
    assert len(manager.cache) == 0
    assert manager.tiers.counts(HOST).free == 3
    assert manager.check_integrity() == []


def test_without_prefix_caching_a_block_that_was_shared_is_computed_again() -> None:
    manager = make_manager(8, SIZE, host_blocks=8, caching=False)
    start(manager, 0, tokens(10))
    manager.fork(0, 1)
    swapped = swap_out(manager, 1, 10)
    assert swapped.places == (None, None, None)
    assert manager.match_prefix(tokens(11), swapped=swapped).num_tokens == 0


def test_coming_back_counts_the_tokens_that_were_found_by_tier(manager: BlockManager) -> None:
    start(manager, 0, tokens(10), computed=9)
    swapped = swap_out(manager, 0, 9)
    evict(manager, 7)
    start(manager, 0, tokens(10), swapped=swapped)
    assert manager.prefix_queries == 20
    assert manager.prefix_hits == {DEVICE: 4, HOST: 5}


def test_without_prefix_caching_nothing_counts_as_found() -> None:
    manager = make_manager(8, SIZE, host_blocks=8, caching=False)
    start(manager, 0, tokens(10))
    start(manager, 1, tokens(10), swapped=swap_out(manager, 0, 9))
    assert (manager.prefix_queries, manager.prefix_hits.total()) == (0, 0)


# ── promotion ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prefix_goes_on_below_the_device() -> None:
    manager = make_manager(4, SIZE, host_blocks=1, disk_blocks=4)
    start(manager, 0, tokens(16))
    head = blocks(manager, 0)[0]
    manager.release(0)
    evict(manager, 3)
    match = manager.match_prefix(tokens(17))
    assert match.blocks == [head]
    assert [place.tier for place in match.below] == [HOST, DISK, DISK]
    assert match.num_tokens == 16
    assert manager.needed(match, 17) == 5


@pytest.mark.parametrize(("length", "below"), [(8, 1), (9, 2), (12, 2), (13, 3)])
def test_a_match_below_leaves_at_least_one_token_to_compute(length: int, below: int) -> None:
    manager = make_manager(3, SIZE, host_blocks=3)
    start(manager, 0, tokens(12))
    manager.release(0)
    evict(manager, 3)
    assert len(manager.match_prefix(tokens(length)).below) == below


def test_a_match_below_ends_where_something_is_missing() -> None:
    manager = make_manager(3, SIZE, host_blocks=3)
    start(manager, 0, tokens(12))
    names = [manager.cache.content_of(block) for block in blocks(manager, 0)]
    manager.release(0)
    evict(manager, 3)
    place = manager.tiers.find(names[1].digest)
    assert place is not None
    manager.tiers.forget(place)
    assert len(manager.match_prefix(tokens(13)).below) == 1


def test_a_match_ends_where_it_is_not_worth_coming_back_from() -> None:
    manager = make_manager(3, SIZE, host_blocks=2, disk_blocks=3)
    start(manager, 0, tokens(12))
    manager.release(0)
    evict(manager, 3)
    assert [place.tier for place in manager.match_prefix(tokens(13)).below] == [HOST, HOST, DISK]
    manager.tiers.worthwhile = frozenset({HOST})
    assert [place.tier for place in manager.match_prefix(tokens(13)).below] == [HOST, HOST]
    manager.tiers.worthwhile = frozenset()
    assert manager.match_prefix(tokens(13)).below == []


def test_other_salts_and_tenants_find_nothing_below() -> None:
    manager = make_manager(3, SIZE, host_blocks=3, floors=(0, 0), ceilings=(None, None))
    start(manager, 0, tokens(12), "a")
    manager.release(0)
    evict(manager, 3)
    assert len(manager.match_prefix(tokens(13), "a").below) == 3
    assert manager.match_prefix(tokens(13), "b").below == []
    assert manager.match_prefix(tokens(13), "a", tenant=1).below == []


def test_promoted_blocks_hold_what_sank(manager: BlockManager) -> None:
    start(manager, 0, tokens(12))
    contents: Contents = {(DEVICE, block): f"block {index}" for index, block in enumerate(blocks(manager, 0))}
    manager.release(0)
    evict(manager, 8)
    transfer(contents, manager.take_transfers())
    contents |= {(DEVICE, block): None for block in range(1, 9)}
    start(manager, 1, tokens(13))
    transfer(contents, manager.take_transfers())
    assert [contents[DEVICE, block] for block in blocks(manager, 1)] == ["block 0", "block 1", "block 2", None]
    assert manager.prefix_hits == {DEVICE: 0, HOST: 12}
    assert manager.check_integrity() == []


def test_what_a_promotion_displaces_sinks_before_it_is_written_over() -> None:
    manager = make_manager(2, SIZE, host_blocks=4)
    start(manager, 0, tokens(8))
    manager.release(0)
    start(manager, 0, tokens(8, start=40))
    manager.release(0)
    manager.take_transfers()
    start(manager, 0, tokens(8))
    first = blocks(manager, 0)[0]
    planned = transfers(manager)
    assert first == 1
    assert planned == [(DEVICE, 1, HOST, 3), (DEVICE, 2, HOST, 4), (HOST, 2, DEVICE, 1)]


def test_displacing_never_gives_up_what_is_being_promoted() -> None:
    manager = make_manager(2, SIZE, host_blocks=1)
    start(manager, 0, tokens(4))
    contents: Contents = {(DEVICE, blocks(manager, 0)[0]): "head"}
    manager.release(0)
    evict(manager, 2)
    start(manager, 0, tokens(8, start=40))
    transfer(contents, manager.take_transfers())
    contents |= {(DEVICE, block): "something else" for block in blocks(manager, 0)}
    manager.release(0)
    start(manager, 1, tokens(5))
    transfer(contents, manager.take_transfers())
    assert contents[DEVICE, blocks(manager, 1)[0]] == "head"
    assert manager.check_integrity() == []


def test_promoted_content_stays_below_as_well(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.release(0)
    evict(manager, 8)
    start(manager, 0, tokens(9))
    assert manager.tiers.counts(HOST)[1:] == (0, 2, 6)
    manager.take_transfers()
    manager.release(0)
    evict(manager, 8)
    assert manager.take_transfers() == ()


def test_of_promoted_content_the_tail_is_given_up_first_below() -> None:
    manager = make_manager(4, SIZE, host_blocks=2)
    start(manager, 0, tokens(8))
    manager.release(0)
    evict(manager, 4)
    start(manager, 0, tokens(9))
    start(manager, 1, tokens(4, start=40))
    manager.release(1)
    evict(manager, 1)
    manager.release(0)
    manager.tiers.worthwhile = frozenset()
    evict(manager, 4)
    manager.tiers.worthwhile = frozenset({HOST})
    assert manager.match_prefix(tokens(9)).num_tokens == 4


def test_promoted_blocks_can_be_shared_in_the_same_step(manager: BlockManager) -> None:
    start(manager, 0, tokens(8))
    manager.release(0)
    evict(manager, 8)
    start(manager, 0, tokens(9))
    assert start(manager, 1, tokens(9)).blocks == blocks(manager, 0)[:2]
    assert len(manager.take_transfers()) == 4  # two that sank, two that came back
    assert manager.check_integrity() == []


def test_a_promotion_is_charged_like_new_blocks() -> None:
    manager = make_manager(4, SIZE, host_blocks=4, floors=(0, 0), ceilings=(None, None))
    start(manager, 0, tokens(8), tenant=1)
    manager.release(0)
    evict(manager, 4)
    start(manager, 0, tokens(9), tenant=1)
    assert manager.quota.used == [0, 3]
    assert manager.check_integrity() == []


def test_transfers_name_blocks_by_plain_integers() -> None:
    """Whoever executes them multiplies these by a block's bytes, which 32 bits do not hold."""
    manager = make_manager(num_blocks=4, block_size=SIZE, num_rows=1, host_blocks=4, disk_blocks=4)
    for first in (0, 100, 200):
        start(manager, 0, tokens(16, first))
        manager.release(0)
    evict(manager, 4)
    ends = manager.take_transfers()
    assert {(source, target) for source, _, target, _ in ends} == {(DEVICE, HOST), (HOST, DISK)}
    assert all(type(block) is int for _, source, _, target in ends for block in (source, target))


def test_nothing_sinks_while_prefix_caching_is_off() -> None:
    manager = make_manager(4, SIZE, host_blocks=4, caching=False)
    start(manager, 0, tokens(12))
    manager.release(0)
    evict(manager, 4)
    assert manager.take_transfers() == ()


# ── failed steps ────────────────────────────────────────────────────────────────────────────────────────────


def promoted_behind(manager: BlockManager) -> None:
    """Row 0 is to compute a first block in this step, and row 1 shares it and has promoted what follows it."""
    start(manager, 0, tokens(12))
    manager.release(0)
    evict(manager, 8)
    first = manager.cache.namespaces.id_of((0, ""))
    place = manager.tiers.find(manager.cache.content_of(first).followed_by(tokens(4).tobytes()).digest)
    assert place is not None
    manager.tiers.forget(place)
    start(manager, 0, tokens(5))
    match = start(manager, 1, tokens(13))
    assert (match.blocks, len(match.below)) == (blocks(manager, 0)[:1], 2)


def test_what_was_promoted_behind_a_retracted_block_is_taken_back_too(manager: BlockManager) -> None:
    promoted_behind(manager)
    manager.retract(0, 0)
    manager.retract(1, 12)
    assert any("outlived" in problem for problem in manager.check_integrity())
    manager.retract_orphans([0, 1])
    assert len(manager.cache) == 0
    assert manager.check_integrity() == []


def test_orphans_of_orphans_are_taken_back_in_whatever_order_rows_come(manager: BlockManager) -> None:
    promoted_behind(manager)
    start(manager, 2, tokens(13))
    assert blocks(manager, 2)[:3] == blocks(manager, 1)[:3]
    manager.retract(0, 0)
    manager.retract_orphans([2, 1, 0])
    assert len(manager.cache) == 0
    assert manager.check_integrity() == []


def test_rows_whose_beginning_is_intact_keep_what_they_published(manager: BlockManager) -> None:
    promoted_behind(manager)
    start(manager, 2, tokens(8, start=40))
    manager.retract(0, 0)
    manager.retract_orphans([0, 1, 2])
    assert len(manager.match_prefix(tokens(9, start=40)).blocks) == 2
    assert len(manager.cache) == 2


def test_without_a_retraction_there_are_no_orphans(manager: BlockManager) -> None:
    promoted_behind(manager)
    manager.retract_orphans([0, 1])
    assert len(manager.cache) == 3


# ── invalidation ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_namespace_is_forgotten_in_every_tier() -> None:
    manager = make_manager(4, SIZE, host_blocks=1, disk_blocks=4)
    start(manager, 0, tokens(16))
    manager.release(0)
    evict(manager, 3)
    assert manager.invalidate_namespaces(0) == 4
    match = manager.match_prefix(tokens(17))
    assert (match.blocks, match.below) == ([], [])
    assert manager.tiers.counts(HOST).free == 1
    assert manager.tiers.counts(DISK).free == 4
    assert manager.check_integrity() == []


def test_what_follows_a_prefix_is_forgotten_in_every_tier() -> None:
    manager = make_manager(6, SIZE, host_blocks=1, disk_blocks=6)
    other = np.concatenate((tokens(4), tokens(5, start=40)))
    start(manager, 0, tokens(16))
    start(manager, 1, other)
    for row in (1, 0):
        manager.release(row)
    evict(manager, 4)
    assert len(manager.match_prefix(tokens(17)).blocks) == 2
    assert manager.invalidate_prefix(tokens(8)) == 3
    assert manager.match_prefix(tokens(17)).num_tokens == 4
    assert manager.match_prefix(other).num_tokens == 8
    # What lay furthest down must not come back when its beginning is computed again.
    assert start(manager, 2, tokens(17)).num_tokens == 4
    assert manager.check_integrity() == []


def test_a_prefix_that_lies_only_below_is_forgotten_too() -> None:
    manager = make_manager(4, SIZE, host_blocks=4)
    start(manager, 0, tokens(16))
    manager.release(0)
    evict(manager, 4)
    assert manager.invalidate_prefix(tokens(8)) == 3
    assert manager.match_prefix(tokens(17)).num_tokens == 4


def test_a_swapped_out_sequence_comes_back_after_an_invalidation_and_shares_nothing(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    manager.invalidate_namespaces(0)
    assert manager.check_integrity([swapped]) == []
    match = start(manager, 0, tokens(13), swapped=swapped)
    manager.drop_swapped(swapped)
    assert (match.blocks, match.below, match.num_tokens) == ([], list(swapped.places), 10)
    assert len(manager.cache) == 0
    manager.publish(0, tokens(13), 13)
    assert len(manager.cache) == 0
    assert manager.match_prefix(tokens(13)).num_tokens == 0
    assert manager.tiers.counts(HOST).free == 8
    assert manager.check_integrity() == []


def test_a_row_that_was_invalidated_and_then_swapped_out_shares_nothing_either(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    manager.invalidate_namespaces(0)
    swapped = swap_out(manager, 0, 10)
    assert start(manager, 0, tokens(13), swapped=swapped).num_tokens == 10
    manager.drop_swapped(swapped)
    assert len(manager.cache) == 0
    assert manager.tiers.counts(HOST).free == 8
    assert manager.check_integrity() == []


def test_a_half_filled_block_that_was_swapped_out_is_not_shared_when_it_is_full(manager: BlockManager) -> None:
    start(manager, 0, tokens(3))
    swapped = swap_out(manager, 0, 3)
    manager.invalidate_namespaces(0)
    assert start(manager, 0, tokens(5), swapped=swapped).num_tokens == 3
    manager.drop_swapped(swapped)
    assert len(manager.cache) == 0


def test_a_swapped_out_sequence_shares_nothing_once_its_prefix_is_invalidated(manager: BlockManager) -> None:
    start(manager, 0, tokens(14))
    swapped = swap_out(manager, 0, 14)
    evict(manager, 8)
    assert manager.invalidate_prefix(tokens(8)) == 2
    assert start(manager, 0, tokens(17), swapped=swapped).num_tokens == 14
    manager.drop_swapped(swapped)
    match = manager.match_prefix(tokens(17))
    assert (match.blocks, match.below) == ([], [swapped.places[0]])
    assert manager.check_integrity() == []


def test_what_lies_on_the_device_for_a_swapped_out_sequence_can_be_shared_in_any_case(manager: BlockManager) -> None:
    start(manager, 0, tokens(9))
    swapped = swap_out(manager, 0, 8)
    manager.invalidate_namespaces(0)
    start(manager, 1, tokens(9))
    assert start(manager, 0, tokens(13), swapped=swapped).blocks == blocks(manager, 1)[:2]
    assert manager.match_prefix(tokens(13)).blocks == blocks(manager, 0)[:3]


def test_another_tenants_invalidation_does_not_keep_a_sequence_from_sharing() -> None:
    manager = make_manager(8, SIZE, host_blocks=8, floors=(0, 0), ceilings=(None, None))
    start(manager, 0, tokens(10), tenant=1)
    swapped = swap_out(manager, 0, 10)
    evict(manager, 8)
    manager.invalidate_namespaces(0)
    manager.invalidate_prefix(tokens(4))
    start(manager, 0, tokens(10), tenant=1, swapped=swapped)
    assert len(manager.match_prefix(tokens(10), tenant=1).blocks) == 2


def test_once_it_shares_nothing_a_rows_next_sequence_does_again(manager: BlockManager) -> None:
    start(manager, 0, tokens(10))
    swapped = swap_out(manager, 0, 10)
    manager.invalidate_namespaces(0)
    start(manager, 0, tokens(13), swapped=swapped)
    manager.drop_swapped(swapped)
    manager.release(0)
    start(manager, 0, tokens(13))
    assert len(manager.cache) == 3


# ── check_integrity sees what is wrong ──────────────────────────────────────────────────────────────────────


def test_check_names_copies_that_nobody_comes_back_for(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    swapped = swap_out(manager, 0, 4)
    assert manager.check_integrity([swapped]) == []
    assert manager.check_integrity() == ["host block 1 has 1 owners, and 0 swapped-out sequences hold it"]


def test_a_plan_is_made_of_transfers(manager: BlockManager) -> None:
    start(manager, 0, tokens(4))
    swap_out(manager, 0, 4)
    assert manager.take_transfers() == (Transfer(DEVICE, 1, HOST, 1),)
    assert manager.take_transfers() == ()
