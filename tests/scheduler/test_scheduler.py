"""Scheduler: adding, the token budget, how sequences end, aborting, and what it says of itself; on the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from engines import Engine, crowded, plain, prompt
from factories import EOS, greedy, make_scheduler
from invariants import check_all, check_empty, expected

from octavo.errors import QueueFullError
from octavo.scheduler.request import SequenceState
from octavo.scheduler.sampling import SamplingParams

# ── adding ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_scheduler_has_nothing_to_do() -> None:
    engine = Engine()
    assert not engine.scheduler.has_work
    assert engine.scheduler.schedule() is None
    check_empty(engine.scheduler)


def test_one_request_gets_the_models_output() -> None:
    engine = Engine()
    engine.add(7, prompt(5), plain(8))
    engine.run()
    assert engine.outputs == {(7, 0): expected(prompt(5), plain(8))}
    assert engine.reasons == {(7, 0): "length"}
    check_empty(engine.scheduler)


def test_a_prompt_may_be_an_array() -> None:
    engine = Engine()
    engine.scheduler.add(0, np.array(prompt(5), dtype=np.int32), plain(2))
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(5), plain(2))


def test_without_max_tokens_the_window_is_the_limit() -> None:
    engine = Engine(max_model_len=20)
    engine.add(0, prompt(5), plain(None))
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(5), plain(None), max_tokens=15)
    assert engine.reasons[0, 0] == "length"


def test_a_full_queue_refuses_one_more_and_takes_it_later() -> None:
    engine = Engine(max_waiting=2)
    engine.add(0, prompt(3))
    engine.add(1, prompt(3))
    with pytest.raises(QueueFullError) as caught:
        engine.add(2, prompt(3))
    assert str(caught.value) == "2 sequences are waiting already, the most this server allows"
    assert caught.value.retry_after > 0
    engine.step()
    engine.add(2, prompt(3))
    engine.run()
    assert engine.outputs[2, 0] == expected(prompt(3), greedy())


def test_a_key_can_be_used_again_when_its_request_has_ended() -> None:
    engine = Engine()
    engine.add(0, prompt(3), plain(1))
    with pytest.raises(AssertionError, match="request 0 exists already"):
        engine.add(0, prompt(3))
    engine.run()
    engine.scheduler.add(0, prompt(3), plain(1))


def test_requests_without_a_seed_get_different_ones() -> None:
    engine = Engine()
    for key in range(2):
        engine.add(key, prompt(3), SamplingParams(max_tokens=4))
    engine.step()
    assert len(set(engine.scheduler.rows.seed[:2].tolist())) == 2


# ── the token budget ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_never_computes_more_than_the_budget() -> None:
    engine = Engine(max_num_batched_tokens=10, num_blocks=40)
    for key in range(4):
        engine.add(key, prompt(13, start=key * 13))
    engine.run()
    assert max(plan.num_tokens for plan in engine.plans) == 10


def test_a_long_prompt_is_computed_in_chunks() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add(0, prompt(20), plain(1))
    engine.run()
    assert [(plan.starts.tolist(), plan.query_lens.tolist()) for plan in engine.plans] == [
        ([0], [8]),
        ([8], [8]),
        ([16], [4]),
    ]
    assert [len(plan.sample_rows) for plan in engine.plans] == [0, 0, 1]


def test_the_budget_goes_to_those_who_came_first() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add(0, prompt(6))
    engine.add(1, prompt(6, start=20))
    plan = engine.step()
    assert plan is not None
    assert engine.keys(plan) == [0, 1]
    assert plan.query_lens.tolist() == [6, 2]


def test_decodes_are_never_starved_by_a_long_prefill() -> None:
    engine = Engine(max_num_batched_tokens=6, max_num_seqs=3, num_blocks=40)
    engine.add(0, prompt(2), plain(30))
    engine.add(1, prompt(2, start=20), plain(30))
    engine.step()
    engine.add(2, prompt(40, start=10), plain(4))
    while len(engine.outputs[2, 0]) == 0:
        plan = engine.step()
        assert plan is not None
        assert engine.keys(plan)[:2] == [0, 1]
        assert plan.query_lens.tolist() == [1, 1, 4]
    assert len(engine.outputs[0, 0]) == len(engine.outputs[1, 0]) == 11


def test_a_prefill_goes_on_while_everyone_else_decodes_with_the_smallest_budget() -> None:
    engine = Engine(max_num_batched_tokens=4, max_num_seqs=4, num_blocks=40)
    for key in range(3):
        engine.add(key, prompt(1, start=key), plain(20))
    engine.step()
    engine.add(3, prompt(10, start=10), plain(2))
    engine.run()
    assert len(engine.outputs[3, 0]) == 2


def test_decodes_come_first_in_a_plan() -> None:
    engine = Engine()
    engine.add(0, prompt(9), plain(20))
    engine.step()
    engine.add(1, prompt(5, start=20))
    plan = engine.step()
    assert plan is not None
    assert plan.num_decodes == 1
    assert plan.query_lens.tolist() == [1, 5]


# ── how a sequence ends ───────────────────────────────────────────────────────────────────────────────────────


def ends_with_eos(at: int) -> list[int]:
    """A prompt after which the oracle's first end-of-sequence token is output number ``at``."""
    for first in range(60):
        for second in range(60):
            output = expected([first, second], plain(20))
            if EOS in output and output.index(EOS) == at - 1:
                return [first, second]
    raise AssertionError("no such prompt")


