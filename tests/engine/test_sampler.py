"""Sampling: each parameter does what its name says, a seed gives the same token in any company, and
log-probabilities and beams are the model's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import make_request
from scipy_free import chi_squared_ok

from octavo.engine import sampler
from octavo.engine.sampler import Sampler, uniforms
from octavo.scheduler.plan import Sampled
from octavo.scheduler.request import Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams

VOCAB = 1000


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn on a CPU, and by what is drawn elsewhere."""
    if request.param == "torch":
        monkeypatch.setattr(sampler, "_is_compiled", lambda logits: False)


def rows_for(*params: SamplingParams, seeds: list[int] | None = None) -> tuple[Rows, np.ndarray]:
    """Running sequences, and a row for each set of parameters."""
    rows = Rows(len(params), 64)
    indices = []
    for number, sampling in enumerate(params):
        prompt = np.array([1, 2, 3], dtype=np.int32)
        seed = sampling.seed or 0 if seeds is None else seeds[number]
        request = make_request(number, sampling=sampling, limit=64, seed=seed)
        indices.append(rows.occupy(Sequence(request, 0, prompt), 0))
    return rows, np.array(indices, dtype=np.int32)


def sampler_for(*params: SamplingParams, seeds: list[int] | None = None, eos: int = 2) -> tuple[Sampler, np.ndarray]:
    """A sampler, and a row for each set of parameters."""
    rows, indices = rows_for(*params, seeds=seeds)
    return Sampler(rows, [eos]), indices


def asked(
    logits: torch.Tensor, params: list[SamplingParams], *, logprobs: list[bool] | None = None, beams: list[int]
) -> Sampled:
    """What is sampled if row i wants log-probabilities, and belongs to a search with ``beams[i]`` beams."""
    rows, indices = rows_for(*params)
    rows.wants_logprobs[indices] = [False] * len(params) if logprobs is None else logprobs
    rows.beam_width[indices] = beams
    rows.plain[indices] = False  # as the request would have it
    return Sampler(rows, [2]).sample(logits.clone(), indices)


