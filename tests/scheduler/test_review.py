"""What a review of the scheduler found, each as it was found."""

from __future__ import annotations

import numpy as np
import pytest
from factories import OracleEngine, greedy, make_scheduler
from invariants import check_empty, check_sequences

from octavo.config import TenantConfig
from octavo.errors import InvalidRequestError
from octavo.scheduler.decisions import PreemptionReason
from octavo.scheduler.plan import Sampled
from octavo.scheduler.streams import stream_of


def test_a_suspected_search_waits_until_all_its_rows_are_free() -> None:
    engine = OracleEngine(make_scheduler(num_blocks=60, max_num_seqs=4, max_num_batched_tokens=4))
    engine.add(0, [2] * 3, greedy(4, beam_width=3, ignore_eos=True))
    engine.add(1, [1] * 4, greedy(4, n=4, ignore_eos=True))
    plan = engine.scheduler.schedule()
    assert plan is not None
    engine.scheduler.fail(plan, "boom")
    engine.run()
    assert set(engine.reasons.values()) == {"length"}
    check_empty(engine.scheduler)


def test_a_tenants_own_pin_gives_way_while_others_run() -> None:
    tenants = (TenantConfig(name="a", ceiling=8),)
    engine = OracleEngine(make_scheduler(num_blocks=40, max_num_seqs=2, tenants=tenants, pin_ratio=0.5))
    engine.add(0, list(range(24)), greedy(1), tenant="a", pin_ttl=1e9)
    engine.run()
    assert engine.scheduler.manager.pins.num_blocks == 6
    engine.add(1, [60] * 9, greedy(3, ignore_eos=True), tenant="a")
    for key in range(2, 12):
        engine.add(key, [key] * 5, greedy(8, ignore_eos=True))
        engine.step()
        engine.step()
    assert engine.reasons.get((1, 0)) == "length"
    assert engine.scheduler.counters.pins_dropped == 1


def test_a_search_for_which_nothing_is_possible_is_an_error_and_not_silence() -> None:
    scheduler = make_scheduler()
    scheduler.add(0, [1, 2, 3], greedy(4, beam_width=2))
    plan = scheduler.schedule()
    assert plan is not None
    impossible = np.full((1, 4), -np.inf, dtype=np.float32)
    sampled = Sampled(np.zeros(1, dtype=np.int32), None, np.zeros((1, 4), dtype=np.int32), impossible)
    (finished,) = scheduler.update(plan, sampled).finished
    assert finished.error is not None
    assert "0 of 1 outputs were found" in finished.error
    check_empty(scheduler)


@pytest.mark.parametrize("lookahead", [2**31 - 1, 2**32])
def test_any_look_ahead_is_looked_ahead(lookahead: int) -> None:
    engine = OracleEngine(make_scheduler(num_blocks=20, lookahead=lookahead))
    for key in range(3):
        engine.add(key, [key] * 9, greedy(30, ignore_eos=True))
    engine.run()
    assert engine.scheduler.counters.preemptions == 0


def test_a_search_that_starts_over_pins_once() -> None:
    engine = OracleEngine(make_scheduler(num_blocks=9, block_size=1, max_model_len=12, pin_ratio=0.5))
    engine.add(0, [1, 2], greedy(3, beam_width=2, ignore_eos=True), pin_ttl=1e9)
    engine.step()
    plan = engine.scheduler.schedule()
    assert plan is not None
    engine.scheduler.fail(plan, "boom")
    engine.run()
    assert len(engine.scheduler.manager.pins) == 1


def test_tokens_and_times_that_are_none_are_refused() -> None:
    scheduler = make_scheduler(pin_ratio=0.5)
    with pytest.raises(InvalidRequestError, match="token id 1099511627776"):
        scheduler.pin([2**40] * 8, 1.0)
    with pytest.raises(InvalidRequestError, match="token id 1099511627776"):
        scheduler.invalidate(tokens=[2**40] * 8)
    with pytest.raises(InvalidRequestError, match="ttl must be a number of seconds above 0, not '60'"):
        scheduler.pin([1] * 8, "60")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_search_that_starts_over_is_the_first_sequence_again(index: int) -> None:
    engine = OracleEngine(make_scheduler(num_blocks=60, max_num_seqs=4))
    engine.add(7, [2] * 3, greedy(6, beam_width=3, ignore_eos=True))
    while engine.scheduler.num_running < 3:
        engine.step()
    beam = next(beam for beam in engine.scheduler.state.running if beam.index == index)
    engine.scheduler._preemption.preempt(beam, PreemptionReason.GROWTH, None)
    check_sequences(engine.scheduler)
    assert set(engine.scheduler.explain_waits()) == {stream_of(7, 0)}
    while engine.scheduler.num_running < 3:
        engine.step()
        check_sequences(engine.scheduler)
    engine.run()
    assert set(engine.reasons.values()) == {"length"}
    check_empty(engine.scheduler)
