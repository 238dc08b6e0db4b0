"""CostModel: coefficients found again in noisy step times, and what it says before it knows."""

from __future__ import annotations

import random

import pytest
from engines import Pace, plan_of

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.scheduler.costs import CostModel, pairs

PACE = Pace(step=0.01, prefill=1e-4, decode=2e-4, pair=4e-8)
# What PACE takes for so many tokens from a position, beside everything else.
COMPUTATIONS = [(1, 0), (100, 0), (100, 2000), (500, 500)]


def truth(tokens: int, start: int, pace: Pace = PACE) -> float:
    return pace.prefill * tokens + pace.pair * pairs(start, tokens)


def observe_mixed_work(costs: CostModel, pace: Pace, steps: int, *, noise: float = 0.0, seed: int = 0) -> None:
    rng = random.Random(seed)
    for _ in range(steps):
        chunks = [(rng.randrange(2000), rng.randint(2, 256)) for _ in range(rng.choice([0, 1, 1, 2]))]
        plan = plan_of(chunks, decodes=rng.randint(0 if chunks else 1, 20))
        costs.observe_step(plan, pace.seconds(plan) * rng.gauss(1.0, noise))


@pytest.mark.parametrize(("start", "tokens"), [(0, 0), (0, 1), (0, 4), (7, 1), (7, 3)])
def test_every_token_attends_to_itself_and_to_all_before_it(start: int, tokens: int) -> None:
    assert pairs(start, tokens) == sum(position + 1 for position in range(start, start + tokens))


# ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("tokens", "start"), COMPUTATIONS)
def test_exact_times_are_predicted_exactly(tokens: int, start: int) -> None:
    costs = CostModel()
    observe_mixed_work(costs, PACE, 100)
    assert costs.compute_seconds(tokens, start) == pytest.approx(truth(tokens, start), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tokens", "start"), COMPUTATIONS)
def test_noise_changes_predictions_little(tokens: int, start: int, seed: int) -> None:
    costs = CostModel()
    observe_mixed_work(costs, PACE, 1_000, noise=0.05, seed=seed)
    assert costs.compute_seconds(tokens, start) == pytest.approx(truth(tokens, start), rel=0.2)


def test_what_decodes_and_the_step_itself_take_is_not_put_down_to_prefill() -> None:
    costs = CostModel()
    observe_mixed_work(costs, Pace(step=0.5, prefill=1e-4, decode=0.1), 100)
    assert costs.compute_seconds(100) == pytest.approx(100e-4, rel=1e-2)


def test_late_chunks_of_long_prompts_cost_more() -> None:
    costs = CostModel()
    observe_mixed_work(costs, PACE, 100)
    early, late = costs.compute_seconds(100, 0), costs.compute_seconds(100, 10_000)
    assert early is not None
    assert late is not None
    assert late > 2 * early


@pytest.mark.parametrize("start", [0, 2000])
def test_the_tokens_that_fit_into_a_step_are_those_that_take_as_long(start: int) -> None:
    costs = CostModel()
    observe_mixed_work(costs, PACE, 100)
    fitting = costs.tokens_within(0.05, 20, start, most=2000)
    assert 0 < fitting < 2000
    taken = PACE.step + 20 * PACE.decode + truth(fitting, start)
    assert 0.97 * 0.05 < taken <= 0.0501


@pytest.mark.parametrize(
    ("first", "slope"), [(0.0, 7e-4), (0.5, 3.5e-4), (2.0, 3.5e-4)], ids=["large chunks cost more", "slow", "very slow"]
)
def test_decodes_are_not_blamed_for_what_prompts_take(first: float, slope: float) -> None:
    costs = CostModel()

    def observe(tokens: int, decodes: int, extra: float = 0.0) -> None:
        prefill = 3.5e-4 * min(tokens, 256) + slope * max(0, tokens - 256)
        plan = plan_of([(0, tokens)] if tokens else [], decodes)
        costs.observe_step(plan, 0.01 + 2e-3 * decodes + prefill + extra)

    for extra in (first, 0.0, 0.0):
        observe(500, 0, extra)
    for _ in range(6):
        for tokens in (300, 32):
            observe(tokens, 8)
        for _ in range(10):
            observe(0, 8)
    decodes = costs.decode_seconds(8)
    assert decodes is not None
    assert 0.5 * 0.026 < decodes < 2 * 0.026


def test_no_more_tokens_fit_than_there_may_be_and_some_beside_slow_decodes() -> None:
    costs = CostModel()
    assert costs.tokens_within(0.01, 20, 0, most=500) == 500  # nothing is known yet
    observe_mixed_work(costs, PACE, 100)
    for seconds in (10.0, 1e308, float("inf")):
        assert costs.tokens_within(seconds, 20, 0, most=500) == 500
    # However slow they are, as much time is for prompts.
    fitting = costs.tokens_within(0.0, 20, 0, most=500)
    assert truth(fitting, 0) == pytest.approx(PACE.step + 20 * PACE.decode, rel=0.03)


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    costs = CostModel()
    observe_mixed_work(costs, PACE, 300)
    slower = Pace(step=0.01, prefill=8e-4, decode=2e-4, pair=4e-8)
    observe_mixed_work(costs, slower, 1_000, seed=1)
    assert costs.compute_seconds(100, 100) == pytest.approx(truth(100, 100, slower), rel=0.1)


def test_nothing_is_predicted_before_enough_was_seen() -> None:
    costs = CostModel()
    assert costs.compute_seconds(100) is None
    for _ in range(16):  # of 16 tokens each, the first of which does not count
        plan = plan_of([(0, 16)])
        costs.observe_step(plan, PACE.seconds(plan))
        assert costs.compute_seconds(100) is None
    costs.observe_step(plan, PACE.seconds(plan))
    assert costs.compute_seconds(100) is not None


def test_decodes_alone_teach_nothing_about_prefill() -> None:
    costs = CostModel()
    for _ in range(1_000):
        costs.observe_step(plan_of([], decodes=8), 0.01)
    assert costs.compute_seconds(100) is None


@pytest.mark.parametrize("decodes", [0, 8])
def test_steps_of_one_size_cannot_tell_the_terms_apart_so_the_mean_has_to_do(decodes: int) -> None:
    costs = CostModel()
    for _ in range(100):
        costs.observe_step(plan_of([(0, 64)], decodes), 0.032)
    for tokens in (32, 64, 128):
        assert costs.compute_seconds(tokens) == pytest.approx(tokens * 0.032 / 64, rel=1e-3)


def test_no_prediction_is_negative_whatever_was_seen() -> None:
    rng = random.Random(0)
    for seed in range(50):
        costs = CostModel()
        for _ in range(40):
            plan = plan_of([(rng.randrange(500), rng.randint(2, 64))], rng.randrange(4))
            costs.observe_step(plan, rng.random())
        for tokens, start in COMPUTATIONS:
            seconds = costs.compute_seconds(tokens, start)
            assert seconds is not None
            assert seconds > 0, f"seed {seed}"


def test_if_longer_prefills_take_less_time_the_mean_has_to_do() -> None:
    costs, sizes = CostModel(), (16, 32, 64, 128) * 4
    seconds = [1.0 - 1e-3 * tokens - 1e-6 * pairs(0, tokens) for tokens in sizes]
    for tokens, took in zip(sizes, seconds, strict=True):
        costs.observe_step(plan_of([(0, tokens)]), took)
    assert costs.compute_seconds(10) == pytest.approx(10 * sum(seconds[1:]) / sum(sizes[1:]))  # the first is cold


# ── transfers ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_transfer_is_taken_at_its_word_and_later_ones_move_the_mean_by_a_fifth() -> None:
    costs = CostModel()
    costs.observe_transfer(TransferTiming(Tier.DEVICE, Tier.HOST, num_blocks=4, seconds=8.0))
    assert costs.block_seconds(Tier.DEVICE, Tier.HOST) == 2.0
    costs.observe_transfer(TransferTiming(Tier.DEVICE, Tier.HOST, num_blocks=1, seconds=7.0))
    assert costs.block_seconds(Tier.DEVICE, Tier.HOST) == 3.0


def test_directions_and_tiers_are_measured_apart() -> None:
    costs = CostModel()
    costs.observe_transfer(TransferTiming(Tier.DEVICE, Tier.HOST, 1, 1.0))
    assert costs.block_seconds(Tier.HOST, Tier.DEVICE) is None
    assert costs.block_seconds(Tier.DEVICE, Tier.DISK) is None


def test_a_round_trip_is_known_when_both_ways_are() -> None:
    costs = CostModel()
    costs.observe_transfer(TransferTiming(Tier.DEVICE, Tier.HOST, 1, 1.0))
    assert costs.round_trip_seconds(Tier.HOST) is None
    costs.observe_transfer(TransferTiming(Tier.HOST, Tier.DEVICE, 2, 5.0))
    assert costs.round_trip_seconds(Tier.HOST) == 1.0 + 2.5
    assert costs.round_trip_seconds(Tier.DISK) is None
