"""Scheduler: admission, budget, decoding, preemption, forking, stopping, aborting and failing, on the oracle."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from factories import EOS, VOCAB, OracleEngine, greedy, make_scheduler
from invariants import check_all, check_empty, expected, live_sequences

from octavo.errors import InvalidRequestError, NeverFitsError, QueueFullError
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.request import Sequence, SequenceState
from octavo.scheduler.sampling import SamplingParams


class Engine(OracleEngine):
    """The oracle engine, with a step that fails if a poisoned request is in it."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(make_scheduler(**limits))

    def keys(self, plan: StepPlan | None) -> list[int]:
        """The requests whose sequences compute something, in the plan's order."""
        assert plan is not None
        return [self.sequence_in(row).request.key for row in plan.rows.tolist()]

    def sequence_in(self, row: int) -> Sequence:
        sequence = self.scheduler.rows.owner[row]
        assert sequence is not None
        return sequence

    def sequence(self, key: int, index: int = 0) -> Sequence:
        return next(s for s in live_sequences(self.scheduler) if (s.request.key, s.index) == (key, index))

    def step_poisoned(self, poisoned: Collection[int]) -> list[int]:
        plan = self.scheduler.schedule()
        assert plan is not None
        keys = self.keys(plan)
        if set(poisoned) & set(keys):
            self.take(self.scheduler.fail(plan, "boom"))
        else:
            self.take(self.scheduler.update(plan, self.runner.execute(plan)))
        check_all(self)
        return keys

    def step_until(self, state: SequenceState, key: int, index: int = 0) -> Sequence:
        for _ in range(200):
            sequence = next((s for s in live_sequences(self.scheduler) if s.order == (key, index)), None)
            if sequence is not None and sequence.state is state:
                return sequence
            assert self.step() is not None
        raise AssertionError(f"request {key} was never {state.name}")


def plain(max_tokens: int | None = 8, **values: Any) -> SamplingParams:
    """Ends by length alone."""
    return greedy(max_tokens, ignore_eos=True, **values)


def prompt(count: int, start: int = 0) -> list[int]:
    return [(start + i) % 60 for i in range(count)]


# ── adding ──────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"^the prompt holds no tokens; at least one is needed$") as caught:
        make_scheduler().add(0, [], greedy())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31, -(2**63)])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_scheduler().add(0, [1, token, 2], greedy())
    assert str(caught.value) == f"token id {token} in the prompt is outside the vocabulary (0 to {VOCAB - 1})"
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token", [2**63, -(2**63) - 1, 2**64, 10**30])
def test_a_token_too_large_for_any_array_is_outside_too(token: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"outside the vocabulary \(0 to 63\)$"):
        make_scheduler().add(0, [1, token, 2], greedy())


def test_the_last_token_of_the_vocabulary_is_inside() -> None:
    make_scheduler().add(0, [0, VOCAB - 1], greedy(stop_token_ids=(VOCAB - 1,)))


def test_a_stop_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_scheduler().add(0, [1], greedy(stop_token_ids=(3, VOCAB)))
    assert str(caught.value) == f"stop_token_ids holds {VOCAB}, outside the vocabulary (0 to {VOCAB - 1})"
    assert caught.value.param == "stop_token_ids"


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        pytest.param({"num_blocks": 16, "max_model_len": 20}, 20, id="window"),
        pytest.param({"num_blocks": 4, "max_model_len": 64}, 17, id="pool"),  # the last token needs no slot
    ],
)
def test_the_largest_request_fits_and_one_token_more_never_does(limits: dict[str, int], largest: int) -> None:
    engine = Engine(**limits)
    assert engine.scheduler.largest_request() == largest
    with pytest.raises(NeverFitsError) as caught:
        engine.add(0, prompt(10), plain(largest - 9))
    assert str(caught.value) == (
        f"the prompt has 10 tokens and {largest - 9} more are asked for; together at most {largest} fit"
    )
    assert (caught.value.largest, caught.value.param) == (largest, "max_tokens")
    engine.add(0, prompt(10), plain(largest - 10))
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(10), plain(largest - 10))


def test_a_prompt_that_leaves_no_room_for_a_token_never_fits() -> None:
    scheduler = make_scheduler(max_model_len=20)
    for max_tokens, asked in ((None, "at least 1"), (1, "1"), (9, "9")):
        with pytest.raises(NeverFitsError) as caught:
            scheduler.add(0, prompt(20), greedy(max_tokens))
        assert str(caught.value) == (
            f"the prompt has 20 tokens and {asked} more are asked for; together at most 20 fit"
        )
        assert (caught.value.largest, caught.value.param) == (20, "prompt")


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


