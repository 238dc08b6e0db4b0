"""Pins: within a budget and for a time, they keep a prefix resident; they give way only so that work goes on."""

from __future__ import annotations

from typing import Any

import pytest
from engines import Engine, crowded, plain, prompt
from factories import greedy
from invariants import check_all, check_empty, expected

from octavo.block_manager.pins import Pin
from octavo.config import TenantConfig
from octavo.errors import InvalidRequestError, NeverFitsError, PinBudgetError
from octavo.scheduler.plan import StepResult
from octavo.scheduler.streams import stream_of


def warm(*beginnings: int, count: int = 9, **limits: Any) -> Engine:
    """Prompts that begin with these tokens have run and are cached, two full blocks each."""
    engine = Engine(**{"pin_ratio": 0.5, "num_blocks": 16, "max_model_len": 100, **limits})
    for key, start in enumerate(beginnings):
        engine.add(1_000 + key, prompt(count, start=start), plain(1))
    engine.run()
    return engine


def pin(engine: Engine, start: int, ttl: float = 10.0, count: int = 8, **whose: Any) -> Pin:
    found = engine.scheduler.pin(prompt(count, start=start), ttl, **whose)
    assert found is not None
    check_all(engine)
    return found


def flush(engine: Engine) -> None:
    """Uses every block that is not pinned for something else."""
    size = engine.scheduler.manager.block_size
    engine.add(2_000, [59, *prompt(engine.scheduler.manager.pool.available * size - 1, start=29)], plain(1))
    engine.run()


def hit(engine: Engine, start: int, key: int = 3_000, count: int = 9) -> int:
    """Tokens that a request finds cached."""
    engine.add(key, prompt(count, start=start), plain(1))
    engine.run()
    return engine.cached[key, 0]


# ── what a pin does ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_pinned_prefix_stays_whatever_else_runs() -> None:
    pinned, other = warm(0), warm(0)
    pin(pinned, 0)
    for engine in (pinned, other):
        flush(engine)
    assert hit(pinned, 0) == 8
    assert hit(other, 0) == 0


def test_only_what_is_cached_can_be_pinned() -> None:
    engine = warm(0)
    assert engine.scheduler.pin(prompt(8, start=30), 10.0) is None
    assert engine.scheduler.pin([*prompt(4), 50, 51, 52, 53], 10.0) is None  # the first block is
    assert engine.scheduler.pin(prompt(8), 10.0, salt="a") is None
    assert engine.scheduler.pinning.listed() == []


def test_the_rest_of_a_block_is_not_pinned() -> None:
    engine = warm(0)
    assert len(pin(engine, 0, count=7).blocks) == 1


def test_pins_that_begin_alike_hold_their_common_blocks_once() -> None:
    engine = warm(0, count=13)
    short, long = pin(engine, 0, count=4), pin(engine, 0, count=12)
    assert engine.scheduler.manager.pins.num_blocks == 3
    assert engine.scheduler.pinning.drop(long.number)
    assert engine.scheduler.manager.pins.num_blocks == 1
    assert engine.scheduler.pinning.listed() == [short]


def test_pinning_the_same_again_makes_its_pin_last_longer() -> None:
    engine = warm(0, pin_ratio=0.125)  # no block more may be pinned
    first = pin(engine, 0, ttl=10.0)
    engine.now = 5.0
    assert pin(engine, 0, ttl=1.0) == first
    renewed = pin(engine, 0, ttl=10.0)
    assert (renewed.number, renewed.expires) == (first.number, 15.0)
    assert engine.scheduler.pinning.drop(first.number)
    check_empty(engine.scheduler)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pin_needs_a_time(ttl: float) -> None:
    engine = warm(0)
    with pytest.raises(InvalidRequestError, match=r"^ttl must be a number of seconds above 0, not") as caught:
        engine.scheduler.pin(prompt(8), ttl)
    assert caught.value.param == "ttl"
    with pytest.raises(InvalidRequestError, match=r"^ttl must be"):
        engine.add(0, prompt(8), greedy(), pin_ttl=ttl)


def test_less_than_a_block_cannot_be_pinned() -> None:
    engine = warm(0)
    with pytest.raises(InvalidRequestError) as caught:
        engine.scheduler.pin(prompt(3), 10.0)
    assert str(caught.value) == "3 tokens fill no block of 4; only full blocks can be pinned"


