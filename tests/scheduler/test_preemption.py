"""Preemption: who gives way, by swapping or recomputing, how often, and what is noted of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from engines import Engine, Pace, check_crowded, crowded, plain, prompt
from invariants import check_all, check_empty, expected

from octavo.block_manager.tiers import Tier
from octavo.config import TenantConfig
from octavo.scheduler.decisions import Method, PreemptionReason, PreemptionRecord
from octavo.scheduler.request import SequenceState
from octavo.scheduler.streams import stream_of

SLOW_COPIES = Pace(step=1e-3, prefill=1e-3, copy=1.0)
FAST_COPIES = Pace(step=1e-3, prefill=1e-3, copy=1e-5)


def test_preemption_changes_no_output() -> None:
    engine = crowded()
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    for key in range(3):
        assert engine.outputs[key, 0] == expected(prompt(7, start=key * 10), plain(12))
    check_empty(engine.scheduler)


def test_who_came_last_gives_way() -> None:
    engine = crowded()
    engine.step_until(SequenceState.PREEMPTED, 2)
    assert [engine.sequence(key).state for key in (0, 1)] == [SequenceState.RUNNING] * 2


def test_a_preempted_request_holds_no_blocks() -> None:
    engine = crowded()
    engine.step_until(SequenceState.PREEMPTED, 2)
    check_all(engine)


def test_a_preempted_request_returns_to_its_arrival_place_and_is_not_overtaken() -> None:
    engine = crowded()
    engine.add(3, prompt(1, start=50), plain(1))  # small enough to slip in anywhere
    victim = engine.step_until(SequenceState.PREEMPTED, 2)
    assert next(engine.scheduler.state.waiting.in_turn()) is victim
    while True:
        keys = engine.step_poisoned(())
        if 2 in keys:
            break
        assert 3 not in keys
    engine.run()
    assert engine.outputs[2, 0] == expected(prompt(7, start=20), plain(12))


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    engine = crowded()
    engine.add(3, prompt(1, start=50), plain(1))
    engine.step_until(SequenceState.PREEMPTED, 2)
    assert engine.scheduler.num_running == 2


def test_the_oldest_request_is_never_preempted_by_younger_ones() -> None:
    engine = crowded()
    first = engine.step_until(SequenceState.RUNNING, 0)
    engine.run()
    assert first.preemptions == 0


def test_what_a_preempted_request_computes_again_is_counted() -> None:
    engine = crowded(caching=False)
    engine.run()
    counters = engine.scheduler.counters
    assert counters.preemptions > 0
    assert counters.recomputed_tokens >= 7 * counters.preemptions


def test_a_preempted_request_tells_its_first_prefix_hit_once() -> None:
    engine = crowded()
    started: list[tuple[int, int]] = []
    take = engine.take

    def record(result: Any) -> None:
        started.extend(result.started)
        take(result)

    engine.take = record  # type: ignore[method-assign]
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert len(started) == 3


def test_a_sequence_that_gives_way_for_want_of_a_block_of_its_own_helps_nobody() -> None:
    engine = Engine(num_blocks=5, block_size=16, max_num_batched_tokens=128, watermark_ratio=0.0)
    engine.add(0, prompt(36), plain(12))  # never leaves its three blocks
    engine.add(1, prompt(30, start=20), plain(8))
    engine.step_until(SequenceState.PREEMPTED, 1)
    (record,) = engine.records()
    assert (record.victim, record.beneficiary) == (stream_of(1, 0), None)


def test_otherwise_the_first_that_needs_a_block_is_named_as_who_gets_it() -> None:
    engine = crowded()
    engine.step_until(SequenceState.PREEMPTED, 2)
    (record,) = engine.records()
    assert (record.victim, record.beneficiary) == (stream_of(2, 0), stream_of(0, 0))


# ── who gives way ───────────────────────────────────────────────────────────────────────────────────────────


def side_by_side(*lengths: int, **limits: Any) -> Engine:
    """Requests 0, 1, 2 … with prompts of these lengths that run, and have plenty of room."""
    size: dict[str, Any] = {"num_blocks": 64, "max_num_seqs": 8, "max_num_batched_tokens": 256}
    engine = Engine(**{**size, **limits})
    for key, length in enumerate(lengths):
        engine.add(key, prompt(length, start=7 * key), plain(20))
    engine.step()
    return engine


def chosen(engine: Engine, short: int, eligible: Iterable[int] | None = None) -> int | None:
    """The request that would give way for so many blocks."""
    keys = engine.running() if eligible is None else eligible
    victim = engine.scheduler._preemption.choose([engine.sequence(key) for key in keys], short)
    return None if victim is None else victim.request.key


def test_of_equals_the_last_gives_way() -> None:
    assert chosen(side_by_side(8, 8, 8), short=1) == 2


def test_who_has_least_to_compute_again_gives_way() -> None:
    assert chosen(side_by_side(40, 8, 40), short=1) == 1


def test_who_wins_more_blocks_for_the_same_cost_gives_way() -> None:
    engine = side_by_side(8, 8)
    engine.scheduler.rows.num_computed[engine.sequence(0).row] = 2  # as if its blocks were hardly filled
    engine.scheduler.rows.num_computed[engine.sequence(1).row] = 2
    assert chosen(engine, short=2) == 1
    for _ in range(3):
        engine.scheduler.manager.grow([engine.sequence(0).row])
    assert chosen(engine, short=5) == 0  # more than twice the blocks, and age counts for no more than that


def test_no_more_blocks_count_as_won_than_are_short() -> None:
    engine = side_by_side(16, 8, 8)
    engine.scheduler.rows.num_computed[engine.sequence(0).row] = 6  # cheaper than 8 tokens, older, and wins 4 blocks
    assert chosen(engine, short=4) == 0
    assert chosen(engine, short=2) == 2


def test_who_gave_way_before_is_spared_for_a_while() -> None:
    engine = side_by_side(8, 8, 8)
    engine.sequence(2).preemptions = 1
    assert chosen(engine, short=1) == 1
    engine.sequence(1).preemptions = 1
    engine.sequence(0).preemptions = 1
    assert chosen(engine, short=1) == 2


def test_the_older_a_sequence_the_more_its_loss_counts_up_to_twice() -> None:
    assert chosen(side_by_side(12, 16), short=1) == 1  # 12 tokens count twice
    assert chosen(side_by_side(8, 20), short=1) == 0  # 8 tokens, even twice, are fewer than 20


def test_who_would_win_nothing_does_not_give_way() -> None:
    engine = Engine()
    engine.add(0, prompt(8), plain(20))
    engine.add(1, prompt(8, start=30), plain(20, n=2))  # the siblings share all they have
    engine.step()
    assert chosen(engine, short=1) == 0


def test_who_gave_way_as_often_as_it_may_is_not_chosen() -> None:
    engine = side_by_side(8, 8, max_preemptions=2)
    engine.sequence(1).preemptions = 2
    assert chosen(engine, short=1) == 0
    engine.sequence(0).preemptions = 2
    assert chosen(engine, short=1) is None


def test_nobody_is_chosen_of_nobody() -> None:
    assert chosen(side_by_side(8), short=1, eligible=[]) is None


def test_by_priority_only_the_least_urgent_are_chosen_from() -> None:
    engine = Engine(policy="priority", num_blocks=64, max_num_batched_tokens=128)
    for key, (priority, length) in enumerate(((0, 4), (3, 40), (3, 36))):
        engine.add(key, prompt(length, start=7 * key), plain(20), priority=priority)
    engine.step()
    assert chosen(engine, short=1) == 2
    engine.sequence(2).preemptions = engine.scheduler.config.max_preemptions
    assert chosen(engine, short=1) == 1


def test_where_copies_are_cheap_a_swap_counts_what_it_costs() -> None:
    engine = side_by_side(40, 8, host_blocks=64)
    assert chosen(engine, short=2) == 1  # to be computed again: 40 tokens, or 8
    engine.learn(FAST_COPIES, Tier.HOST)
    engine.scheduler.manager.grow([engine.sequence(1).row])  # 10 blocks to copy, or 3 that win no more than 2
    assert chosen(engine, short=10) == 1
    engine.sequence(1).preemptions = 2
    assert chosen(engine, short=10) == 0  # 10 blocks for 10, against three times 3 for 3


def test_the_first_in_order_gives_way_only_if_all_others_may_not() -> None:
    engine = crowded(max_preemptions=1, num_blocks=9)
    engine.run()
    check_crowded(engine)
    victims = [record.victim for record in engine.records()]
    assert victims
    assert stream_of(0, 0) not in victims
    lone = crowded(max_preemptions=1, num_blocks=8)
    for key in (1, 2):
        lone.step_until(SequenceState.RUNNING, key)
        lone.sequence(key).preemptions = 1  # as if both had given way already
    lone.step_until(SequenceState.PREEMPTED, 0)


def test_only_sequences_whose_leaving_helps_a_tenant_give_way_to_it() -> None:
    engine = Engine(num_blocks=16, tenants=[TenantConfig(name="a", ceiling=4)])
    engine.add(0, prompt(7), plain(9), tenant="a")
    engine.add(1, prompt(7, start=20), plain(9), tenant="a")
    engine.add(2, prompt(7, start=40), plain(9))
    engine.run()
    assert {record.victim for record in engine.records()} == {stream_of(1, 0)}


def test_nobody_gives_way_below_its_tenants_floor() -> None:
    engine = Engine(num_blocks=10, tenants=[TenantConfig(name="a", floor=4)])
    for key in range(2):
        engine.add(key, prompt(7, start=key * 20), plain(9))
    engine.add(2, prompt(7, start=40), plain(9), tenant="a")
    engine.run()
    assert {record.victim for record in engine.records()} == {stream_of(1, 0)}


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
@pytest.mark.parametrize("seed", range(8))
def test_nobody_gives_way_more_often_than_is_allowed(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    most = rng.choice([1, 2, 3])
    engine = Engine(
        num_blocks=rng.choice([6, 9]),
        max_num_seqs=4,
        max_preemptions=most,
        host_blocks=rng.choice([0, 8]),
        preemption=rng.choice(["swap", "recompute"]),
        policy=policy,
        tenants=[TenantConfig(name="a", floor=rng.choice([0, 2]))],
    )
    waiting = 60
    while waiting or engine.scheduler.has_work:
        for _ in range(min(waiting, rng.choice([0, 0, 1, 2]))):
            tokens, tenant = [waiting, *prompt(rng.randint(1, 8))], rng.choice(["", "a"])
            waiting -= 1
            engine.add(waiting, tokens, plain(rng.randint(1, 8)), priority=rng.randrange(3), tenant=tenant)
        engine.step()
    check_empty(engine.scheduler)
    times = Counter(record.victim for record in engine.records())
    assert times
    assert max(times.values()) <= most


# ── by which method ─────────────────────────────────────────────────────────────────────────────────────────


def after_preemption(pace: Pace | None, *, caching: bool = True, **limits: Any) -> tuple[Engine, PreemptionRecord]:
    """Runs until the first preemption, with costs known beforehand if there is a pace."""
    engine = crowded(**{"host_blocks": 16, "caching": caching, **limits})
    if pace is not None:
        engine.learn(pace, *engine.scheduler.manager.tiers.existing)
    return engine, engine.step_until_preempted()[0]


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(
    ("pace", "method"),
    [
        pytest.param(SLOW_COPIES, Method.RECOMPUTE, id="slow copies"),
        pytest.param(FAST_COPIES, Method.SWAP, id="fast copies"),
        pytest.param(None, Method.RECOMPUTE, id="unknown"),
    ],
)
def test_what_is_predicted_to_cost_less_is_done(pace: Pace | None, method: Method, *, caching: bool) -> None:
    engine, record = after_preemption(pace, caching=caching)
    assert record.method is method
    state = engine.sequence(2).state
    assert state is (SequenceState.SWAPPED if method is Method.SWAP else SequenceState.PREEMPTED)
    assert engine.scheduler.num_swapped == (method is Method.SWAP)
    engine.run()
    check_crowded(engine)
    check_empty(engine.scheduler)


def test_a_method_whose_cost_is_half_known_is_not_chosen() -> None:
    engine = crowded(host_blocks=16)
    engine.learn(FAST_COPIES)  # steps were measured and copies were not
    engine.step_until(SequenceState.PREEMPTED, 2)
    assert engine.records()[0].predicted_swap is None
    assert engine.records()[0].predicted_recompute is not None


@pytest.mark.parametrize("pace", [SLOW_COPIES, FAST_COPIES, None])
@pytest.mark.parametrize(("mode", "method"), [("swap", Method.SWAP), ("recompute", Method.RECOMPUTE)])
def test_a_mode_can_be_forced(mode: str, method: Method, pace: Pace | None) -> None:
    engine, _ = after_preemption(pace, preemption=mode)
    engine.run()
    check_crowded(engine)
    assert {record.method for record in engine.records()} == {method}
    assert (engine.scheduler.manager.tiers.copied[Tier.HOST, Tier.DEVICE] > 0) == (
        method is Method.SWAP or pace is not SLOW_COPIES  # what sank comes back, too
    )


def test_without_any_tier_below_nothing_is_swapped() -> None:
    engine, _ = after_preemption(FAST_COPIES, host_blocks=0, preemption="swap")
    engine.run()
    check_crowded(engine)
    assert {record.method for record in engine.records()} == {Method.RECOMPUTE}
    assert engine.scheduler.state.decisions.swap_full == 0


@pytest.mark.parametrize("mode", ["swap", "auto"])
def test_where_swap_space_is_too_small_the_victim_is_recomputed_and_that_is_counted(mode: str) -> None:
    engine, record = after_preemption(FAST_COPIES, host_blocks=1, preemption=mode)
    assert record.method is Method.RECOMPUTE
    assert engine.scheduler.state.decisions.swap_full == 1
    engine.run()
    check_crowded(engine)


@pytest.mark.parametrize("mode", ["swap", "auto"])
def test_where_swap_space_is_full_the_victim_is_recomputed_and_that_is_counted(mode: str) -> None:
    engine = Engine(num_blocks=8, max_num_seqs=4, host_blocks=2, caching=False, preemption=mode)
    engine.learn(FAST_COPIES, Tier.HOST)
    for key in range(4):
        engine.add(key, prompt(5, start=key * 10), plain(20))
    records = engine.step_until_preempted(2)
    assert [record.method for record in records[:2]] == [Method.SWAP, Method.RECOMPUTE]
    assert engine.scheduler.state.decisions.swap_full == 1
    engine.run()


def test_what_does_not_fit_into_host_memory_goes_to_disk() -> None:
    engine, record = after_preemption(FAST_COPIES, host_blocks=1, disk_blocks=8, preemption="swap")
    assert record.method is Method.SWAP
    swapped = engine.sequence(2).swapped
    assert swapped is not None
    assert {place.tier for place in swapped.held} == {Tier.HOST, Tier.DISK}
    engine.run()
    check_crowded(engine)


def test_a_swapped_sequence_computes_nothing_again() -> None:
    engine, _ = after_preemption(None, preemption="swap", caching=False)
    engine.run()
    counters = engine.scheduler.counters
    assert counters.recomputed_tokens == 0
    assert counters.swapped_tokens == sum(record.tokens for record in engine.records())


@pytest.mark.parametrize("steps", [0, 1])
def test_aborting_a_swapped_request_gives_its_copies_up(steps: int) -> None:
    engine, _ = after_preemption(None, preemption="swap")
    for _ in range(steps):
        engine.step()
    engine.scheduler.abort(2)
    check_all(engine)
    assert engine.scheduler.manager.tiers.counts(Tier.HOST).used == 0
    engine.run()


# ── what is noted ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_preemption_notes_both_predictions() -> None:
    pace = Pace(prefill=1e-3, copy=5e-4)
    _, record = after_preemption(pace, caching=False)
    assert (record.reason, record.victim) == (PreemptionReason.GROWTH, stream_of(2, 0))
    assert (record.tokens, record.blocks) == (8, 2)
    assert record.predicted_swap == pytest.approx(2 * 2 * 5e-4)
    assert record.predicted_recompute == pytest.approx(8 * 1e-3, rel=1e-3)


def test_blocks_that_others_use_are_lost_in_no_case() -> None:
    pace = Pace(prefill=1e-3, copy=2e-4)
    engine = Engine(num_blocks=16, host_blocks=16)
    engine.learn(pace, Tier.HOST)
    for key in range(2):
        engine.add(key, [*prompt(8), 30 + key, 40], plain(8))
    engine.step()
    # Both share two blocks, and a third is the second one's own; 10 tokens, 8 of them in shared blocks.
    swap, recompute = engine.scheduler._preemption.predict(engine.sequence(1).row)
    assert swap == pytest.approx(1 * 2 * 2e-4)
    assert recompute == pytest.approx(2 * 1e-3, rel=1e-3)


def test_where_blocks_sink_recomputing_brings_them_back_from_below() -> None:
    pace = Pace(prefill=1e-3, copy=2e-4)
    engine = Engine(num_blocks=16, host_blocks=16)
    engine.learn(pace, Tier.HOST)
    engine.add(0, prompt(10), plain(8))
    engine.step()
    # Two full blocks come back from below, and only the third one's two tokens are computed.
    _, recompute = engine.scheduler._preemption.predict(engine.sequence(0).row)
    assert recompute == pytest.approx(2 * 2 * 2e-4 + 2 * 1e-3, rel=1e-3)


def comes_back_alone(pace: Pace, mode: str) -> PreemptionRecord:
    """Request 1 gives way to request 0 and comes back when that has ended."""
    engine = Engine(num_blocks=5, max_num_seqs=2, caching=False, host_blocks=8, preemption=mode)
    engine.learn(pace, Tier.HOST)
    engine.add(0, prompt(7), plain(10))
    engine.add(1, prompt(6, start=20), plain(10))
    engine.run()
    assert engine.outputs[1, 0] == expected(prompt(6, start=20), plain(10))
    (record,) = engine.records()
    assert record.victim == stream_of(1, 0)
    return record


def test_a_swap_costs_what_its_copies_took() -> None:
    record = comes_back_alone(Pace(step=1e-3, prefill=1e-3, copy=5e-4), "swap")
    assert record.actual == pytest.approx(2 * record.blocks * 5e-4)
    assert record.actual == record.predicted_swap
    assert (record.kept_tokens, record.recomputed_tokens) == (record.tokens, 0)


def test_a_recomputation_costs_its_share_of_the_steps_in_which_it_is_done() -> None:
    record = comes_back_alone(Pace(prefill=1e-3, copy=5e-4), "recompute")
    assert (record.kept_tokens, record.recomputed_tokens) == (0, record.tokens)
    assert record.actual == pytest.approx(record.tokens * 1e-3)
    assert record.actual == pytest.approx(record.predicted_recompute, rel=1e-3)


def test_a_recomputation_in_several_chunks_is_added_up() -> None:
    engine = Engine(num_blocks=12, max_num_seqs=2, max_num_batched_tokens=5, caching=False)
    engine.learn(Pace(prefill=1e-3))
    engine.add(0, prompt(20), plain(14))
    engine.add(1, prompt(14, start=20), plain(14))
    engine.run()
    (record,) = engine.records()
    assert record.recomputed_tokens == record.tokens > 5
    assert record.actual == pytest.approx(record.tokens * 1e-3, rel=0.01)


def test_it_is_noted_how_long_the_victim_waited() -> None:
    engine = Engine(num_blocks=5, max_num_seqs=2)
    engine.add(0, prompt(7), plain(10))
    engine.add(1, prompt(6, start=20), plain(10))
    engine.step_until(SequenceState.PREEMPTED, 1)
    (record,) = engine.records()
    assert record.waited is None
    engine.now += 7.5
    engine.run()
    assert record.waited == 7.5


def test_preemptions_are_counted_by_method_and_reason() -> None:
    engine, _ = after_preemption(None, preemption="swap")
    engine.run()
    decisions = engine.scheduler.state.decisions
    assert decisions.preemptions_by == {(Method.SWAP, PreemptionReason.GROWTH): engine.scheduler.counters.preemptions}