def test_what_never_fits_is_refused_even_if_the_queue_is_full() -> None:
    engine = Engine(max_waiting=1)
    engine.add(0, prompt(3))
    with pytest.raises(NeverFitsError):
        engine.add(1, prompt(3), greedy(1000))


def test_a_refused_request_leaves_nothing_behind() -> None:
    scheduler = make_scheduler()
    for bad in ([], [VOCAB], prompt(60)):
        with pytest.raises((InvalidRequestError, NeverFitsError)):
            scheduler.add(0, bad, greedy(60))
    check_empty(scheduler)


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


# ── admission and the token budget ──────────────────────────────────────────────────────────────────────────


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


def test_no_more_sequences_run_than_there_are_rows() -> None:
    engine = Engine(max_num_seqs=2)
    for key in range(5):
        engine.add(key, prompt(3, start=key))
    while engine.scheduler.has_work:
        engine.step()
        assert engine.scheduler.num_running <= 2
    assert len(engine.reasons) == 5


def test_a_waiting_request_holds_no_blocks() -> None:
    engine = Engine(num_blocks=6, max_num_seqs=4)
    engine.add(0, prompt(16), plain(2))
    engine.step()
    used = engine.scheduler.manager.pool.counts.used
    for key in (1, 2):
        engine.add(key, prompt(12, start=30), plain(2))
    plan = engine.scheduler.schedule()
    assert engine.keys(plan) == [0]
    assert [engine.sequence(key).state for key in (1, 2)] == [SequenceState.WAITING] * 2
    assert engine.scheduler.manager.pool.counts.used <= used + 1
    assert engine.scheduler.num_waiting == 2


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_blocks() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=4)
    engine.add(0, prompt(16), plain(8))
    engine.step()
    engine.add(1, prompt(24, start=20), plain(2))
    engine.add(2, prompt(2, start=50), plain(2))
    engine.step()
    assert [engine.sequence(key).state for key in (1, 2)] == [SequenceState.WAITING] * 2
    engine.run()
    assert list(engine.reasons) == [(0, 0), (1, 0), (2, 0)]


def test_admission_keeps_the_watermark_free_while_others_run() -> None:
    engine = Engine(num_blocks=8, watermark_ratio=0.25)
    engine.add(0, prompt(4), plain(8))
    engine.step()
    engine.add(1, prompt(20, start=20), plain(2))
    assert engine.keys(engine.step()) == [0]  # 6 blocks are left, 5 + 2 would be needed
    engine.run()
    assert len(engine.outputs[1, 0]) == 2


def test_the_watermark_never_keeps_a_request_out_of_an_empty_pool() -> None:
    engine = Engine(num_blocks=8, watermark_ratio=0.5)
    engine.add(0, prompt(32), plain(1))
    engine.run()
    assert len(engine.outputs[0, 0]) == 1


def test_a_request_that_needs_the_whole_pool_runs_when_the_others_have_ended() -> None:
    engine = Engine(num_blocks=4, max_num_seqs=2, max_model_len=17)
    engine.add(0, prompt(3), plain(2))
    engine.step()
    engine.add(1, prompt(16, start=20), plain(1))
    engine.run()
    assert engine.outputs[1, 0] == expected(prompt(16, start=20), plain(1))


# ── prefix sharing ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_request_with_the_same_prompt_reuses_the_firsts_blocks_in_the_same_step() -> None:
    engine = Engine()
    for key in range(2):
        engine.add(key, prompt(10), plain(4))
    plan = engine.step()
    assert plan is not None
    assert engine.keys(plan) == [0, 1]
    assert plan.query_lens.tolist() == [10, 2]
    first, second = (engine.scheduler.manager.tables.blocks(row) for row in plan.rows.tolist())
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert engine.cached == {(0, 0): 0, (1, 0): 8}
    engine.run()
    assert engine.outputs[0, 0] == engine.outputs[1, 0] == expected(prompt(10), plain(4))


def test_a_later_request_reuses_what_an_ended_one_computed() -> None:
    engine = Engine()
    engine.add(0, prompt(10), plain(4))
    engine.run()
    engine.add(1, prompt(10), plain(4))
    engine.run()
    assert engine.cached[1, 0] == 8
    assert engine.outputs[1, 0] == engine.outputs[0, 0]


