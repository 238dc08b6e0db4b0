"""``--max-step-time``: prompts are computed in smaller chunks where others would wait too long for their next token."""

from __future__ import annotations

from engines import Engine, Pace, plain, prompt

from octavo.scheduler.decisions import WaitReason

# 32 decodes fit into 50 ms, or 200 prefill tokens beside a few decodes.
PACE = Pace(step=0.005, prefill=2e-4, decode=1e-3)
LIMITS = {"num_blocks": 400, "max_num_batched_tokens": 512, "max_model_len": 600, "max_num_seqs": 4, "lookahead": 0}


def decoding(max_step_time: float, *, learnt: bool = True) -> Engine:
    """An engine in which one sequence decodes."""
    engine = Engine(pace=PACE if learnt else None, max_step_time=max_step_time, **LIMITS)
    if learnt:
        engine.learn(PACE)
    engine.add(0, prompt(8), plain(100))
    engine.step()
    engine.step()
    return engine


def chunks(engine: Engine, key: int) -> list[int]:
    """Tokens that a request's prompt is computed in, step by step."""
    computed = []
    while not computed or computed[-1] > 1:
        plan = engine.scheduler.schedule()
        assert plan is not None
        row = engine.sequence(key).row
        computed.append(int(plan.query_lens[plan.rows == row].sum()))
        engine.execute(plan)
    return computed[:-1]


def test_a_long_prompt_is_computed_in_chunks_that_fit_into_the_time() -> None:
    engine = decoding(0.05)
    engine.add(1, prompt(500, start=7), plain(2))
    first, *others = chunks(engine, 1)
    assert first + sum(others) == 500
    assert 150 < first <= 220
    assert all(chunk <= 220 for chunk in others)


def test_without_a_limit_or_decodes_or_knowledge_prompts_take_the_whole_budget() -> None:
    engine = decoding(0.0)
    engine.add(1, prompt(500, start=7), plain(2))
    assert chunks(engine, 1) == [500]
    engine = decoding(0.05, learnt=False)
    engine.add(1, prompt(500, start=7), plain(2))
    assert chunks(engine, 1) == [500]
    engine = Engine(pace=PACE, max_step_time=0.05, **LIMITS)
    engine.learn(PACE)
    engine.add(0, prompt(500), plain(2))
    assert chunks(engine, 0) == [500]


def test_however_slow_decodes_are_prompts_get_on() -> None:
    engine = decoding(1e-6)
    engine.add(1, prompt(100, start=7), plain(2))
    assert chunks(engine, 1) == [32, 32, 32, 4]


def test_who_waits_for_a_step_with_time_to_spare_is_told_so() -> None:
    engine = decoding(1e-6)
    engine.add(1, prompt(100, start=7), plain(2))
    engine.add(2, prompt(100, start=9), plain(2))
    engine.step()
    assert engine.wait(2).reason is WaitReason.TOKEN_BUDGET
    engine.run()
