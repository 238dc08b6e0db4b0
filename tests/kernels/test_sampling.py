"""Tokens drawn from whole distributions are those at which the cumulative probability passes the number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu.sampling import RUN, sample_rows

ALL = (0, 1.0, 0.0)
"""Top-k, top-p and min-p that leave all tokens."""


def sample(
    logits: Tensor, temperatures: list[float], numbers: list[float], left: list[tuple[int, float, float]]
) -> list[int]:
    top_k, top_p, min_p = zip(*left, strict=True)
    cut = np.array(top_k, np.int32), np.array(top_p, np.float32), np.array(min_p, np.float32)
    tokens: list[int] = sample_rows(logits, np.array(numbers), np.array(temperatures, np.float32), *cut).tolist()
    return tokens


def draw(logits: Tensor, temperature: float, numbers: list[float], left: tuple[int, float, float] = ALL) -> list[int]:
    """One token of the same row for each number."""
    count = len(numbers)
    return sample(logits.expand(count, -1), [temperature] * count, numbers, [left] * count)


def left_over(logits: Tensor, temperature: float, left: tuple[int, float, float]) -> Tensor:
    """The oracle: weights, float64, 0 where a token is not left; of equals those of lower ids come first."""
    top_k, top_p, min_p = left
    probs = torch.softmax(logits.double() / temperature, dim=-1)
    ordered, ids = probs.sort(descending=True, stable=True)
    kept = torch.arange(len(probs)) < (top_k or len(probs))
    among = ordered * kept
    if top_p < 1:
        kept &= among.cumsum(-1) - among < top_p * among.sum()
    kept &= ordered >= min_p * ordered[0]
    return torch.zeros_like(probs).scatter(0, ids, ordered * kept)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("vocab", [1, 7, RUN, RUN + 1, 49_152])
def test_a_number_falls_into_its_token(vocab: int, temperature: float) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    numbers = [*np.random.default_rng(0).random(50).tolist(), 0.0, 1 - 2.0**-53]
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    for number, token in zip(numbers, draw(logits, temperature, numbers), strict=True):
        assert cumulative[token] >= number - 1e-5
        assert token == 0 or cumulative[token - 1] <= number + 1e-5


@pytest.mark.parametrize("number", [0.0, 0.3, 1 - 2.0**-53])
def test_what_is_forbidden_is_never_drawn(number: float) -> None:
    logits = torch.full((3 * RUN,), -torch.inf)
    logits[RUN + 5] = 2.0
    assert draw(logits, 1.0, [number]) == [RUN + 5]


def test_extremes() -> None:
    logits = torch.tensor([-1e30, 3e38, -torch.inf, 0.0])
    assert draw(logits, 1e-5, [0.0, 0.5, 1 - 2.0**-53]) == [1, 1, 1]
    for odd in (torch.nan, torch.inf, -torch.inf):
        assert 0 <= draw(torch.full((RUN + 3,), odd), 1.0, [0.7])[0] < RUN + 3


@pytest.mark.parametrize("left", [(1, 1.0, 0.0), (0, 1e-30, 0.0), (0, 1.0, 1.0), (3, 0.5, 0.1), ALL], ids=str)
def test_extremes_with_some_left(left: tuple[int, float, float]) -> None:
    for odd in (torch.nan, torch.inf, -torch.inf):
        assert 0 <= draw(torch.full((RUN + 3,), odd), 1.0, [0.7], left)[0] < RUN + 3
    mixed = torch.tensor([torch.nan, 2.0, -torch.inf, 1.0] * RUN)
    assert 0 <= draw(mixed, 1.0, [0.7], left)[0] < len(mixed)
    alone = torch.full((3 * RUN,), -torch.inf)
    alone[RUN + 5] = -1e30
    assert draw(alone, 1e-5, [0.0, 1 - 2.0**-53], left) == [RUN + 5] * 2


@pytest.mark.parametrize(
    "left",
    [
        *((1, 1.0, 0.0), (2, 1.0, 0.0), (40, 1.0, 0.0), (192, 1.0, 0.0), (193, 1.0, 0.0), (30_000, 1.0, 0.0)),
        *((0, 0.1, 0.0), (0, 0.5, 0.0), (0, 0.95, 0.0), (0, 0.99999, 0.0), (0, 1.0, 0.05), (0, 1.0, 0.9)),
        *((50, 0.9, 0.0), (5_000, 0.3, 0.0), (10, 0.99, 0.2), (0, 0.9, 0.01)),
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("vocab", [1, 7, RUN + 1, 49_152])
def test_a_number_falls_into_its_token_among_those_left(
    vocab: int, spread: float, left: tuple[int, float, float]
) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    numbers = [*np.random.default_rng(0).random(20).tolist(), 0.0, 1 - 2.0**-53]
    top_k, top_p, min_p = left
    # Sums of 49,152 float32 do not tell the last token from the one after it.
    weights = left_over(logits, 0.7, (top_k, top_p + (1e-5 if top_p < 1 else 0), min_p * (1 - 1e-5)))
    share = (weights / weights.sum()).cumsum(-1)
    for number, token in zip(numbers, draw(logits, 0.7, numbers, left), strict=True):
        assert weights[token] > 0
        assert share[token] >= number - 1e-4
        assert token == 0 or share[token - 1] <= number + 1e-4


def test_of_equals_those_of_lower_ids_are_left() -> None:
    logits = torch.zeros(4 * RUN)
    logits[::2] = 1.0
    numbers = np.linspace(0, 1, 400, endpoint=False).tolist()
    assert set(draw(logits, 1.0, numbers, (5, 1.0, 0.0))) == {0, 2, 4, 6, 8}
    assert set(draw(logits, 1.0, numbers, (2 * RUN + 2, 1.0, 0.0))) >= {1, 3}
    assert max(token for token in draw(logits, 1.0, numbers, (2 * RUN + 2, 1.0, 0.0)) if token % 2) == 3
    assert set(draw(torch.zeros(1024), 1.0, numbers, (0, 0.0625, 0.0))) == set(range(64))


def test_a_row_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 1000, generator=generator)
    temperatures, numbers = np.linspace(0.2, 2, 9).tolist(), np.random.default_rng(1).random(9).tolist()
    left = [ALL, (5, 1.0, 0.0), (0, 0.9, 0.0)] * 3
    together = sample(logits, temperatures, numbers, left)
    for row in range(9):
        one = slice(row, row + 1)
        assert sample(logits[one], temperatures[one], numbers[one], left[one]) == [together[row]]
