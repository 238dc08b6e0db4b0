"""WindowedBlockManager: frames come and go with each row's window; hits, merging, forks, pins, quotas, preemption."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from blocks import SIZE, Tokens, evict, tokens
from factories import EOS, VOCAB, OracleEngine, greedy, make_manager, make_scheduler
from invariants import check_all, check_empty
from oracle import expected_output

from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.manager import PrefixMatch
from octavo.block_manager.misses import EvictionHistory, MissReason
from octavo.block_manager.quota import Quota, Shortage
from octavo.block_manager.windowed import WindowedBlockManager
from octavo.config import TenantConfig

# A query sees its own token and the four before it: at the beginning of a column all of the one before.
WINDOW = 5
CHUNK = 8
# What a step needs at most: four tokens before it and eight of its own, however they are aligned.
STEP = 4


def groups_of(full: int = 1, windowed: int = 1, window: int = WINDOW) -> LayerGroups:
    """So many groups of each kind, of one layer each."""
    return LayerGroups(tuple((layer,) for layer in range(full + windowed)), full, window)


SHAPES = [
    pytest.param(groups_of(1, 1), id="one of each kind"),
    pytest.param(groups_of(1, 3, window=1), id="a window of one token"),
    pytest.param(groups_of(2, 1, window=9), id="more full ones"),
    pytest.param(groups_of(0, 2, window=6), id="windows only"),
]


def make(num_blocks: int = 40, groups: LayerGroups | None = None, **options: Any) -> WindowedBlockManager:
    manager = make_manager(num_blocks, SIZE, groups=groups or groups_of(), max_chunk=CHUNK, **options)
    assert isinstance(manager, WindowedBlockManager)
    return manager


@pytest.fixture
def manager() -> WindowedBlockManager:
    return make()


def enter(manager: WindowedBlockManager, row: int, prompt: Tokens, salt: str = "", tenant: int = 0) -> PrefixMatch:
    """Lets a row in that has computed nothing yet."""
    match = manager.match_prefix(prompt, salt, tenant)
    assert manager.shortfall(match, len(prompt), tenant=tenant) == 0
    manager.reserve(row, match, prompt, tenant)
    return match


def compute(manager: WindowedBlockManager, row: int, prompt: Tokens, begin: int, end: int) -> None:
    """A step in which a row computes these positions, as the scheduler has it."""
    slide(manager, row, begin)
    manager.cover(rows(row), rows(end))
    manager.publish(row, prompt, end)
    manager.merge_duplicates(row, prompt, end)


def run(manager: WindowedBlockManager, row: int, prompt: Tokens, salt: str = "", tenant: int = 0) -> PrefixMatch:
    """Lets a row in and computes its prompt in chunks."""
    match = enter(manager, row, prompt, salt, tenant)
    for begin in range(match.num_tokens, len(prompt), CHUNK):
        compute(manager, row, prompt, begin, min(begin + CHUNK, len(prompt)))
    return match


def slide(manager: WindowedBlockManager, row: int, num_computed: int) -> None:
    manager.slide(rows(row), rows(num_computed))


def rows(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def blocks_of(manager: WindowedBlockManager, row: int, group: int) -> list[int]:
    """A row's blocks of one group of layers; 0 where there is none."""
    blocks: list[int] = manager.blocks_of(group, np.array(manager.tables.blocks(row), dtype=np.int32)).tolist()
    return blocks


def seen(manager: WindowedBlockManager, row: int) -> list[bool]:
    """For which of a row's columns there are frames."""
    return [block > 0 for block in blocks_of(manager, row, -1)]


def held(manager: WindowedBlockManager, row: int) -> int:
    return int(manager.blocks_held(rows(row))[0])


def give_up_frames(manager: WindowedBlockManager) -> None:
    """Has others take all the room there is, and leave: nothing stays cached but the full blocks of columns in use."""
    assert manager.groups.num_full == 1
    evict(manager, manager.pool.available)
    assert manager.check_integrity() == []


# ── windows move on ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_promised_frames_for_a_step_and_takes_them_when_it_computes(manager: WindowedBlockManager) -> None:
    prompt = tokens(32)
    enter(manager, 0, prompt)
    assert manager.pool.counts.used == 8
    assert manager.pool.available == 40 - 8 - STEP
    assert held(manager, 0) == 8 + STEP
    assert seen(manager, 0) == [False] * 8
    manager.cover(rows(0), rows(8))
    assert seen(manager, 0) == [True] * 2 + [False] * 6
    assert manager.pool.counts.used == 8 + 2
    assert manager.pool.available == 40 - 8 - STEP
    assert held(manager, 0) == 8 + STEP
    assert manager.check_integrity() == []


