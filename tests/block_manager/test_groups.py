"""LayerGroups and Footprint: which layers share a block, and how many blocks a sequence takes."""

from __future__ import annotations

import pytest

from octavo.block_manager.groups import MAX_COLUMNS, Footprint, LayerGroups

LONGEST = 4096

# Full layers, layers with a window.
MIXES = [(1, 1), (1, 4), (4, 22), (13, 13), (5, 6), (7, 3), (12, 36), (10, 50), (3, 31)]


def mixed(num_full: int, num_windowed: int, window: int = 512) -> LayerGroups:
    return LayerGroups.of([0] * num_full + [window] * num_windowed, LONGEST)


def footprint(
    num_full: int, num_windowed: int, *, window: int = 5, block_size: int = 4, max_chunk: int = 8
) -> Footprint:
    groups = LayerGroups.of([0] * num_full + [window] * num_windowed, LONGEST)
    return Footprint(groups, block_size, max_chunk)


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_gemma_3_has_one_full_group_and_six_with_a_window() -> None:
    groups = LayerGroups.of([0 if layer % 6 == 5 else 512 for layer in range(26)], LONGEST)
    assert groups.members[0] == (5, 11, 17, 23)
    assert list(map(len, groups.members)) == [4, 4, 4, 4, 4, 4, 2]
    assert (groups.num_full, groups.num_windowed, groups.window, groups.layers_per_block) == (1, 6, 512, 4)


def test_gemma_2_has_one_group_of_each_kind() -> None:
    groups = LayerGroups.of([0 if layer % 2 else 4095 for layer in range(26)], LONGEST)
    assert groups.members == (tuple(range(1, 26, 2)), tuple(range(0, 26, 2)))
    assert (groups.num_full, groups.num_windowed, groups.window, groups.layers_per_block) == (1, 1, 4095, 13)


def test_a_model_of_windows_only_has_no_full_group() -> None:
    groups = LayerGroups.of([512] * 8, LONGEST)
    assert groups == LayerGroups((tuple(range(8)),), num_full=0, window=512)
    assert groups.num_windowed == 1


def test_a_model_without_windows_is_one_group() -> None:
    groups = LayerGroups.of([0] * 8, LONGEST)
    assert groups == LayerGroups((tuple(range(8)),), num_full=1, window=0)
    assert groups.num_windowed == 0


@pytest.mark.parametrize("window", [LONGEST, LONGEST + 1])
def test_a_window_that_holds_the_longest_sequence_is_none(window: int) -> None:
    assert LayerGroups.of([window] * 4, LONGEST) == LayerGroups.of([0] * 4, LONGEST)
    assert LayerGroups.of([512, window], LONGEST) == LayerGroups.of([512, 0], LONGEST)


def test_of_several_windows_the_largest_counts() -> None:
    groups = LayerGroups.of([0, 64, 512, LONGEST], LONGEST)
    assert groups == LayerGroups(((0, 3), (1, 2)), num_full=1, window=512)


@pytest.mark.parametrize(
    ("num_full", "num_windowed", "sizes"),
    [
        (1, 5, [1, 1, 1, 1, 1, 1]),  # nothing to pad
        (5, 6, [3, 2, 3, 3]),  # groups of 5 or 4 would waste 4 or 5 layers of 11
        (4, 22, [4, 4, 4, 4, 4, 4, 2]),  # 2 of 26 may be wasted
        (3, 4, [1] * 7),  # groups of 3 or 2 would waste 2 or 1 of 7
        (22, 4, [4, 4, 4, 4, 4, 2, 4]),
    ],
)
def test_groups_are_as_large_as_little_padding_allows(num_full: int, num_windowed: int, sizes: list[int]) -> None:
    groups = mixed(num_full, num_windowed)
    assert list(map(len, groups.members)) == sizes


@pytest.mark.parametrize(("num_full", "num_windowed"), MIXES)
def test_padding_wastes_at_most_a_tenth(num_full: int, num_windowed: int) -> None:
    groups = mixed(num_full, num_windowed)
    layers = num_full + num_windowed
    assert len(groups.members) * groups.layers_per_block - layers <= 0.1 * layers