def test_generated_tokens_are_reused_too() -> None:
    engine = Engine()
    engine.add(0, prompt(6), plain(8))
    engine.run()
    engine.add(1, prompt(6) + engine.outputs[0, 0], plain(2))
    engine.run()
    assert engine.cached[1, 0] == 12


def test_requests_with_different_salts_share_nothing() -> None:
    engine = Engine()
    for key, salt in enumerate(("a", "b", "a")):
        engine.add(key, prompt(10), plain(2), salt)
    engine.run()
    assert [engine.cached[key, 0] for key in range(3)] == [0, 0, 8]


def test_without_prefix_caching_nothing_is_reused() -> None:
    engine = Engine(caching=False)
    for key in range(2):
        engine.add(key, prompt(10), plain(2))
    engine.run()
    assert engine.cached == {(0, 0): 0, (1, 0): 0}
    assert engine.outputs[0, 0] == engine.outputs[1, 0]


def test_equal_requests_that_compute_side_by_side_end_up_sharing() -> None:
    # Prompts of one block can share nothing at admission, since one token must be left to compute.
    engine = Engine()
    for key in range(2):
        engine.add(key, prompt(4), plain(8))
    engine.step()
    assert engine.scheduler.manager.deduplicated == 1
    assert engine.scheduler.manager.pool.counts.used == 1
    engine.run()
    assert engine.outputs[0, 0] == engine.outputs[1, 0]


def test_a_hash_that_always_collides_changes_no_output() -> None:
    engine = Engine(hasher=lambda parent, content: 0)
    for key in range(4):
        engine.add(key, prompt(10, start=key % 2), plain(8))
    engine.run()
    for key in range(4):
        assert engine.outputs[key, 0] == expected(prompt(10, start=key % 2), plain(8))


# ── preemption ──────────────────────────────────────────────────────────────────────────────────────────────


def crowded(**limits: Any) -> Engine:
    """Three requests that fit at first and cannot all grow to their end."""
    engine = Engine(**{"num_blocks": 8, "max_num_seqs": 3, **limits})
    for key in range(3):
        engine.add(key, prompt(7, start=key * 10), plain(12))
    return engine


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
    assert engine.scheduler.waiting.peek() is victim
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


# ── n > 1 ───────────────────────────────────────────────────────────────────────────────────────────────────


def check_siblings(engine: Engine, key: int, tokens: list[int], sampling: SamplingParams) -> None:
    for index in range(sampling.n):
        assert engine.outputs[key, index] == expected(tokens, sampling, index), index


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


# ── how a sequence ends ─────────────────────────────────────────────────────────────────────────────────────


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


# ── abort ───────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert engine.scheduler.finished == {"abort": 1}


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
    assert engine.scheduler.finished == {"length": 3, "stop": 1}
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


# ── failed steps ────────────────────────────────────────────────────────────────────────────────────────────


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
    assert engine.scheduler.finished == {"error": 3, "length": 1}
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
    engine.add(0, prompt(3), plain(40))
    for culprit in range(1, 6):
        engine.add(culprit, prompt(2, start=10 * culprit), plain(8))
        while (culprit, 0) not in engine.reasons:
            engine.step_poisoned({culprit})
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(3), plain(40))
    assert engine.reasons == {(0, 0): "length"} | {(culprit, 0): "error" for culprit in range(1, 6)}


# ── counters and checks ─────────────────────────────────────────────────────────────────────────────────────


def test_counters_count_tokens_and_steps() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add(0, prompt(10), plain(5))
    engine.run()
    counters = engine.scheduler.counters
    assert counters.steps == len(engine.plans) == 6
    assert (counters.prompt_tokens, counters.generated_tokens) == (10, 5)
    assert engine.scheduler.finished == {"length": 1}


def test_a_steady_decode_step_makes_no_new_arrays_of_rows() -> None:
    engine = Engine()
    engine.add(0, prompt(5), plain(8))
    engine.step()
    engine.step()
    rows = engine.scheduler._running_rows
    engine.step()
    assert rows is not None
    assert engine.scheduler._running_rows is rows


def test_check_names_a_row_that_holds_blocks_without_a_sequence() -> None:
    scheduler = make_scheduler()
    scheduler.manager.grow(2)
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