def run_one(tokens: list[int], sampling: SamplingParams) -> tuple[list[int], str, int | None]:
    engine = Engine()
    engine.add(0, tokens, sampling)
    stops = []
    while engine.scheduler.has_work:
        plan = engine.scheduler.schedule()
        assert plan is not None
        result = engine.scheduler.update(plan, engine.runner.execute(plan))
        engine.take(result)
        stops += [finished.stop_token_id for finished in result.finished]
    (stop,) = stops
    return engine.outputs[0, 0], engine.reasons[0, 0], stop


def test_the_end_of_sequence_token_is_given_out_and_ends_the_sequence() -> None:
    tokens = ends_with_eos(at=4)
    assert run_one(tokens, greedy(20)) == (expected(tokens, plain(4)), "stop", EOS)


def test_an_end_of_sequence_token_in_last_place_is_a_stop() -> None:
    tokens = ends_with_eos(at=4)
    assert run_one(tokens, greedy(4))[1:] == ("stop", EOS)
    assert run_one(tokens, greedy(3))[1:] == ("length", None)


def test_ignore_eos_goes_on_to_the_limit() -> None:
    tokens = ends_with_eos(at=4)
    assert run_one(tokens, plain(20)) == (expected(tokens, plain(20)), "length", None)


def test_a_stop_token_ends_the_sequence_even_if_eos_is_ignored() -> None:
    output = expected(prompt(3), plain(20))
    stop = output[5]
    first = output.index(stop) + 1
    for sampling in (plain(20, stop_token_ids=(stop,)), greedy(20, stop_token_ids=(0 if stop else 1, stop))):
        tokens, reason, by = run_one(prompt(3), sampling)
        assert reason == "stop"
        if sampling.ignore_eos:
            assert (tokens, by) == (output[:first], stop)


@pytest.mark.parametrize(("min_tokens", "length"), [(0, 4), (3, 4), (4, 20), (20, 20)])
def test_min_tokens_come_before_a_stop(min_tokens: int, length: int) -> None:
    tokens = ends_with_eos(at=4)
    output = expected(tokens, plain(20))
    assert output.count(EOS) == 1
    assert run_one(tokens, greedy(20, min_tokens=min_tokens))[0] == output[:length]


def test_min_tokens_hold_back_stop_tokens_too() -> None:
    output = expected(prompt(3), plain(20))
    stop = output[0]
    tokens, _, _ = run_one(prompt(3), plain(20, stop_token_ids=(stop,), min_tokens=1))
    assert len(tokens) > 1


def test_min_tokens_beyond_the_window_end_by_length() -> None:
    engine = Engine(max_model_len=20)
    engine.add(0, ends_with_eos(at=4), greedy(None, min_tokens=2**31 - 1))
    engine.run()
    assert len(engine.outputs[0, 0]) == 18
    assert engine.reasons[0, 0] == "length"


# ── abort ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_aborting_an_unknown_request_is_counted_and_harmless() -> None:
    scheduler = make_scheduler()
    assert scheduler.abort(7) is False
    assert scheduler.counters.unknown_aborts == 1


def test_aborting_a_waiting_request() -> None:
    engine = Engine()
    engine.add(0, prompt(3))
    assert engine.scheduler.abort(0) is True
    assert engine.scheduler.abort(0) is False
    check_empty(engine.scheduler)
    assert engine.scheduler.state.finished == {"abort": 1}


def test_aborting_a_running_request_frees_its_blocks() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.add(0, prompt(10))
    for _ in range(2):  # in the middle of its prompt
        engine.step()
    engine.add(1, prompt(5, start=20), plain(4))
    engine.scheduler.abort(0)
    check_all(engine)
    assert engine.scheduler.manager.pool.counts.used == 0
    engine.run()
    assert list(engine.reasons) == [(1, 0)]
    assert engine.outputs[1, 0] == expected(prompt(5, start=20), plain(4))


