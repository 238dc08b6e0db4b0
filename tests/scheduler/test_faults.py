"""Failed steps, whose culprit alone fails, and transfers that did not arrive."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from engines import Engine, check_siblings, crowded, plain, prompt
from invariants import check_all, check_empty, expected

from octavo.block_manager.tiers import Tier, Transfer
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.request import SequenceState


def test_a_step_that_fails_with_one_culprit_fails_only_the_culprit() -> None:
    engine = crowded(num_blocks=30)
    engine.step()
    while engine.scheduler.has_work:
        engine.step_poisoned({1})
    assert engine.reasons == {(0, 0): "length", (1, 0): "error", (2, 0): "length"}
    for key in (0, 2):
        assert engine.outputs[key, 0] == expected(prompt(7, start=key * 10), plain(12))
    check_empty(engine.scheduler)


def test_after_a_failed_step_its_members_run_alone_once() -> None:
    engine = crowded(num_blocks=30)
    engine.step()
    assert engine.step_poisoned({1}) == [0, 1, 2]
    assert [engine.step_poisoned({1}) for _ in range(3)] == [[0], [1], [2]]
    assert engine.step_poisoned({1}) == [0, 2]


def test_a_step_that_fails_once_by_chance_fails_nobody() -> None:
    engine = crowded(num_blocks=30)
    engine.step()
    engine.step_poisoned({0, 1, 2})
    engine.run()
    for key in range(3):
        assert engine.outputs[key, 0] == expected(prompt(7, start=key * 10), plain(12))


def test_a_failed_steps_blocks_are_not_taken_for_computed() -> None:
    engine = Engine()
    engine.add(0, prompt(10), plain(2))
    engine.add(1, prompt(10), plain(2))
    engine.step_poisoned({0, 1})  # 1 shared blocks that 0 was about to fill
    assert engine.scheduler.manager.pool.counts.cached == 0
    engine.run()
    assert engine.outputs[0, 0] == engine.outputs[1, 0] == expected(prompt(10), plain(2))


def test_what_earlier_steps_computed_is_still_cached_after_a_failed_one() -> None:
    engine = crowded(num_blocks=30)
    engine.step()
    engine.step_poisoned({1})
    assert engine.scheduler.manager.pool.counts.cached == 3
    plan = engine.scheduler.schedule()
    assert plan is not None
    assert plan.starts.tolist() == [4]
    engine.take(engine.scheduler.update(plan, engine.runner.execute(plan)))


def test_a_failure_carries_the_error_text() -> None:
    engine = Engine()
    engine.add(3, prompt(4))
    plan = engine.scheduler.schedule()
    assert plan is not None
    (finished,) = engine.scheduler.fail(plan, "ValueError: bad").finished
    assert (finished.stream, str(finished.reason), finished.error) == (3 * 128, "error", "ValueError: bad")
    check_empty(engine.scheduler)


def test_a_step_that_fails_while_it_forks_starts_its_siblings_over() -> None:
    engine = Engine()
    sampling = plain(6, n=3)
    engine.add(0, prompt(6), sampling)
    engine.add(1, prompt(6, start=20), plain(6))
    engine.step_poisoned({1})
    engine.step_poisoned({1})
    while engine.scheduler.has_work:
        engine.step_poisoned({1})
    check_siblings(engine, 0, prompt(6), sampling)
    assert engine.reasons[1, 0] == "error"


def test_a_step_that_fails_after_copy_on_write_changes_no_output() -> None:
    engine = Engine()
    sampling = plain(6, n=3)
    engine.add(0, prompt(6), sampling)
    engine.step()
    plan = engine.scheduler.schedule()
    assert plan is not None
    assert plan.copies
    engine.take(engine.scheduler.fail(plan, "boom"))
    check_all(engine)
    engine.run()
    check_siblings(engine, 0, prompt(6), sampling)


def test_a_culprit_takes_its_siblings_along() -> None:
    engine = Engine()
    engine.add(0, prompt(6), plain(6, n=3))
    engine.add(1, prompt(6, start=20), plain(6))
    engine.step()
    while engine.scheduler.has_work:
        engine.step_poisoned({0})
    assert engine.scheduler.state.finished == {"error": 3, "length": 1}
    assert engine.outputs[1, 0] == expected(prompt(6, start=20), plain(6))


def test_a_suspect_gets_the_room_it_needs_from_younger_sequences() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=2)
    engine.add(0, prompt(12), plain(12))
    engine.add(1, prompt(12, start=20), plain(12))
    engine.step()
    engine.step_poisoned({0})
    engine.run()
    for key, start in ((0, 0), (1, 20)):
        assert engine.outputs[key, 0] == expected(prompt(12, start=start), plain(12))


def test_a_sequence_that_fails_again_and_again_but_never_alone_is_given_up() -> None:
    engine = crowded(num_blocks=30)
    for _ in range(200):
        plan = engine.scheduler.schedule()
        if plan is None:
            break
        alone = len(plan.rows) == 1
        sampled = engine.runner.execute(plan) if alone else None
        engine.take(engine.scheduler.fail(plan, "boom") if sampled is None else engine.scheduler.update(plan, sampled))
        check_all(engine)
    assert set(engine.reasons.values()) == {"error"}
    check_empty(engine.scheduler)


def test_one_culprit_after_another_never_fails_the_innocent() -> None:
    engine = Engine(num_blocks=40)
    engine.add(0, prompt(3), plain(30))
    for culprit in range(1, 6):
        engine.add(culprit, prompt(2, start=10 * culprit), plain(8))
        while (culprit, 0) not in engine.reasons:
            engine.step_poisoned({culprit})
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(3), plain(30))
    assert engine.reasons == {(0, 0): "length"} | {(culprit, 0): "error" for culprit in range(1, 6)}


# ── lost transfers ──────────────────────────────────────────────────────────────────────────────────────────

Direction = tuple[Tier, Tier]
SWAP_IN = (Tier.HOST, Tier.DEVICE)
SWAP_OUT = SINK = (Tier.DEVICE, Tier.HOST)
SINK_FURTHER = (Tier.HOST, Tier.DISK)
FROM_DISK = (Tier.DISK, Tier.DEVICE)


def directions(plan: StepPlan) -> set[Direction]:
    return {(transfer.source, transfer.target) for transfer in plan.transfers}


def step_losing(engine: Engine, lost_directions: Collection[Direction]) -> tuple[StepPlan, StepPlan | None]:
    """One step in which nothing arrives in these directions: what was planned, and what was left of it."""
    plan = engine.scheduler.schedule()
    assert plan is not None
    lost: list[Transfer] = []
    for transfer in plan.transfers:
        garbage = transfer[:2] in [other[2:] for other in lost]
        arrives = not garbage and (transfer.source, transfer.target) not in lost_directions
        lost += engine.runner.transfer([transfer], lambda arrives=arrives: arrives)  # type: ignore[misc]
    left = engine.scheduler.lose(plan, lost) if lost else plan
    if left is not None:
        engine.take(engine.scheduler.update(left, engine.runner.execute(left)))
    check_all(engine)
    return plan, left


REQUESTS = ((prompt(1, start=50), plain(30)), (prompt(11), plain(10)), (prompt(11, start=20), plain(10)))


def about_to_swap() -> Engine:
    """Request 0 is small and runs for long; request 2 will be swapped out until request 1 has ended."""
    engine = Engine(num_blocks=9, host_blocks=8, preemption="swap", caching=False)
    for key, (tokens, sampling) in enumerate(REQUESTS):
        engine.add(key, tokens, sampling)
    return engine


def swapped_out() -> Engine:
    engine = about_to_swap()
    engine.step_until(SequenceState.SWAPPED, 2)
    return engine


def step_until_lost(engine: Engine, direction: Direction) -> tuple[StepPlan, StepPlan | None]:
    """Steps until something is copied in this direction and does not arrive: what was planned, and what was left."""
    for _ in range(200):
        plan, left = step_losing(engine, [direction])
        if direction in directions(plan):
            return plan, left
    raise AssertionError(f"nothing was ever copied {direction}")


def check_outputs(engine: Engine) -> None:
    engine.run()
    for key, (tokens, sampling) in enumerate(REQUESTS):
        assert engine.outputs[key, 0] == expected(tokens, sampling)
    check_empty(engine.scheduler)


def test_a_lost_swap_in_starts_over_and_nobody_who_ran_before_does() -> None:
    engine = swapped_out()
    while (1, 0) not in engine.reasons:
        engine.step()
    said = len(engine.outputs[0, 0])
    plan, left = step_until_lost(engine, SWAP_IN)
    assert left is not None
    assert len(plan.rows) == len(left.rows) + 1
    assert engine.running() == [0]
    assert engine.sequence(2).state is SequenceState.PREEMPTED
    assert len(engine.outputs[0, 0]) == said + 1
    check_outputs(engine)
    assert engine.scheduler.counters.recomputed_tokens > 0


def test_everybody_who_was_let_in_with_a_lost_step_starts_over() -> None:
    engine = swapped_out()
    while (1, 0) not in engine.reasons:
        engine.step()
    engine.add(3, prompt(2, start=40), plain(3))  # will be let in behind request 2
    plan, _ = step_until_lost(engine, SWAP_IN)
    assert len(plan.rows) == 3
    assert engine.running() == [0]
    assert [engine.sequence(key).state for key in (2, 3)] == [SequenceState.PREEMPTED] * 2
    check_outputs(engine)
    assert engine.outputs[3, 0] == expected(prompt(2, start=40), plain(3))


def test_what_is_left_of_a_plan_is_the_same_work_for_the_others() -> None:
    plan, left = step_until_lost(swapped_out(), SWAP_IN)
    assert left is not None
    assert left.number == plan.number
    assert left.transfers == ()
    kept = [plan.rows.tolist().index(row) for row in left.rows.tolist()]
    assert left.starts.tolist() == plan.starts[kept].tolist()
    assert left.query_lens.tolist() == plan.query_lens[kept].tolist()
    assert left.rows[left.sample_from].tolist() == left.sample_rows.tolist()
    assert left.num_decodes == int((left.query_lens == 1).sum())


def test_if_nobody_else_ran_nothing_is_left_of_the_plan() -> None:
    engine = swapped_out()
    for key in (0, 1):
        engine.scheduler.abort(key)
    _, left = step_losing(engine, [SWAP_IN])
    assert left is None
    engine.run()
    assert engine.outputs[2, 0] == expected(*REQUESTS[2])


def test_a_lost_swap_out_makes_the_victim_compute_again() -> None:
    engine = about_to_swap()
    plan, left = step_until_lost(engine, SWAP_OUT)
    assert left is plan
    assert engine.sequence(2).state is SequenceState.PREEMPTED
    assert engine.scheduler.manager.tiers.counts(Tier.HOST).used == 0
    check_outputs(engine)
    assert engine.scheduler.counters.swapped_tokens == 0


def flushed(**limits: Any) -> Engine:
    """Request 0 has ended, and what it computed has sunk: to disk, if there is one."""
    engine = Engine(**{"num_blocks": 4, "max_num_batched_tokens": 64, "host_blocks": 4, **limits})
    for key in range(4):
        engine.add(key, prompt(13, start=key * 13), plain(1))
        engine.run()
    return engine


def returns(engine: Engine, key: int) -> None:
    """A request with the prompt of request 0."""
    engine.add(key, prompt(13), plain(3))


def test_what_sank_is_a_hit() -> None:
    for limits, direction in (({"host_blocks": 16}, SWAP_IN), ({"disk_blocks": 16}, FROM_DISK)):
        engine = flushed(**limits)
        returns(engine, 10)
        plan = engine.step()
        assert plan is not None
        assert direction in directions(plan)
        engine.run()
        assert engine.cached[10, 0] == 12


def test_a_lost_sink_is_harmless_and_only_a_miss_later() -> None:
    engine = Engine(num_blocks=4, max_num_batched_tokens=64, host_blocks=16)
    for key in range(4):
        engine.add(key, prompt(13, start=key * 13), plain(1))
        while engine.scheduler.has_work:
            plan, left = step_losing(engine, [SINK])
            assert left is plan
    assert engine.scheduler.manager.tiers.lost > 0
    returns(engine, 10)
    engine.run()
    assert engine.cached[10, 0] == 0
    assert engine.outputs[10, 0] == expected(prompt(13), plain(3))


def test_a_lost_block_on_disk_is_a_miss_from_then_on() -> None:
    engine = flushed(disk_blocks=16)
    returns(engine, 10)
    plan, left = step_losing(engine, [FROM_DISK])
    assert FROM_DISK in directions(plan)
    assert left is None
    again, _ = step_losing(engine, [])
    assert FROM_DISK not in directions(again)
    engine.run()
    assert engine.outputs[10, 0] == expected(prompt(13), plain(3))


def test_what_was_garbage_on_its_way_to_disk_is_a_miss() -> None:
    engine = Engine(num_blocks=4, max_num_batched_tokens=64, host_blocks=4, disk_blocks=16)
    for key in range(4):
        engine.add(key, prompt(13, start=key * 13), plain(1))
        while engine.scheduler.has_work:
            step_losing(engine, [SINK_FURTHER])
    returns(engine, 10)
    engine.run()
    assert engine.cached[10, 0] == 0
    assert engine.outputs[10, 0] == expected(prompt(13), plain(3))


def test_what_was_promoted_behind_a_block_that_a_failed_step_was_to_fill_is_taken_back() -> None:
    engine = flushed(num_blocks=8, host_blocks=16)
    manager = engine.scheduler.manager
    manager.pool.release(manager.pool.take_many(8))
    root = manager.cache.content_of(manager.cache.namespaces.id_of((0, "")))
    first = root.followed_by(np.array(prompt(4), dtype=np.int32).tobytes())
    place = manager.tiers.find(first.digest)
    assert place is not None
    manager.tiers.forget(place)
    engine.add(10, prompt(5), plain(2))
    returns(engine, 11)
    plan = engine.scheduler.schedule()
    assert plan is not None
    engine.transfer(plan)
    assert set(engine.keys(plan)) == {10, 11}
    assert len(manager.cache) == 3  # what 10 is to compute, and two blocks behind it that 11 got back
    engine.fail(plan)
    check_all(engine)
    assert len(manager.cache) == 0
    engine.run()
    assert engine.outputs[11, 0] == expected(prompt(13), plain(3))


def test_siblings_that_would_have_been_forked_in_a_lost_step_wait_like_new_ones() -> None:
    engine = flushed(num_blocks=8, host_blocks=16)
    engine.add(10, prompt(13), sampling := plain(3, n=3))
    plan, left = step_losing(engine, [SWAP_IN])
    assert len(plan.sample_rows) == 3
    assert left is None
    assert engine.scheduler.num_waiting == 3
    engine.run()
    check_siblings(engine, 10, prompt(13), sampling)


def test_lost_transfers_are_counted() -> None:
    engine = swapped_out()
    plan, _ = step_until_lost(engine, SWAP_IN)
    lost = sum((transfer.source, transfer.target) == SWAP_IN for transfer in plan.transfers)
    assert engine.scheduler.manager.tiers.lost == lost > 0