def test_without_prefix_caching_nothing_can_be_pinned() -> None:
    engine = warm(0, caching=False)
    with pytest.raises(InvalidRequestError, match="while prefix caching is off"):
        engine.scheduler.pin(prompt(8), 10.0)


def test_more_than_the_budget_can_never_be_pinned() -> None:
    engine = warm(0, pin_ratio=0.125)
    assert pin(engine, 0)
    with pytest.raises(NeverFitsError) as caught:
        engine.scheduler.pin(prompt(12), 10.0)
    assert str(caught.value) == "12 tokens are 3 blocks, and at most 2 may be pinned (--pin-ratio)"
    assert (caught.value.largest, caught.value.param) == (8, "prompt")


def test_what_other_pins_leave_no_room_for_can_be_pinned_later() -> None:
    engine = warm(0, 20, pin_ratio=0.2)  # 3 blocks
    first = pin(engine, 0)
    with pytest.raises(PinBudgetError) as caught:
        engine.scheduler.pin(prompt(8, start=20), 10.0)
    assert str(caught.value) == (
        "2 blocks cannot be pinned: 2 of 3 are pinned already, 1 too many; drop a pin, or wait until one expires"
    )
    engine.scheduler.pinning.drop(first.number)
    assert pin(engine, 20)


def test_pinning_does_not_lift_a_tenant_above_its_ceiling() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, tenants=[TenantConfig(name="a", ceiling=3)])
    for key, start in enumerate((0, 20)):
        engine.add(key, prompt(9, start=start), plain(1), tenant="a")
        engine.run()
    pin(engine, 0, tenant="a")
    with pytest.raises(PinBudgetError, match=r"^2 blocks cannot be pinned: tenant a may hold no more$"):
        engine.scheduler.pin(prompt(8, start=20), 10.0, tenant="a")
    check_all(engine)


def test_what_runs_already_can_be_pinned_at_a_ceiling() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, tenants=[TenantConfig(name="a", ceiling=3)])
    engine.add(0, prompt(9), plain(3), tenant="a")
    engine.step()
    assert pin(engine, 0, tenant="a")
    engine.run()
    assert engine.scheduler.manager.quota.used[1] == 2


# ── how a pin ends ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_is_dropped_once() -> None:
    engine = warm(0)
    number = pin(engine, 0).number
    assert engine.scheduler.pinning.drop(number) is True
    assert engine.scheduler.pinning.drop(number) is False
    check_empty(engine.scheduler)
    assert hit(engine, 0) == 8  # still cached
    assert engine.scheduler.counters.pins_dropped == 0  # by us, that is


def test_a_pin_ends_with_its_time_on_the_schedulers_clock() -> None:
    engine = warm(0)
    engine.now = 5.0
    pin(engine, 0, ttl=10.0)
    engine.now = 14.9
    assert len(engine.scheduler.pinning.listed()) == 1
    engine.now = 15.0
    assert engine.scheduler.pinning.listed() == []
    assert engine.scheduler.counters.pins_expired == 1
    check_empty(engine.scheduler)


def test_a_step_is_enough_to_end_what_is_over() -> None:
    engine = warm(0)
    pin(engine, 0, ttl=10.0)
    engine.now = 10.0
    engine.add(0, prompt(3, start=40), plain(1))
    engine.step()
    assert engine.scheduler.counters.pins_expired == 1


def test_the_pin_that_ends_next_is_listed_first() -> None:
    engine = warm(0, 10, 20)
    late, soon, middle = pin(engine, 0, ttl=30.0), pin(engine, 10, ttl=10.0), pin(engine, 20, ttl=20.0)
    assert engine.scheduler.pinning.listed() == [soon, middle, late]
    engine.now = 20.0
    assert engine.scheduler.pinning.listed() == [late]


def test_a_pin_makes_room_for_another_when_its_time_is_over() -> None:
    engine = warm(0, 20, pin_ratio=0.125)
    pin(engine, 0, ttl=10.0)
    engine.now = 10.0
    assert pin(engine, 20)


@pytest.mark.parametrize("whose", [{}, {"salt": ""}, {"tokens": prompt(4)}, {"tokens": prompt(8)}])
def test_invalidation_ends_a_pin(whose: dict[str, Any]) -> None:
    engine = warm(0)
    pin(engine, 0)
    assert engine.scheduler.invalidate(**whose) > 0
    check_all(engine)
    assert engine.scheduler.pinning.listed() == []
    assert hit(engine, 0) < 8