def test_aborting_a_preempted_request() -> None:
    engine = crowded()
    engine.step_until(SequenceState.PREEMPTED, 2)
    engine.scheduler.abort(2)
    check_all(engine)
    assert engine.scheduler.num_waiting == 0
    engine.run()
    assert set(engine.reasons) == {(0, 0), (1, 0)}
    check_empty(engine.scheduler)


def test_aborting_a_suspect() -> None:
    engine = crowded()
    engine.step()
    engine.step_poisoned({0})
    assert [engine.sequence(key).state for key in range(3)] == [SequenceState.PREEMPTED] * 3
    engine.scheduler.abort(1)
    check_all(engine)
    engine.run()
    for key in (0, 2):
        assert engine.outputs[key, 0] == expected(prompt(7, start=key * 10), plain(12))
    assert (1, 0) not in engine.reasons


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_aborting_ends_all_siblings_wherever_they_are(steps: int) -> None:
    engine = Engine(max_num_seqs=2, max_num_batched_tokens=4)
    engine.add(0, prompt(6), plain(20, n=4))
    for _ in range(steps):
        engine.step()
    engine.scheduler.abort(0)
    check_empty(engine.scheduler)


def test_a_sibling_that_is_left_alone_with_a_shared_block_needs_no_copy() -> None:
    engine = Engine(max_num_seqs=2)
    sampling = plain(6, n=2, stop_token_ids=(expected(prompt(6), plain(1), index=1)[0],))
    engine.add(0, prompt(6), sampling)
    engine.run()
    assert len(engine.outputs[0, 1]) == 1
    assert engine.scheduler.manager.copies == 0


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_one_sibling_can_be_ended_and_the_others_go_on(index: int) -> None:
    engine = Engine(max_num_seqs=3)  # the last sibling waits
    sampling = plain(6, n=4)
    engine.add(0, prompt(6), sampling)
    engine.step()
    engine.scheduler.end_sequence(0, index)
    check_all(engine)
    engine.run()
    assert set(engine.reasons) == {(0, other) for other in range(4) if other != index}
    for other in set(range(4)) - {index}:
        assert engine.outputs[0, other] == expected(prompt(6), sampling, other)
    assert engine.scheduler.state.finished == {"length": 3, "stop": 1}
    check_empty(engine.scheduler)


def test_ending_the_last_sequence_ends_the_request() -> None:
    engine = Engine()
    engine.add(0, prompt(6), plain(6))
    engine.step()
    engine.scheduler.end_sequence(0, 0)
    check_empty(engine.scheduler)
    assert engine.scheduler.abort(0) is False


def test_ending_an_unknown_sequence_changes_nothing() -> None:
    engine = Engine()
    engine.scheduler.end_sequence(5, 0)
    engine.add(0, prompt(6), plain(6))
    engine.scheduler.end_sequence(0, 1)
    engine.run()
    assert engine.reasons == {(0, 0): "length"}


# ── counters and checks ───────────────────────────────────────────────────────────────────────────────────────


def test_counters_count_tokens_and_steps() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add(0, prompt(10), plain(5))
    engine.run()
    counters = engine.scheduler.counters
    assert counters.steps == len(engine.plans) == 6
    assert (counters.prompt_tokens, counters.generated_tokens) == (10, 5)
    assert engine.scheduler.state.finished == {"length": 1}


def test_a_steady_decode_step_makes_no_new_arrays_of_rows() -> None:
    engine = Engine()
    engine.add(0, prompt(5), plain(8))
    engine.step()
    engine.step()
    rows = engine.scheduler.state.running.rows
    engine.step()
    assert rows is not None
    assert engine.scheduler.state.running.rows.base is rows.base


def test_check_names_a_row_that_holds_blocks_without_a_sequence() -> None:
    scheduler = make_scheduler()
    scheduler.manager.grow([2])
    assert scheduler.check_integrity() == ["row 2 holds blocks and belongs to no running sequence"]


def test_check_names_a_sequence_that_computed_more_than_its_blocks_hold() -> None:
    engine = Engine()
    engine.add(0, prompt(5))
    engine.step()
    engine.scheduler.rows.num_computed[0] = 9
    assert engine.scheduler.check_integrity() == ["sequence (0, 0) has computed more tokens than its blocks hold"]


def test_check_names_rows_that_nobody_runs_in() -> None:
    engine = Engine()
    engine.add(0, prompt(5))
    engine.step()
    engine.scheduler.rows.owner[3] = engine.sequence(0)
    assert engine.scheduler.check_integrity() == ["rows and running sequences disagree"]
