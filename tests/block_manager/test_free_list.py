"""FreeList: order, O(1) removal, and no Python object per block."""

from __future__ import annotations

import random

import pytest

from octavo.block_manager.free_list import FreeList
from octavo.block_manager.loops import NULL_BLOCK


def test_all_blocks_but_the_null_block_are_free_at_first() -> None:
    free = FreeList(3)
    assert len(free) == 3
    assert list(free) == [1, 2, 3]
    assert NULL_BLOCK not in list(free)


def test_blocks_are_given_out_from_the_head() -> None:
    free = FreeList(3)
    assert free.pop(3).tolist() == [1, 2, 3]
    assert len(free) == 0
    assert list(free) == []


def test_a_block_pushed_to_the_head_is_the_next_one_out() -> None:
    free = FreeList(3)
    free.remove(2)
    free.push_head(2)
    assert list(free) == [2, 1, 3]
    assert free.pop(1)[0] == 2


def test_a_block_pushed_to_the_tail_is_the_last_one_out() -> None:
    free = FreeList(3)
    free.remove(1)
    free.push_tail(1)
    assert list(free) == [2, 3, 1]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_can_be_removed_from_any_place(block: int) -> None:
    free = FreeList(3)
    free.remove(block)
    assert block not in free
    assert len(free) == 2
    assert list(free) == [b for b in (1, 2, 3) if b != block]


def test_an_emptied_list_fills_again() -> None:
    free = FreeList(1)
    free.pop(1)
    free.push_tail(1)
    assert list(free) == [1]
    assert free.pop(1)[0] == 1


def test_taking_from_an_empty_list_is_our_bug() -> None:
    free = FreeList(1)
    free.pop(1)
    with pytest.raises(AssertionError, match="pop of 1 from a free list of 0"):
        free.pop(1)


def test_taking_a_block_twice_is_our_bug() -> None:
    free = FreeList(2)
    free.remove(2)
    with pytest.raises(AssertionError, match="block 2 is not free"):
        free.remove(2)


def test_freeing_a_block_twice_is_our_bug() -> None:
    free = FreeList(2)
    with pytest.raises(AssertionError, match="block 2 is free already"):
        free.push_head(2)


def test_it_behaves_like_a_plain_list() -> None:
    rng = random.Random(0)
    free, model = FreeList(8), list(range(1, 9))
    for _ in range(2_000):
        out = [block for block in range(1, 9) if block not in model]
        action = rng.choice(["pop", "remove", "head", "tail"])
        if action == "pop" and model:
            assert free.pop(1)[0] == model.pop(0)
        elif action == "remove" and model:
            block = rng.choice(model)
            model.remove(block)
            free.remove(block)
        elif action == "head" and out:
            model.insert(0, rng.choice(out))
            free.push_head(model[0])
        elif action == "tail" and out:
            model.append(rng.choice(out))
            free.push_tail(model[-1])
        assert list(free) == model
        assert len(free) == len(model)
        assert all((block in free) == (block in model) for block in range(1, 9))


def test_bookkeeping_is_eight_bytes_a_block() -> None:
    assert FreeList(1000).nbytes == 8 * 1001
