"""SamplingParams: every bound, from both sides, and what the refusals say."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.scheduler.sampling import MAX_N, SamplingParams

INT32_MAX = 2**31 - 1
WHOLE = {
    "n": (1, MAX_N),
    "max_tokens": (1, INT32_MAX),
    "min_tokens": (0, INT32_MAX),
    "top_k": (-1, INT32_MAX),
    "seed": (-(2**63), 2**63 - 1),
    "best_of": (1, MAX_N),
    "beam_width": (0, MAX_N),
}
REAL = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "length_penalty": (-10.0, 10.0)}


def made_with(name: str, value: Any) -> Any:
    """The parameter of this name, as it is after validation."""
    return getattr(SamplingParams(**{name: value}), name)


def refusal(**values: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**values)
    return caught.value


def test_the_defaults_are_valid_and_sample() -> None:
    assert not SamplingParams().greedy


@pytest.mark.parametrize(("name", "bounds"), WHOLE.items())
def test_whole_numbers_are_accepted_at_their_bounds(name: str, bounds: tuple[int, int]) -> None:
    for value in bounds:
        assert made_with(name, value) == value


@pytest.mark.parametrize(("name", "bounds"), WHOLE.items())
def test_whole_numbers_are_refused_one_past_their_bounds(name: str, bounds: tuple[int, int]) -> None:
    low, high = bounds
    for value in (low - 1, high + 1):
        error = refusal(**{name: value})
        assert str(error) == f"{name} must be a whole number from {low} to {high}, not {value}"
        assert error.param == name


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [True, False, 1.0, "1", math.nan, [1]])
def test_only_whole_numbers_are_whole_numbers(name: str, value: object) -> None:
    assert refusal(**{name: value}).param == name


@pytest.mark.parametrize("name", ["n", "min_tokens", "top_k", "beam_width"])
def test_none_is_not_a_number(name: str) -> None:
    assert refusal(**{name: None}).param == name


@pytest.mark.parametrize("name", ["max_tokens", "seed", "best_of"])
def test_none_leaves_the_choice_to_the_engine(name: str) -> None:
    assert made_with(name, None) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (0, 0.0, 2, 2.0)),
        *(("top_p", value) for value in (5e-324, 1, 1.0)),
        *(("min_p", value) for value in (0, 0.0, 1, 1.0)),
        *(("length_penalty", value) for value in (-10, -10.0, 0, 10, 10.0)),
    ],
)
def test_reals_are_accepted_at_their_bounds(name: str, value: float) -> None:
    assert made_with(name, value) == value


@pytest.mark.parametrize(("name", "bounds"), REAL.items())
def test_reals_are_refused_just_past_their_bounds(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    for value in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf), low - 1, high + 1):
        assert refusal(**{name: value}).param == name


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "1", None])
def test_only_finite_numbers_are_reals(name: str, value: object) -> None:
    assert refusal(**{name: value}).param == name


@pytest.mark.parametrize("name", REAL)
def test_a_whole_number_too_large_for_a_float_is_refused_too(name: str) -> None:
    for value in (10**400, -(10**400)):
        assert refusal(**{name: value}).param == name


def test_a_real_out_of_range_is_named_with_its_range() -> None:
    assert str(refusal(temperature=2.5)) == "temperature must be a number from 0.0 to 2.0, not 2.5"
    assert str(refusal(min_p=math.nan)) == "min_p must be a number from 0.0 to 1.0, not nan"


def test_top_p_of_zero_would_leave_no_token() -> None:
    assert str(refusal(top_p=0.0)) == "top_p must be a number above 0.0, at most 1.0, not 0.0"
    assert refusal(top_p=0).param == "top_p"


def test_min_tokens_may_equal_max_tokens_and_not_exceed_it() -> None:
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5
    error = refusal(min_tokens=6, max_tokens=5)
    assert str(error) == "min_tokens (6) must not exceed max_tokens (5)"
    assert error.param == "min_tokens"


@pytest.mark.parametrize("token", [-1, True, 1.0, "1", None])
def test_stop_tokens_are_token_ids(token: object) -> None:
    error = refusal(stop_token_ids=(0, token))
    assert str(error) == f"stop_token_ids must hold token ids of 0 or more, not {token!r}"
    assert error.param == "stop_token_ids"


def test_temperature_near_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-38).greedy
    assert not SamplingParams(temperature=1e-4).greedy


def test_the_best_of_fewer_than_are_given_out_is_refused() -> None:
    assert SamplingParams(n=3, best_of=3).best_of == 3
    error = refusal(n=3, best_of=2)
    assert str(error) == f"best_of must be a whole number from 3 to {MAX_N}, not 2"
    assert error.param == "best_of"


def test_a_beam_search_gives_out_no_more_than_its_beams() -> None:
    assert SamplingParams(n=3, beam_width=3).beam_width == 3
    error = refusal(n=3, beam_width=2)
    assert str(error) == "n (3) must not exceed beam_width (2)"
    assert error.param == "n"


def test_best_of_and_beams_exclude_each_other() -> None:
    assert refusal(best_of=2, beam_width=2).param == "best_of"


@pytest.mark.parametrize(
    ("values", "sequences", "chooses"),
    [
        ({}, 1, False),
        ({"n": 3}, 3, False),
        ({"n": 3, "best_of": 3}, 3, False),
        ({"n": 2, "best_of": 5}, 5, True),
        ({"n": 2, "beam_width": 4}, 4, True),
        ({"beam_width": 1}, 1, True),
    ],
)
def test_what_is_run_and_whether_it_is_chosen_among(values: dict[str, Any], sequences: int, *, chooses: bool) -> None:
    sampling = SamplingParams(**values)
    assert (sampling.num_sequences, sampling.chooses) == (sequences, chooses)


def test_only_the_likeliest_token_is_plain() -> None:
    for values in ({}, {"n": 2}, {"top_k": 3, "top_p": 0.5, "seed": 1}, {"max_tokens": 3, "ignore_eos": True}):
        assert SamplingParams(temperature=0, **values).is_plain


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.5},
        {"logprobs": 0},
        {"grammar": "{}"},
        {"min_tokens": 1},
        {"best_of": 2},
        {"beam_width": 1},
        {"logit_bias": ((1, 2.0),)},
        {"allowed_token_ids": (1,)},
        {"bad_words": ((1,),)},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_what_is_more_than_the_likeliest_token_is_not_plain(values: dict[str, Any]) -> None:
    assert not SamplingParams(**{"temperature": 0.0, **values}).is_plain


@pytest.mark.parametrize("kind", ["last", "mean"])
def test_pooling_is_of_one_prompt_and_nothing_follows(kind: str) -> None:
    assert SamplingParams(pooling=kind, max_tokens=1).pooling == kind
    for values in ({}, {"max_tokens": 2}, {"max_tokens": 1, "n": 2}, {"max_tokens": 1, "beam_width": 1}):
        error = refusal(pooling=kind, **values)
        assert str(error) == "pooling takes one sequence and max_tokens 1"
        assert error.param == "pooling"


@pytest.mark.parametrize("kind", ["", "cls", 1, ["last"]])
def test_unknown_poolings_are_refused(kind: object) -> None:
    assert str(refusal(pooling=kind, max_tokens=1)) == f"pooling must be last or mean, not {kind!r}"


@pytest.mark.parametrize(
    ("values", "reads"),
    [
        ({}, True), ({"pooling": "last", "max_tokens": 1}, True), ({"pooling": "mean", "max_tokens": 1}, False),
        ({"prompt_logprobs": 0}, False),
    ],
)  # fmt: skip
def test_what_needs_every_token_reads_no_cache(values: dict[str, Any], *, reads: bool) -> None:
    assert SamplingParams(**values).reads_cache is reads


def test_parameters_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]