@pytest.mark.parametrize("whose", [{"salt": "a"}, {"tokens": prompt(4, start=30)}, {"tokens": prompt(12)}])
def test_invalidation_of_something_else_does_not(whose: dict[str, Any]) -> None:
    engine = warm(0)
    pin(engine, 0)
    engine.scheduler.invalidate(**whose)
    check_all(engine)
    assert len(engine.scheduler.pinning.listed()) == 1
    assert hit(engine, 0) == 8


def test_invalidation_under_a_running_request_changes_nothing_that_it_says() -> None:
    engine = warm(0)
    engine.add(0, prompt(9), plain(9))
    engine.step()
    engine.scheduler.invalidate()
    engine.add(1, prompt(9), plain(9))
    engine.run()
    assert engine.cached[0, 0] == 8
    assert engine.cached[1, 0] == 0
    assert engine.outputs[0, 0] == engine.outputs[1, 0] == expected(prompt(9), plain(9))


# ── when a pin gives way ────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_gives_way_to_a_request_that_could_not_run_otherwise() -> None:
    engine = warm(0, num_blocks=8)
    pin(engine, 0)
    engine.add(0, prompt(26, start=20), plain(1))  # 7 of 8 blocks
    engine.run()
    assert engine.scheduler.counters.pins_dropped == 1
    assert engine.outputs[0, 0] == expected(prompt(26, start=20), plain(1))


def test_as_long_as_anybody_runs_a_request_waits_for_that_instead() -> None:
    engine = warm(0, num_blocks=8)
    pin(engine, 0)
    engine.add(0, prompt(9, start=40), plain(5))
    engine.step()
    engine.add(1, prompt(22, start=20), plain(1))  # 6 blocks: all that are not pinned
    engine.run()
    assert engine.scheduler.counters.pins_dropped == 0
    assert engine.reasons[1, 0] == "length"


def test_no_more_pins_give_way_than_have_to_and_the_next_to_end_goes_first() -> None:
    engine = warm(0, 10, 20, num_blocks=8, pin_ratio=1.0)
    late, soon, middle = pin(engine, 0, ttl=30.0), pin(engine, 10, ttl=10.0), pin(engine, 20, ttl=20.0)
    engine.add(0, prompt(14, start=40), plain(1))  # 4 blocks; 2 are free
    engine.run()
    assert engine.scheduler.pinning.listed() == [middle, late]
    assert soon.number not in [left.number for left in engine.scheduler.pinning.listed()]


def test_a_pin_of_the_requests_own_beginning_helps_it_instead_of_giving_way() -> None:
    engine = warm(0, num_blocks=8)
    pin(engine, 0)
    engine.add(0, prompt(30), plain(1))  # 8 blocks, 2 of them pinned
    engine.run()
    assert engine.scheduler.counters.pins_dropped == 0
    assert engine.cached[0, 0] == 8


def test_pins_do_not_give_way_in_vain_to_a_tenant_at_its_ceiling() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, tenants=[TenantConfig(name="a", ceiling=4)])
    for key, (start, tenant) in enumerate(((0, ""), (20, "a"))):
        engine.add(key, prompt(9, start=start), plain(1), tenant=tenant)
        engine.run()
    kept = pin(engine, 0, ttl=10.0)  # would be the first to go
    pin(engine, 20, ttl=20.0, tenant="a")
    engine.add(2, prompt(14, start=40), plain(1), tenant="a")  # all that a tenant may hold
    engine.run()
    assert engine.scheduler.pinning.listed() == [kept]


def test_a_sequence_that_runs_alone_grows_into_pinned_blocks() -> None:
    engine = warm(0, num_blocks=6)
    pin(engine, 0)
    engine.add(0, prompt(9, start=40), plain(14))  # 6 blocks at its end
    engine.run()
    assert engine.scheduler.counters.pins_dropped == 1
    assert engine.scheduler.counters.preemptions == 0
    assert engine.outputs[0, 0] == expected(prompt(9, start=40), plain(14))


def test_others_give_way_before_a_pin_does() -> None:
    engine = crowded(num_blocks=10, pin_ratio=0.5)
    engine.add(9, prompt(9, start=40), plain(1))
    while (9, 0) not in engine.reasons:
        engine.step()
    pin(engine, 40)
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.pins_dropped == 0
    assert len(engine.scheduler.pinning.listed()) == 1