def random_logits(*shape: int) -> torch.Tensor:
    """Logits from -25 to 25 or so."""
    return 7 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def likeliest(logits: torch.Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: a stable sort of the whole vocabulary, which leaves equals in the order of their ids."""
    logprobs, tokens = torch.log_softmax(logits.double(), -1).sort(dim=-1, descending=True, stable=True)
    return tokens[:, :width].numpy(), logprobs[:, :width].numpy()


def draw(logits: torch.Tensor, sampling: SamplingParams, count: int = 400) -> np.ndarray:
    """Tokens that many requests with different seeds sample from one distribution."""
    sampler, rows = sampler_for(*[sampling] * count, seeds=list(range(count)))
    return sampler.sample(logits.expand(count, -1).clone(), rows).tokens


def peaked() -> torch.Tensor:
    """Token i has probability ∝ 2^-i."""
    return -torch.arange(VOCAB, dtype=torch.float32) * float(np.log(2))


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(5, VOCAB)
    sampler, rows = sampler_for(*[SamplingParams(temperature=0)] * 5)
    assert sampler.sample(logits.clone(), rows).tokens.tolist() == logits.argmax(-1).tolist()


def test_of_equals_the_first_is_taken() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[0, [5, 9]] = 3.0
    logits[1] = -torch.inf
    logits[2, :4] = -torch.inf
    sampler, rows = sampler_for(*[SamplingParams(temperature=0)] * 3)
    assert sampler.sample(logits.clone(), rows).tokens.tolist() == [5, 0, 4]


def test_greedy_rows_among_others_take_the_likeliest_as_well() -> None:
    logits = torch.randn(3, VOCAB)
    greedy = SamplingParams(temperature=0)
    for other in (SamplingParams(), SamplingParams(temperature=0, logprobs=1)):
        sampler, rows = sampler_for(greedy, other, greedy)
        sampled = sampler.sample(logits.clone(), rows)
        assert sampled.tokens[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()
        assert sampled.tokens.dtype == np.int32
        assert len(sampled.scores) == (other.logprobs is not None)


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
    expected = alone.sample(logits[None].clone(), row).tokens[0]
    crowd, rows = sampler_for(*others, params)
    assert crowd.sample(torch.cat((torch.randn(5, VOCAB), logits[None])), rows).tokens[-1] == expected


def test_no_stop_token_before_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 2], logits[0, 7], logits[0, 9] = 9.0, 8.0, 7.0
    params = SamplingParams(temperature=0, min_tokens=1, max_tokens=5, stop_token_ids=(7,))
    sampler, rows = sampler_for(params)
    assert sampler.sample(logits.clone(), rows).tokens.tolist() == [9]
    ignoring, rows = sampler_for(SamplingParams(temperature=0, min_tokens=1, max_tokens=5, ignore_eos=True))
    assert ignoring.sample(logits.clone(), rows).tokens.tolist() == [2]


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
    request = make_request(sampling=sampling, limit=64, seed=9)
    for index in range(4):
        rows.occupy(Sequence(request, index, prompt), 0)
    positions = np.arange(50, dtype=np.int32)
    drawn = np.concatenate([uniforms(np.repeat(rows.seed[i], 50), positions) for i in range(4)])
    assert len(np.unique(drawn)) == 200


def test_a_large_top_k_does_not_shrink_the_nucleus() -> None:
    drawn = draw(torch.zeros(VOCAB), SamplingParams(top_k=900, top_p=0.9), count=600)
    assert len(set(drawn.tolist())) > 300


GREEDY = SamplingParams(temperature=0)
MIXED = [
    GREEDY,
    SamplingParams(temperature=0.3, seed=1),
    SamplingParams(top_p=0.5, seed=2),
    SamplingParams(temperature=2.0, top_k=40, min_p=0.01, seed=3),
    SamplingParams(temperature=2.0, seed=4),
    SamplingParams(temperature=0, min_tokens=1, stop_token_ids=(7,)),
    SamplingParams(temperature=2.0, seed=5),
]


def test_logprobs_are_those_of_the_model_whatever_the_temperature() -> None:
    logits = random_logits(len(MIXED), VOCAB) / 4
    logits[5, 2], logits[5, 7] = 30.0, 31.0  # all of the probability, were they not forbidden
    wanted = [True, True, True, True, False, True, True]
    sampled = asked(logits, MIXED, logprobs=wanted, beams=[0, 0, 0, 0, 2, 0, 2])
    allowed = logits.double()
    allowed[5, [2, 7]] = -torch.inf
    expected = torch.log_softmax(allowed, -1)[range(len(MIXED)), sampled.tokens].numpy()
    assert sampled.logprobs is not None
    assert sampled.logprobs.dtype == np.float32
    np.testing.assert_allclose(sampled.logprobs, np.where(wanted, expected, 0), rtol=0, atol=1e-5)


def test_asking_changes_no_token() -> None:
    logits = random_logits(len(MIXED), VOCAB) / 4
    nobody = asked(logits, MIXED, beams=[0] * 7)
    everybody = asked(logits, MIXED, logprobs=[True] * 7, beams=[0] * 4 + [3, 0, 0])
    changed = np.flatnonzero(nobody.tokens != everybody.tokens)
    assert changed.tolist() == [4]  # which joined a search, and so is no longer sampled


def test_what_nobody_asks_for_is_none() -> None:
    logits, params = random_logits(2, VOCAB), [GREEDY, SamplingParams(seed=1)]
    nothing = asked(logits, params, beams=[0, 0])
    assert (nothing.logprobs, nothing.beam_tokens, nothing.beam_logprobs) == (None, None, None)
    assert nothing.tokens.dtype == np.int32
    assert asked(logits, params, logprobs=[True, False], beams=[0, 0]).beam_tokens is None
    assert asked(logits, params, beams=[1, 0]).logprobs is None


def test_only_rows_that_ask_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    normalised, log_softmax = [], torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, **how: normalised.append(len(x)) or log_softmax(x, **how))
    logits = random_logits(6, VOCAB)
    asked(logits, [GREEDY] * 6, beams=[0] * 6)
    assert normalised == []
    asked(logits, [GREEDY] * 6, logprobs=[True, False, False, True, True, False], beams=[0, 4, 0, 0, 0, 4])
    assert normalised == [3, 2]


def test_the_host_gets_everything_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.numel()) or cpu(tensor))
    asked(random_logits(3, VOCAB), [GREEDY] * 3, logprobs=[True, True, False], beams=[0, 0, 2])
    assert transfers == [3 + 2 + 4 + 4]


def test_beams_get_the_likeliest_tokens_in_the_order_of_their_rows() -> None:
    logits = random_logits(len(MIXED), VOCAB) / 4
    logits[3] -= 100  # below zero, where the order of a float's bits is reversed
    sampled = asked(logits, MIXED, beams=[0, 2, 0, 3, 0, 0, 1])
    tokens, logprobs = likeliest(logits[[1, 3, 6]], width=6)
    assert sampled.beam_tokens is not None
    assert sampled.beam_logprobs is not None
    assert (sampled.beam_tokens.dtype, sampled.beam_logprobs.dtype) == (np.int32, np.float32)
    assert sampled.beam_tokens.tolist() == tokens.tolist()
    np.testing.assert_allclose(sampled.beam_logprobs, logprobs, rtol=0, atol=1e-5)
    # Their own tokens are the likeliest ones: by temperature, row 6 would draw another.
    assert sampled.tokens[[1, 3, 6]].tolist() == tokens[:, 0].tolist()


def test_beams_follow_the_order_of_the_samples_not_of_the_rows() -> None:
    logits = random_logits(3, VOCAB)
    search = SamplingParams(temperature=0, beam_width=2)
    rows, indices = rows_for(search, GREEDY, search)
    sampled = Sampler(rows, [2]).sample(logits.clone(), indices[::-1].copy())
    assert sampled.beam_tokens is not None
    assert sampled.beam_tokens.tolist() == likeliest(logits[[0, 2]], width=4)[0].tolist()


def test_of_equally_likely_tokens_beams_take_the_lower_id_in_any_company() -> None:
    logits = (random_logits(4, VOCAB) / 4).round()
    tokens, logprobs = likeliest(logits, width=64)
    assert logprobs[0, 7] == logprobs[0, 8]  # which of them is among the first eight?
    alone = asked(logits[:1], [GREEDY], beams=[4]).beam_tokens
    crowd = asked(logits, [GREEDY] * 4, beams=[4, 1, 32, 2]).beam_tokens
    assert alone is not None
    assert crowd is not None
    assert alone.tolist() == tokens[:1, :8].tolist()
    assert crowd.tolist() == tokens.tolist()


def test_company_changes_no_bit_of_a_log_probability() -> None:
    logits = random_logits(24, 50_000) / 2
    together = asked(logits, [GREEDY] * 24, logprobs=[True] * 24, beams=[0] * 24).logprobs
    alone = [asked(row[None], [GREEDY], logprobs=[True], beams=[0]).logprobs for row in logits]
    assert together is not None
    assert together.tolist() == [number for numbers in alone if numbers is not None for number in numbers.tolist()]


def test_a_flat_distribution_has_the_first_ids_as_beams() -> None:
    sampled = asked(torch.zeros(1, VOCAB), [GREEDY], logprobs=[True], beams=[2])
    assert sampled.beam_tokens is not None
    assert sampled.beam_tokens.tolist() == [[0, 1, 2, 3]]
    assert sampled.beam_logprobs == pytest.approx(np.full((1, 4), -np.log(VOCAB)), abs=1e-5)
    assert sampled.logprobs == pytest.approx([-np.log(VOCAB)], abs=1e-5)


def test_beams_do_not_stop_before_min_tokens() -> None:
    logits = random_logits(1, VOCAB)
    logits[0, 2], logits[0, 7] = 40.0, 41.0
    sampled = asked(logits, [SamplingParams(min_tokens=1, stop_token_ids=(7,))], beams=[3])
    logits[0, [2, 7]] = -torch.inf
    tokens, logprobs = likeliest(logits, width=6)
    assert sampled.beam_tokens is not None
    assert sampled.beam_tokens.tolist() == tokens.tolist()
    assert sampled.beam_logprobs == pytest.approx(logprobs, abs=1e-5)


def test_a_vocabulary_smaller_than_the_width_is_padded_with_impossible_tokens() -> None:
    logits = random_logits(2, 5)
    sampled = asked(logits, [GREEDY] * 2, beams=[4, 1])
    tokens, logprobs = likeliest(logits, width=5)
    assert sampled.beam_tokens is not None
    assert sampled.beam_logprobs is not None
    assert sampled.beam_tokens.tolist() == [[*row, 0, 0, 0] for row in tokens.tolist()]
    assert sampled.beam_logprobs[:, :5] == pytest.approx(logprobs, abs=1e-5)
    assert (sampled.beam_logprobs[:, 5:] == -np.inf).all()


def test_where_every_token_is_forbidden_logprobs_are_minus_infinity_not_nan() -> None:
    stops_anywhere = SamplingParams(temperature=0, min_tokens=1, stop_token_ids=(0, 1, 3))
    sampled = asked(torch.zeros(2, 4), [stops_anywhere] * 2, logprobs=[True, False], beams=[0, 3])
    assert sampled.logprobs is not None
    assert sampled.beam_logprobs is not None
    assert sampled.logprobs.tolist() == [-np.inf, 0.0]
    assert sampled.beam_logprobs.tolist() == [[-np.inf] * 6]


@pytest.mark.parametrize("width", [3, 255, 256, 257, 1000, 49_152])
def test_the_token_found_in_two_steps_is_the_one_that_cumulative_weights_pass(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(200, width, generator=generator) * (torch.rand(200, width, generator=generator) > 0.5)
    weights[:, -1] = 0.0
    numbers = torch.rand(200, 1, generator=generator, dtype=torch.float64)
    numbers[0], numbers[1] = 0.0, 1 - 2.0**-53
    weights[:, 0] += 1e-6  # no row without any
    chosen = sampler._invert(weights, numbers)
    assert (weights.gather(-1, chosen.unsqueeze(-1)) > 0).all()
    cumulative = weights.double().cumsum(dim=-1)
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, chosen.unsqueeze(-1))
    goal, slack = numbers * cumulative[:, -1:], 1e-9 * cumulative[:, -1:]
    assert ((before <= goal + slack) & (goal <= cumulative.gather(-1, chosen.unsqueeze(-1)) + slack)).all()
    for odd in (torch.zeros(1, width), torch.full((1, width), torch.nan)):
        assert 0 <= sampler._invert(odd, numbers[:1]).item() < width
