"""Softmax's two passes over a row, whatever its length."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numba.core.errors import NumbaError

from octavo.kernels.cpu.softmax import exponentiate, largest

LENGTHS = [0, 1, 2, 15, 31, 32, 33, 63, 64, 100, 256, 1000]


@njit
def top_of(row):
    return largest(row)


@njit
def weigh(row, top):
    return exponentiate(row, top)


def scores(length: int, spread: float = 8.0) -> np.ndarray:
    return (np.random.default_rng(length).normal(size=length + 2) * spread).astype(np.float32)[1:-1]


@pytest.mark.parametrize("length", LENGTHS)
def test_largest(length: int) -> None:
    row = scores(length)
    assert top_of(row) == (row.max() if length else -np.inf)
    if length:
        row[:] = -np.inf
        assert top_of(row) == -np.inf
        row[-1] = -3.0
        assert top_of(row) == -3.0


@pytest.mark.parametrize("length", LENGTHS)
def test_exponentiate(length: int) -> None:
    padded = np.full(length + 64, 7.0, np.float32)
    row = padded[:length]
    row[:] = scores(length)
    top = np.float32(row.max() if length else 0.0)
    exact = np.exp2((row - top).astype(np.float64))
    total = weigh(row, top)
    np.testing.assert_allclose(row, exact, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(total, exact.sum(), rtol=1e-6)
    assert (padded[length:] == 7.0).all()


def test_what_is_far_below_becomes_nothing() -> None:
    row = np.array([0.0, -125.0, -127.0, -1e30, -np.inf], np.float32)
    assert weigh(row, np.float32(0.0)) == 1.0
    assert row[1] == np.float32(2.0**-125)
    assert (row[2:] == 0.0).all()


def test_rows_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(NumbaError):
        top_of(scores(20)[::2])
