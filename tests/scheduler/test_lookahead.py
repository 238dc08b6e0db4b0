"""How far admission looks ahead follows from what giving way costs."""

from __future__ import annotations

from typing import Any

import pytest
from engines import Engine, Pace, plain, prompt

from octavo.block_manager.tiers import Tier
from octavo.scheduler.lookahead import LookAhead

# A step takes 1 s, a prefill token 0.24 s on top, so 8 tokens take almost 2 s to compute again.
PACE = Pace(step=1.0, prefill=0.24)


def running(pace: Pace = PACE, requests: int = 2, **limits: Any) -> Engine:
    """So many requests of 8 tokens run, and all costs are known."""
    engine = Engine(num_blocks=40, lookahead=32, max_num_seqs=8, **limits)
    engine.learn(pace, *engine.scheduler.manager.tiers.existing)
    for key in range(requests):
        engine.add(key, prompt(7, start=key * 10), plain(20))
    engine.step()
    return engine


def steps(engine: Engine) -> int:
    return LookAhead(engine.scheduler.state).steps


def test_recomputing_is_worth_as_many_steps_as_it_would_have_given_tokens() -> None:
    assert steps(running(requests=1)) == 2
    assert steps(running(requests=2)) == 4
    assert steps(running(requests=4)) == 8


def test_fast_copies_make_it_short() -> None:
    pace = Pace(step=1.0, prefill=0.24, copy=0.01)
    assert steps(running(pace, host_blocks=20)) == 1
    assert steps(running(pace, host_blocks=20, preemption="recompute")) == 4


def test_slow_copies_do_not_make_it_longer_than_recomputing_unless_nothing_else_is_allowed() -> None:
    pace = Pace(step=1.0, prefill=0.24, copy=0.98)
    assert steps(running(pace, host_blocks=20)) == 4
    assert steps(running(pace, host_blocks=20, preemption="swap")) == 8


def test_full_tiers_do_not_count() -> None:
    engine = running(Pace(step=1.0, prefill=0.24, copy=0.01), host_blocks=1)
    tiers = engine.scheduler.manager.tiers
    assert steps(engine) == 1
    place = tiers.store(1, None)
    assert tiers.counts(Tier.HOST).free == 0
    assert steps(engine) == 4
    tiers.drop([place])


def test_the_option_is_the_most() -> None:
    assert steps(running(Pace(step=0.001, prefill=1.0))) == 32
    engine = Engine(lookahead=0)
    engine.learn(PACE)
    engine.add(0, prompt(7), plain(20))
    engine.step()
    assert steps(engine) == 0


@pytest.mark.parametrize("requests", [0, 2])
def test_it_is_the_most_as_long_as_nothing_is_known(requests: int) -> None:
    engine = Engine(lookahead=9)
    for key in range(requests):
        engine.add(key, prompt(7, start=key * 10), plain(20))
    engine.scheduler.schedule()
    assert steps(engine) == 9