@pytest.mark.parametrize(("num_full", "num_windowed"), MIXES)
def test_every_layer_is_in_one_group_of_its_kind(num_full: int, num_windowed: int) -> None:
    groups = mixed(num_full, num_windowed)
    full, windowed = groups.members[: groups.num_full], groups.members[groups.num_full :]
    assert [layer for members in full for layer in members] == list(range(num_full))
    assert [layer for members in windowed for layer in members] == list(range(num_full, num_full + num_windowed))


@pytest.mark.parametrize(("num_full", "num_windowed"), MIXES)
def test_a_layer_knows_its_group_and_its_place_there(num_full: int, num_windowed: int) -> None:
    groups = mixed(num_full, num_windowed)
    for layer in range(num_full + num_windowed):
        group, place = groups.group_of(layer)
        assert groups.members[group][place] == layer
        assert (group >= groups.num_full) == (layer >= num_full)


# ── footprint ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 17, 33])
def test_the_columns_in_sight_are_the_most_that_one_query_sees(window: int, block_size: int) -> None:
    sizes = footprint(1, 1, window=window, block_size=block_size)
    seen = [last // block_size - (last - window + 1) // block_size + 1 for last in range(window - 1, 10 * window + 99)]
    assert sizes.columns_in_sight == max(seen)


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("chunk", [1, 2, 7, 16])
def test_the_columns_of_a_step_are_enough_for_every_chunk(window: int, block_size: int, chunk: int) -> None:
    sizes = footprint(1, 1, window=window, block_size=block_size, max_chunk=chunk)
    for start in range(window - 1, 6 * block_size + window):
        touched = (start + chunk - 1) // block_size - (start - window + 1) // block_size + 1
        assert touched <= sizes.columns_of_step
    assert sizes.columns_of_step >= sizes.columns_in_sight


def test_full_groups_take_blocks_for_all_tokens_and_others_for_a_step() -> None:
    sizes = footprint(1, 3)  # a step needs 4 columns: 4 tokens before it, 8 of its own, and the alignment
    assert sizes.columns_of_step == 4
    assert [sizes.most_blocks(count) for count in (0, 1, 4, 5, 16, 17, 400)] == [0, 4, 4, 8, 16, 17, 100 + 12]


def test_without_full_groups_a_sequence_takes_no_more_than_a_step() -> None:
    sizes = footprint(0, 2)
    assert sizes.groups.num_windowed == 1
    assert [sizes.most_blocks(count) for count in (1, 16, 17, 4000)] == [1, 4, 4, 4]


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize(("num_full", "num_windowed"), [(1, 0), (1, 1), (1, 4), (2, 1), (3, 5)])
def test_the_longest_sequence_fits(num_full: int, num_windowed: int, chunk: int) -> None:
    sizes = footprint(num_full, num_windowed, max_chunk=chunk)
    for num_blocks in range(80):
        assert sizes.most_blocks(sizes.longest(num_blocks)) <= num_blocks


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize(("num_full", "num_windowed"), [(1, 1), (1, 4), (2, 1)])
def test_the_longest_sequence_is_the_longest_that_fits(num_full: int, num_windowed: int, chunk: int) -> None:
    sizes = footprint(num_full, num_windowed, max_chunk=chunk)
    for num_blocks in range(80):
        fits = [count for count in range(80 * 4) if sizes.most_blocks(count) <= num_blocks]
        assert sizes.longest(num_blocks) == max(fits), f"{num_blocks} blocks"


@pytest.mark.parametrize("num_blocks", [5, 7, 30])
def test_a_table_bounds_the_longest_sequence(num_blocks: int) -> None:
    sizes = footprint(0, 1)
    assert sizes.longest(num_blocks, most_columns=100) == 400
    assert sizes.longest(num_blocks) == MAX_COLUMNS * 4
    assert footprint(1, 1).longest(1000, most_columns=7) == 28
    assert footprint(1, 0).longest(1000, most_columns=7) == 28


def test_without_full_groups_blocks_for_one_step_do_for_any_length() -> None:
    sizes = footprint(0, 1)
    assert sizes.longest(sizes.columns_of_step, most_columns=100) == 400


def test_fewer_blocks_than_a_step_takes_hold_so_many_columns() -> None:
    assert footprint(0, 1).longest(3, most_columns=100) == 12
    assert footprint(1, 1).longest(7, most_columns=100) == 12
