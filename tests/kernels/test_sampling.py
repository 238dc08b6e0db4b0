"""Tokens drawn from whole distributions are those at which the cumulative probability passes the number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu.sampling import RUN, sample_rows


def draw(logits: Tensor, temperature: float, numbers: list[float]) -> list[int]:
    """One token of the same row for each number."""
    rows = logits.expand(len(numbers), -1)
    return sample_rows(rows, np.full(len(numbers), temperature, np.float32), np.array(numbers)).tolist()


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


def test_a_row_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 1000, generator=generator)
    temperatures, numbers = np.linspace(0.2, 2, 9, dtype=np.float32), np.random.default_rng(1).random(9)
    together = sample_rows(logits, temperatures, numbers)
    for row in range(9):
        one = slice(row, row + 1)
        assert sample_rows(logits[one], temperatures[one], numbers[one]).item() == together[row]