# ── pins by request ─────────────────────────────────────────────────────────────────────────────────────────


def results(engine: Engine) -> list[StepResult]:
    """What every step from now on gives out."""
    seen: list[StepResult] = []
    take = engine.take

    def record(result: StepResult) -> None:
        seen.append(result)
        take(result)

    engine.take = record  # type: ignore[method-assign]
    return seen


def test_a_request_pins_its_prompt_when_that_is_complete() -> None:
    engine = warm(max_num_batched_tokens=4)
    seen = results(engine)
    engine.add(0, prompt(9), plain(3), pin_ttl=10.0)
    for _ in range(2):
        engine.step()
        assert engine.scheduler.pinning.listed() == []
    engine.step()
    (made,) = engine.scheduler.pinning.listed()
    assert seen[-1].pinned == ((stream_of(0, 0), made.number),)
    assert (len(made.blocks), made.expires) == (2, 10.0)
    engine.run()
    assert [result.pinned for result in seen[3:]] == [()] * (len(seen) - 3)
    flush(engine)
    assert hit(engine, 0) == 8


def test_the_time_of_a_requests_pin_begins_when_the_prompt_is_complete() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, max_num_batched_tokens=4)
    engine.add(0, prompt(8), plain(1), pin_ttl=10.0)
    engine.step()
    engine.now = 5.0
    engine.run()
    assert engine.scheduler.pinning.listed()[0].expires == 15.0


def test_a_prompt_that_ends_with_its_block_is_pinned_whole() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5)
    for key in range(2):  # the second one computes the last block once more, and shares the first one's
        engine.add(key, prompt(8), plain(1), pin_ttl=10.0 + key)
        engine.run()
        (made,) = engine.scheduler.pinning.listed()
        assert (len(made.blocks), made.expires) == (2, 10.0 + key)
    assert engine.scheduler.manager.pins.num_blocks == 2


def test_if_other_pins_leave_no_room_the_request_runs_and_is_told_so() -> None:
    engine = warm(0, pin_ratio=0.2)
    pin(engine, 0)
    seen = results(engine)
    engine.add(0, prompt(9, start=20), plain(3), pin_ttl=10.0)
    engine.run()
    assert [result.pinned for result in seen] == [((stream_of(0, 0), 0),), (), ()]
    assert engine.outputs[0, 0] == expected(prompt(9, start=20), plain(3))


@pytest.mark.parametrize(("count", "limits"), [(3, {}), (12, {"pin_ratio": 0.125}), (9, {"caching": False})])
def test_nor_is_a_request_refused_that_can_never_be_pinned(count: int, limits: dict[str, Any]) -> None:
    engine = warm(0, **limits)
    seen = results(engine)
    engine.add(0, prompt(count, start=20), plain(3), pin_ttl=10.0)
    engine.run()
    assert [result.pinned for result in seen] == [((stream_of(0, 0), 0),), (), ()]
    assert engine.outputs[0, 0] == expected(prompt(count, start=20), plain(3))


def test_what_was_invalidated_meanwhile_is_not_pinned() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, max_num_batched_tokens=4)
    seen = results(engine)
    engine.add(0, prompt(9), plain(3), pin_ttl=10.0)
    engine.step()
    engine.scheduler.invalidate()
    engine.run()
    assert [result.pinned for result in seen if result.pinned] == [((stream_of(0, 0), 0),)]
    assert engine.scheduler.pinning.listed() == []


def test_siblings_pin_their_prompt_once() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5, max_num_seqs=2)
    seen = results(engine)
    engine.add(0, prompt(9), plain(3, n=4), pin_ttl=10.0)
    engine.run()
    assert len([result for result in seen if result.pinned]) == 1
    assert len(engine.scheduler.pinning.listed()) == 1


def test_a_request_that_gave_way_before_its_first_token_still_pins_its_prompt() -> None:
    engine = Engine(num_blocks=8, max_num_batched_tokens=4, pin_ratio=1.0)
    engine.add(0, prompt(3), plain(20))
    engine.step()
    engine.add(1, prompt(24, start=20), plain(3), pin_ttl=1_000.0)
    engine.step_until_preempted()
    engine.run()
    assert len(engine.scheduler.pinning.listed()) == 1
