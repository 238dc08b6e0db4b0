"""Sampling: each parameter does what its name says, and a seed gives the same token in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy_free import chi_squared_ok

from octavo.engine.sampler import Sampler, uniforms
from octavo.scheduler.request import Request, Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams

VOCAB = 1000


def sampler_for(*params: SamplingParams, seeds: list[int] | None = None, eos: int = 2) -> tuple[Sampler, np.ndarray]:
    """A sampler, and a row for each set of parameters."""
    rows = Rows(len(params), 64)
    indices = []
    for number, sampling in enumerate(params):
        prompt = np.array([1, 2, 3], dtype=np.int32)
        seed = sampling.seed or 0 if seeds is None else seeds[number]
        request = Request(number, number, prompt, sampling, 64, seed, "", 0)
        indices.append(rows.occupy(Sequence(request, 0, prompt), 0))
    return Sampler(rows, [eos]), np.array(indices, dtype=np.int32)


def draw(logits: torch.Tensor, sampling: SamplingParams, count: int = 400) -> np.ndarray:
    """Tokens that many requests with different seeds sample from one distribution."""
    sampler, rows = sampler_for(*[sampling] * count, seeds=list(range(count)))
    return sampler.sample(logits.expand(count, -1).clone(), rows)


def peaked() -> torch.Tensor:
    """Token i has probability ∝ 2^-i."""
    return -torch.arange(VOCAB, dtype=torch.float32) * float(np.log(2))


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(5, VOCAB)
    sampler, rows = sampler_for(*[SamplingParams(temperature=0)] * 5)
    assert sampler.sample(logits.clone(), rows).tolist() == logits.argmax(-1).tolist()


def test_frequencies_follow_the_probabilities() -> None:
    drawn = draw(peaked(), SamplingParams(), count=4000)
    expected = 4000 * torch.softmax(peaked(), -1).numpy()
    assert chi_squared_ok(np.bincount(drawn, minlength=8)[:8], expected[:8])


def test_frequencies_follow_the_probabilities_on_the_truncated_path() -> None:
    drawn = draw(peaked(), SamplingParams(top_p=0.999999), count=4000)
    expected = 4000 * torch.softmax(peaked(), -1).numpy()
    assert chi_squared_ok(np.bincount(drawn, minlength=8)[:8], expected[:8])


def test_temperature_sharpens() -> None:
    assert np.mean(draw(peaked(), SamplingParams(temperature=0.3)) == 0) > 0.85
    assert np.mean(draw(peaked(), SamplingParams(temperature=2.0)) == 0) < 0.45


def test_top_k_keeps_k_tokens() -> None:
    assert set(draw(peaked(), SamplingParams(top_k=3, temperature=2.0)).tolist()) == {0, 1, 2}


def test_top_k_beyond_the_vocabulary_is_all() -> None:
    assert draw(torch.zeros(VOCAB), SamplingParams(top_k=10 * VOCAB)).max() > VOCAB // 2


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.51, {0, 1}), (0.76, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(draw(peaked(), SamplingParams(top_p=top_p)).tolist()) == kept


def test_top_p_counts_what_top_k_left() -> None:
    # Of the two tokens that top-k leaves, the first has two thirds.
    assert set(draw(peaked(), SamplingParams(top_k=2, top_p=0.66)).tolist()) == {0}
    assert set(draw(peaked(), SamplingParams(top_k=2, top_p=0.67)).tolist()) == {0, 1}


def test_min_p_drops_what_is_unlikely_beside_the_likeliest() -> None:
    assert set(draw(peaked(), SamplingParams(min_p=0.3)).tolist()) == {0, 1}


def test_a_flat_distribution_reaches_past_the_first_candidates() -> None:
    drawn = draw(torch.zeros(VOCAB), SamplingParams(top_p=0.9), count=600)
    assert len(set(drawn.tolist())) > 300


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    logits = torch.randn(VOCAB)
    params = SamplingParams(seed=11, top_p=0.9)
    others = [SamplingParams(seed=i, top_k=i, temperature=0.5 + i / 10) for i in range(5)]
    alone, row = sampler_for(params)
    expected = alone.sample(logits[None].clone(), row)[0]
    crowd, rows = sampler_for(*others, params)
    assert crowd.sample(torch.cat((torch.randn(5, VOCAB), logits[None])), rows)[-1] == expected


def test_no_stop_token_before_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 2], logits[0, 7], logits[0, 9] = 9.0, 8.0, 7.0
    params = SamplingParams(temperature=0, min_tokens=1, max_tokens=5, stop_token_ids=(7,))
    sampler, rows = sampler_for(params)
    assert sampler.sample(logits.clone(), rows).tolist() == [9]
    ignoring, rows = sampler_for(SamplingParams(temperature=0, min_tokens=1, max_tokens=5, ignore_eos=True))
    assert ignoring.sample(logits.clone(), rows).tolist() == [2]


def test_uniforms_lie_in_the_unit_interval_and_do_not_repeat() -> None:
    seeds = np.repeat(np.arange(100, dtype=np.uint64), 100)
    numbers = uniforms(seeds, np.tile(np.arange(100, dtype=np.int32), 100))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == len(numbers)
    assert abs(numbers.mean() - 0.5) < 0.01


def test_siblings_do_not_draw_each_others_numbers() -> None:
    sampling = SamplingParams(n=4, seed=9)
    prompt = np.array([1], dtype=np.int32)
    rows = Rows(4, 64)
    request = Request(0, 0, prompt, sampling, 64, 9, "", 0)
    for index in range(4):
        rows.occupy(Sequence(request, index, prompt), 0)
    positions = np.arange(50, dtype=np.int32)
    drawn = np.concatenate([uniforms(np.repeat(rows.seed[i], 50), positions) for i in range(4)])
    assert len(np.unique(drawn)) == 200


def test_a_large_top_k_does_not_shrink_the_nucleus() -> None:
    drawn = draw(torch.zeros(VOCAB), SamplingParams(top_k=900, top_p=0.9), count=600)
    assert len(set(drawn.tolist())) > 300
