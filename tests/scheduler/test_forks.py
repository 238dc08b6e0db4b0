"""Siblings: forked off when their prompt is complete, sharing all blocks until they write."""

from __future__ import annotations

import pytest
from engines import Engine, check_siblings, plain, prompt
from factories import greedy
from invariants import check_empty


def test_siblings_share_the_prompt_and_are_forked_with_their_first_token() -> None:
    engine = Engine()
    sampling = plain(6, n=3)
    engine.add(0, prompt(6), sampling)
    plan = engine.step()
    assert plan is not None
    assert plan.num_tokens == 6
    assert plan.sample_from.tolist() == [0, 0, 0]
    assert len(set(plan.sample_rows.tolist())) == 3
    assert engine.scheduler.manager.pool.counts.used == 2
    assert engine.scheduler.counters.forks == 2
    engine.run()
    check_siblings(engine, 0, prompt(6), sampling)
    check_empty(engine.scheduler)


def test_the_first_writers_of_a_shared_block_copy_it() -> None:
    engine = Engine()
    engine.add(0, prompt(6), plain(6, n=3))
    engine.step()
    plan = engine.step()
    assert plan is not None
    assert len(plan.copies) == 2
    assert len({copy.source for copy in plan.copies}) == 1
    assert len({copy.destination for copy in plan.copies}) == 2


def test_siblings_of_a_prompt_that_ends_with_its_block_copy_nothing() -> None:
    engine = Engine()
    sampling = plain(6, n=3)
    engine.add(0, prompt(8), sampling)
    engine.run()
    assert engine.scheduler.manager.copies == 0
    check_siblings(engine, 0, prompt(8), sampling)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_more_siblings_than_rows_take_turns(rows: int, *, caching: bool) -> None:
    engine = Engine(max_num_seqs=rows, caching=caching)
    sampling = plain(5, n=5)
    engine.add(0, prompt(6), sampling)
    engine.run()
    check_siblings(engine, 0, prompt(6), sampling)
    assert engine.scheduler.counters.forks == rows - 1
    check_empty(engine.scheduler)


def test_siblings_that_did_not_fit_come_before_later_requests() -> None:
    engine = Engine(max_num_seqs=2)
    engine.add(0, prompt(6), plain(4, n=4))
    engine.step()
    engine.add(1, prompt(6, start=20), plain(4))
    engine.run()
    assert list(engine.reasons)[-1] == (1, 0)


def test_a_crowded_pool_preempts_siblings_without_changing_them() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=4)
    sampling = plain(20, n=4)
    engine.add(0, prompt(6), sampling)
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.manager.copies > 0
    check_siblings(engine, 0, prompt(6), sampling)


def test_a_request_preempted_before_its_first_token_still_forks() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=4)
    engine.add(0, prompt(3), plain(20))
    engine.step()
    sampling = plain(3, n=2)
    engine.add(1, prompt(24, start=20), sampling)
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.forks == 1
    check_siblings(engine, 1, prompt(24, start=20), sampling)


def test_siblings_stop_one_by_one() -> None:
    engine = Engine(num_blocks=60, max_num_seqs=16, max_num_batched_tokens=64)
    sampling = greedy(40, n=16)
    engine.add(0, prompt(6), sampling)
    engine.run()
    check_siblings(engine, 0, prompt(6), sampling)
    assert {"stop", "length"} <= set(engine.reasons.values())