def test_covering_what_is_covered_takes_nothing(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(8))
    before = manager.pool.counts
    manager.cover(rows(0), rows(7))
    assert manager.pool.counts == before
    assert manager.check_integrity() == []


@pytest.mark.parametrize(("num_computed", "first"), [(0, 0), (7, 0), (8, 1), (11, 1), (12, 2), (16, 3)])
def test_a_window_moves_on_by_whole_columns(manager: WindowedBlockManager, num_computed: int, first: int) -> None:
    prompt = tokens(16)
    manager.prefix_caching = False
    run(manager, 0, prompt)
    slide(manager, 0, num_computed)
    begin = max(first, 1)  # computing its second chunk has moved it past the first column
    assert seen(manager, 0) == [False] * begin + [True] * (4 - begin)
    assert manager.check_integrity() == []


def test_frames_behind_the_window_are_given_back() -> None:
    manager = make(caching=False)
    run(manager, 0, tokens(16))
    before, slid = manager.pool.counts, manager.slid
    slide(manager, 0, 16)
    assert manager.pool.counts.free == before.free + 2
    assert manager.slid == slid + 2
    assert manager.pool.available == 40 - 4 - 1
    assert manager.check_integrity() == []


def test_frames_behind_the_window_stay_cached_if_their_content_is_known(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    assert seen(manager, 0) == [True] * 4
    assert manager.pool.counts.used == 4 + 1
    assert manager.pool.counts.cached == 3
    assert manager.check_integrity() == []


def test_what_a_window_leaves_behind_pays_for_what_comes(manager: WindowedBlockManager) -> None:
    prompt = tokens(40)
    enter(manager, 0, prompt)
    for begin in range(0, 32, CHUNK):
        compute(manager, 0, prompt, begin, begin + CHUNK)
        assert manager.pool.available == 40 - 10 - STEP
    compute(manager, 0, prompt, 32, 40)  # the end is in sight
    assert manager.pool.available == 40 - 10 - 3
    slide(manager, 0, 40)
    assert manager.pool.available == 40 - 10 - 1
    assert manager.check_integrity() == []


@pytest.mark.parametrize("chunk", [1, 3, 5, 8])
@pytest.mark.parametrize("groups", SHAPES)
def test_a_prompt_in_chunks_never_holds_more_than_is_foreseen(groups: LayerGroups, chunk: int) -> None:
    manager, prompt = make(60, groups, num_rows=1), tokens(90)
    enter(manager, 0, prompt)
    most = manager.most_blocks(len(prompt))
    for begin in range(0, 90, chunk):
        end = min(begin + chunk, 90)
        slide(manager, 0, begin)
        assert held(manager, 0) <= most
        manager.cover(rows(0), rows(end))
        first = max(0, begin - groups.window + 1)
        assert all(seen(manager, 0)[first // SIZE : -(-end // SIZE)])
        assert held(manager, 0) <= most
        assert 60 - manager.pool.available == held(manager, 0)
        manager.publish(0, prompt, end)
        assert manager.check_integrity() == []


def test_one_token_at_a_time_holds_a_window(manager: WindowedBlockManager) -> None:
    text = tokens(60)
    run(manager, 0, text[:8])
    for position in range(8, 60):
        slide(manager, 0, position)
        if position == manager.tables.lengths[0] * SIZE:
            manager.grow([0])
        compute(manager, 0, text, position, position + 1)
        assert held(manager, 0) <= int(manager.blocks_at(rows(position + 1))[0])
        assert manager.check_integrity() == []


def test_growing_takes_a_block_of_every_group() -> None:
    manager = make(groups=groups_of(2, 3))
    run(manager, 0, tokens(4))
    available = manager.pool.available
    manager.grow([0])
    assert manager.blocks_per_column == 5
    assert manager.pool.available == available - 5
    assert all(blocks_of(manager, 0, group)[1] for group in range(5))
    assert manager.check_integrity() == []


def test_releasing_a_half_computed_row_gives_back_what_it_was_promised(manager: WindowedBlockManager) -> None:
    prompt = tokens(40)
    enter(manager, 0, prompt)
    compute(manager, 0, prompt, 0, 8)
    manager.release(0)
    assert manager.pool.available == 40
    assert manager.pool.counts.cached == 4
    assert manager.check_integrity() == []


def test_exclusive_blocks_are_what_a_release_makes_available(manager: WindowedBlockManager) -> None:
    prompt = tokens(40)
    enter(manager, 0, prompt)
    compute(manager, 0, prompt, 0, 8)
    enter(manager, 1, np.concatenate((prompt[:8], tokens(9, start=500))))
    for row in (0, 1):
        alone = int(manager.exclusive_blocks(rows(row))[0])
        available = manager.pool.available
        manager.release(row)
        assert manager.pool.available == available + alone
        assert manager.check_integrity() == []


def test_the_longest_sequence_is_what_both_pool_and_table_hold() -> None:
    for num_blocks in range(2 * STEP + 2, 40):
        manager = make(num_blocks, max_blocks_per_row=30)
        longest = manager.max_tokens()
        assert longest == min(30, num_blocks - STEP) * SIZE
        run(manager, 0, tokens(longest))
        assert manager.check_integrity() == []


def test_without_full_groups_only_the_table_bounds_a_sequence() -> None:
    manager = make(STEP + 1, groups_of(0, 1), max_blocks_per_row=30)
    assert manager.max_tokens() == 120
    run(manager, 0, tokens(120))
    assert len(manager.tables.blocks(0)) == 30
    assert manager.check_integrity() == []


# ── hits ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hit_needs_the_frames_of_its_window_only(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    manager.release(0)
    match = enter(manager, 1, tokens(17))
    assert (len(match.blocks), match.idle, match.num_tokens) == (4, 4, 16)
    assert manager.pool.counts.used == 5 + 1  # five columns, and the frames of the last one that was found
    manager.cover(rows(1), rows(17))
    assert manager.pool.counts.used == 5 + 2
    assert manager.check_integrity() == []


@pytest.mark.parametrize("window", [1, 4, 5, 6, 9, 13])
@pytest.mark.parametrize("length", [5, 9, 13, 17, 24])
@pytest.mark.parametrize("after", ["running", "released"])
def test_needed_is_what_reserving_uses_up(window: int, length: int, after: str) -> None:
    manager = make(80, groups_of(1, 2, window))
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    if after == "released":
        manager.release(0)
    match = manager.match_prefix(tokens(length))
    needed, available = manager.needed(match, length), manager.pool.available
    manager.reserve(1, match, tokens(length))
    assert available - manager.pool.available == needed
    assert manager.check_integrity() == []


@pytest.mark.parametrize("window", [6, 9])
def test_a_hit_is_cut_back_until_its_window_is_there(window: int) -> None:
    # The five or eight tokens before the one that comes next: a hit needs the two columns before its end.
    manager = make(groups=groups_of(window=window))
    run(manager, 0, tokens(24))
    columns = manager.tables.blocks(0)
    slide(manager, 0, 24)  # columns 4 and 5 are needed, the frames of 0 … 3 are cached
    give_up_frames(manager)
    assert seen(manager, 0) == [False] * 4 + [True] * 2
    assert manager.match_prefix(tokens(25)).blocks == columns
    assert manager.match_prefix(tokens(24)).blocks == []  # 5 columns, of which only the last has frames
    assert manager.check_integrity() == []


def test_a_hit_is_cut_back_to_an_earlier_window_that_is_still_there(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(24))
    columns = manager.tables.blocks(0)
    slide(manager, 0, 24)
    enter(manager, 1, np.concatenate((tokens(8), tokens(3, start=700))))  # keeps the frames of column 1
    manager.cover(rows(1), rows(11))
    give_up_frames(manager)
    assert seen(manager, 0) == [False, True, False, False, False, True]
    match = manager.match_prefix(tokens(24))
    assert (match.blocks, match.idle, match.num_tokens) == (columns[:2], 0, 8)
    assert manager.explain_miss(tokens(24), match).reason is MissReason.EVICTED
    assert manager.check_integrity() == []


def test_idle_columns_that_are_cut_off_do_not_count(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    manager.release(0)
    evict(manager, manager.pool.counts.free + 2)  # the frames of columns 0, left behind first, and 3, released first
    match = manager.match_prefix(tokens(17))
    assert (match.idle, match.num_tokens) == (3, 12)
    assert manager.needed(match, 17) == 3 + 1 + 2 + 2  # columns found, the frames of the last one, two new columns
    assert manager.shortfall(match, 17) == 0
    manager.reserve(1, match, tokens(17))
    assert manager.check_integrity() == []


def test_lost_frames_count_as_evicted_even_if_that_is_long_forgotten() -> None:
    manager = make()
    run(manager, 0, tokens(24))
    slide(manager, 0, 24)
    give_up_frames(manager)
    manager.evicted = EvictionHistory(lambda: 0.0)
    miss = manager.explain_miss(tokens(24), manager.match_prefix(tokens(24)))
    assert (miss.reason, miss.seconds_ago) == (MissReason.EVICTED, None)
    assert manager.explain_miss(tokens(9, 900), manager.match_prefix(tokens(9, 900))).reason is MissReason.NEVER_SEEN
    assert manager.check_integrity() == []


def test_when_frames_were_lost_is_told() -> None:
    now = 10.0
    manager = make(clock=lambda: now)
    run(manager, 0, tokens(24))
    slide(manager, 0, 24)
    give_up_frames(manager)
    now = 17.0
    miss = manager.explain_miss(tokens(24), manager.match_prefix(tokens(24)))
    assert (miss.reason, miss.seconds_ago) == (MissReason.EVICTED, 7.0)
    assert manager.check_integrity() == []


# ── equal columns ───────────────────────────────────────────────────────────────────────────────────────────


def test_recomputed_frames_are_adopted_by_the_column_that_lost_them(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(24))
    slide(manager, 0, 24)
    columns = manager.tables.blocks(0)
    give_up_frames(manager)
    prompt = tokens(21)
    match = enter(manager, 1, prompt)
    assert match.blocks == []
    manager.cover(rows(1), rows(8))
    written = blocks_of(manager, 1, 1)[:2]
    manager.publish(1, prompt, 8)
    manager.merge_duplicates(1, prompt, 8)
    assert manager.tables.blocks(1)[:2] == columns[:2]
    assert manager.deduplicated == 2
    assert blocks_of(manager, 1, 1)[:2] == blocks_of(manager, 0, 1)[:2] == written
    for begin in (8, 16):
        compute(manager, 1, prompt, begin, min(begin + 8, 21))
        assert manager.check_integrity() == []
    assert manager.tables.blocks(1)[:5] == columns[:5]
    assert manager.match_prefix(prompt).blocks == columns[:5]
    assert manager.check_integrity() == []


def test_two_that_recompute_the_same_frames_end_up_sharing_them(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    give_up_frames(manager)
    prompt = tokens(9)
    for row in (1, 2):
        assert enter(manager, row, prompt).blocks == []
    for row in (1, 2):
        manager.cover(rows(row), rows(8))
        manager.publish(row, prompt, 8)
    for row in (1, 2):
        available = manager.pool.available
        manager.merge_duplicates(row, prompt, 8)
        # Two columns' full blocks; the second one's frames too, for they are there already.
        assert manager.pool.available == available + (2 if row == 1 else 4)
        assert manager.check_integrity() == []
    assert manager.tables.blocks(1)[:2] == manager.tables.blocks(2)[:2] == manager.tables.blocks(0)[:2]


def test_equal_columns_of_one_step_are_merged_with_their_frames(manager: WindowedBlockManager) -> None:
    prompt = tokens(9)
    enter(manager, 0, prompt)
    enter(manager, 1, prompt)
    for row in (0, 1):
        manager.cover(rows(row), rows(9))
        manager.publish(row, prompt, 9)
    used = manager.pool.counts.used
    manager.merge_duplicates(1, prompt, 9)
    assert manager.pool.counts.used == used - 4
    assert manager.tables.blocks(1)[:2] == manager.tables.blocks(0)[:2]
    assert manager.check_integrity() == []


def test_duplicates_are_merged_before_a_fork(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    give_up_frames(manager)
    prompt = tokens(9)
    enter(manager, 1, prompt)
    manager.cover(rows(1), rows(9))
    manager.publish(1, prompt, 9)
    with pytest.raises(AssertionError, match="before its duplicates are merged"):
        manager.fork(1, 2)


# ── failed steps and invalidation ───────────────────────────────────────────────────────────────────────────


def test_retracted_columns_keep_the_frames_that_are_computed_again(manager: WindowedBlockManager) -> None:
    prompt = tokens(24)
    enter(manager, 0, prompt)
    compute(manager, 0, prompt, 0, 8)
    slide(manager, 0, 8)
    manager.cover(rows(0), rows(16))
    manager.publish(0, prompt, 16)
    manager.retract(0, 8)
    assert manager.match_prefix(prompt).num_tokens == 8
    assert seen(manager, 0)[1:4] == [True] * 3
    assert manager.check_integrity() == []
    compute(manager, 0, prompt, 8, 16)
    assert manager.match_prefix(prompt).num_tokens == 16
    assert manager.check_integrity() == []


def test_invalidation_frees_frames_in_use_that_nobody_sees_any_more(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    assert manager.pool.counts == (40, 5, 3, 32)
    available = manager.pool.available
    assert manager.invalidate_namespaces(0) == 4
    assert manager.pool.counts == (40, 5, 0, 35)
    assert seen(manager, 0) == [False] * 3 + [True]
    assert manager.pool.available == available
    assert manager.match_prefix(tokens(17)).blocks == []
    manager.grow([0])
    compute(manager, 0, tokens(20), 16, 17)
    manager.release(0)
    assert manager.pool.counts == (40, 0, 0, 40)
    assert manager.check_integrity() == []


def test_invalidating_a_prefix_leaves_what_comes_before_it(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(16))
    slide(manager, 0, 16)
    assert manager.invalidate_prefix(tokens(12)) == 2
    assert seen(manager, 0) == [True, True, False, True]
    assert manager.match_prefix(tokens(17)).num_tokens == 8
    assert manager.check_integrity() == []


# ── forks ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_needs_its_parents_frames_and_takes_no_block(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(14))
    available = manager.pool.available
    manager.fork(0, 1)
    assert manager.pool.available == available
    assert manager.tables.blocks(1) == manager.tables.blocks(0)
    manager.release(0)
    assert manager.pool.available == available
    assert seen(manager, 1)[1:] == [True] * 3
    assert manager.check_integrity() == []


def test_a_write_to_a_shared_column_copies_a_block_of_every_group() -> None:
    manager = make(groups=groups_of(2, 3))
    run(manager, 0, tokens(14))
    manager.fork(0, 1)
    assert manager.copies_needed([(0, 14), (1, 14)]) == 5
    before = [blocks_of(manager, 0, group)[3] for group in range(5)]
    available = manager.pool.available
    copies = manager.make_writable(0, 14)
    after = [blocks_of(manager, 0, group)[3] for group in range(5)]
    assert [(copy.source, copy.destination) for copy in copies] == list(zip(before, after, strict=True))
    assert not set(before) & set(after)
    assert all(after)
    assert manager.copies == 5
    assert manager.pool.available == available - 5
    assert manager.make_writable(1, 14) == []
    assert [blocks_of(manager, 1, group)[3] for group in range(5)] == before
    assert manager.check_integrity() == []


def test_frames_stay_until_the_last_of_two_forks_has_moved_on() -> None:
    manager = make(caching=False)
    run(manager, 0, tokens(14))
    manager.fork(0, 1)
    slide(manager, 0, 14)
    available = manager.pool.available
    assert seen(manager, 1)[1]
    slide(manager, 1, 14)
    assert not seen(manager, 1)[1]
    assert manager.pool.available == available + 1
    assert manager.check_integrity() == []


# ── pins ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_keeps_the_frames_of_its_last_window_only() -> None:
    manager = make(pin_budget=20)
    run(manager, 0, tokens(16))
    manager.release(0)
    columns, namespace = manager.find_pinnable(tokens(16))
    assert len(columns) == 4
    needed, available = manager.blocks_to_pin(columns), manager.pool.available
    pin = manager.pin(columns, namespace, 0, 1.0)
    assert needed == 4 + 1 == manager.pinned_blocks == available - manager.pool.available
    assert manager.quota.used == [5]
    give_up_frames(manager)
    assert [manager.columns.has_frames(column) for column in columns] == [False, False, False, True]
    assert manager.match_prefix(tokens(17)).num_tokens == 16
    assert manager.check_integrity() == []
    manager.unpin(pin)
    assert (manager.pool.available, manager.quota.used, manager.pinned_blocks) == (40, [0], 0)
    assert manager.check_integrity() == []


def test_a_beginning_that_pins_share_counts_once_with_the_frames_of_each_end() -> None:
    manager = make(pin_budget=20)
    run(manager, 0, tokens(16))
    long, namespace = manager.find_pinnable(tokens(16))
    short, _ = manager.find_pinnable(tokens(8))
    for columns in (long, long, short):
        manager.pin(columns, namespace, 0, 1.0)
    assert manager.pinned_blocks == 4 + 2
    manager.release(0)
    assert 40 - manager.pool.available == 4 + 2
    assert manager.check_integrity() == []


def test_what_has_lost_its_window_cannot_be_pinned(manager: WindowedBlockManager) -> None:
    run(manager, 0, tokens(24))
    slide(manager, 0, 24)
    give_up_frames(manager)
    assert len(manager.find_pinnable(tokens(24))[0]) == 6
    assert manager.find_pinnable(tokens(20))[0] == []
    assert manager.check_integrity() == []


def test_the_budget_of_pins_counts_the_frames_of_their_last_windows() -> None:
    manager = make(groups=groups_of(1, 4), pin_budget=9)
    run(manager, 0, tokens(24))
    columns, namespace = manager.find_pinnable(tokens(16))
    assert manager.pin_size(4) == 4 + 4 == manager.pinned_by([columns])
    assert manager.pins_missing(columns) == 0
    manager.pin(columns, namespace, 0, 1.0)
    longer, _ = manager.find_pinnable(tokens(20))
    assert manager.pins_missing(longer) == 5 + 8 - 9
    assert manager.pins_missing(columns) == 0  # it is kept already
    assert manager.check_integrity() == []


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tenant_is_charged_what_it_holds_and_what_it_is_promised() -> None:
    manager = make(60, floors=[0, 10], ceilings=[None, 30])
    prompt = tokens(40)
    enter(manager, 0, prompt, tenant=1)
    assert manager.quota.used == [0, 10 + STEP]
    for begin in range(0, 40, CHUNK):
        compute(manager, 0, prompt, begin, begin + CHUNK)
        assert manager.quota.used == [0, 10 + (STEP if begin < 32 else 3)]
        assert manager.check_integrity() == []
    slide(manager, 0, 40)
    assert manager.quota.used == [0, 10 + 1]
    manager.release(0)
    assert manager.quota.used == [0, 0]
    assert manager.check_integrity() == []


def test_a_ceiling_bounds_the_longest_sequence_of_a_tenant() -> None:
    manager = make(60, floors=[0, 0], ceilings=[None, 14])
    assert manager.max_tokens(1) == 10 * SIZE
    match = manager.match_prefix(tokens(40), "", 1)
    assert manager.shortfall(match, 40, tenant=1) == 0
    assert manager.shortfall(match, 44, tenant=1) == 1
    assert manager.check_integrity() == []


def test_merging_and_forks_are_charged_to_their_tenant() -> None:
    manager = make(60, floors=[0, 0], ceilings=[None, 40])
    prompt = tokens(10)
    for row in (0, 1):
        enter(manager, row, prompt, tenant=1)
    for row in (0, 1):
        manager.cover(rows(row), rows(10))
        manager.publish(row, prompt, 10)
    assert manager.quota.used == [0, 12]
    manager.merge_duplicates(1, prompt, 10)
    assert manager.quota.used == [0, 8]
    manager.fork(0, 2)
    assert manager.quota.used == [0, 8]
    assert len(manager.make_writable(2, 10)) == 2
    assert manager.quota.used == [0, 10]
    assert manager.check_integrity() == []


def test_a_tenant_that_needs_nothing_can_be_what_is_short() -> None:
    quota = Quota(20, floors=[0, 4], ceilings=[12, None])
    quota.charge(0, 13)  # its windows have moved on from what others of it go on using
    assert quota.shortage({}, 7) == Shortage(0, 1, [True, False])
    assert quota.shortage({1: 2}, 7) == Shortage(0, 1, [True, False])
    quota.charge(0, -1)
    assert quota.shortage({}, 8) is None


def test_without_needs_whoever_is_above_its_floor_lacks_what_was_promised_twice() -> None:
    quota = Quota(20, [4, 4, 0], [None] * 3)
    for tenant, blocks in enumerate((4, 7, 10)):
        quota.charge(tenant, blocks)
    shortage = quota.shortage({}, -1)
    assert shortage is not None
    assert (shortage.tenant, shortage.blocks) == (1, 1)
    assert shortage.yields == [False, True, True]


# ── a window that moves on from what others go on using ─────────────────────────────────────────────────────


def test_moving_on_from_shared_frames_gives_nothing_back() -> None:
    manager = make(20)
    run(manager, 0, tokens(9))
    slide(manager, 0, 9)
    prompt = np.concatenate((tokens(8), tokens(40, start=300)))
    enter(manager, 1, prompt[:44])
    available = manager.pool.available
    compute(manager, 1, prompt[:44], 8, 15)
    slide(manager, 1, 15)  # row 0 goes on seeing the column that row 1 has left
    assert manager.pool.available == available - 1
    assert manager.quota.used == [20 - manager.pool.available]
    assert manager.check_integrity() == []


SHORT = [1, 2, 3, 4, 5, 6, 7, 8, 9]
LONG = [*SHORT[:8], *range(10, 50)]


def sharing(num_blocks: int = 18, **config: Any) -> OracleEngine:
    """Room for a short sequence and a long one that shares its beginning, to the block."""
    scheduler = make_scheduler(
        num_blocks=num_blocks,
        block_size=SIZE,
        max_num_batched_tokens=CHUNK,
        groups=groups_of(),
        watermark_ratio=0.0,
        **config,
    )
    return OracleEngine(scheduler)


def columns_of(engine: OracleEngine) -> list[int]:
    lengths: list[int] = engine.scheduler.manager.tables.lengths.tolist()
    return sorted(length for length in lengths if length)


def assert_both_are_answered(engine: OracleEngine) -> None:
    for _ in range(1000):
        if not engine.scheduler.has_work:
            break
        assert engine.step() is not None
        check_all(engine)
    for key, prompt in ((1, SHORT), (2, LONG)):
        assert engine.outputs[key, 0] == expected_output(prompt, len(engine.outputs[key, 0]), VOCAB)
        assert engine.reasons[key, 0] in ("length", "stop")
    check_empty(engine.scheduler)


@pytest.mark.parametrize("limited", [False, True])
def test_whoever_moves_on_from_shared_frames_gives_way_if_there_are_no_others(limited: bool) -> None:
    tenants = (TenantConfig(name="a", ceiling=18), TenantConfig(name="b", floor=2)) if limited else ()
    engine = sharing(24 if limited else 18, tenants=tenants)
    tenant = "a" if limited else "default"
    engine.add(1, SHORT, greedy(4), tenant=tenant)
    engine.step()
    engine.step()
    engine.add(2, LONG, greedy(3), tenant=tenant)
    engine.step()
    assert columns_of(engine) == [3, 12]
    # The short one goes on seeing the column that the long one has moved on from: its next frames lack a block.
    engine.step()
    assert engine.scheduler.counters.preemptions == 1
    assert columns_of(engine) == [3]  # nobody has crossed into another column
    check_all(engine)
    assert_both_are_answered(engine)


def test_a_pin_whose_frames_the_only_sequence_moves_on_from_is_dropped() -> None:
    engine = sharing(16, pin_ratio=1.0)
    engine.add(1, SHORT, greedy(1))
    engine.run()
    assert engine.scheduler.pin(SHORT[:8], 1000.0) is not None
    engine.add(2, LONG, greedy(1))
    while not engine.scheduler.counters.pins_dropped:
        assert engine.step() is not None
        check_all(engine)
    assert engine.scheduler.num_running == 1
    assert engine.scheduler.counters.preemptions == 0
    assert_both_are_answered(engine)


@pytest.mark.parametrize("groups", SHAPES)
def test_every_layer_reads_what_was_written_for_it(groups: LayerGroups) -> None:
    engine = OracleEngine(make_scheduler(num_blocks=60, block_size=SIZE, groups=groups, max_num_batched_tokens=CHUNK))
    prompts = [LONG[:40], LONG[:20], SHORT, LONG[:41], [7] * 33]
    for key, prompt in enumerate(prompts):
        engine.add(key, prompt, greedy(12, n=2))
    while engine.scheduler.has_work:
        assert engine.step() is not None
        check_all(engine)
    for key, prompt in enumerate(prompts):
        assert engine.outputs[key, 0] == expected_output(prompt, 12, VOCAB, eos=EOS)
    check_empty(engine.scheduler)
