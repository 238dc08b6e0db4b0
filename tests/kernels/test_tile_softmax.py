"""From scores to weights in tiles, how chunks are put together, and the gate of an MLP: vectors emitted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit

from octavo.kernels.cpu.chunks import begin_context, merge, weigh_rows
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, put_gated_run

WIDTH = 64
SEEN = [(0, KEYS), (0, 1), (5, KEYS), (37, 90), (127, KEYS), (0, 64)]


@njit
def weighed(weights, of_chunk, scores, ranges, count):
    weigh_rows(weights, of_chunk, scores, ranges, count)


@njit
def merged(totals, sums, parts, of_chunks, factors, count):
    begin_context(sums, totals)
    for i in range(parts.shape[0]):
        merge(totals.reshape(-1), sums, parts[i], of_chunks[i], factors, count, totals.shape[1])


@njit
def silu_run(out, sums):
    put_gated_run(out, 0, sums, 0, 16, 16, 0)


@njit
def gelu_run(out, sums):
    put_gated_run(out, 0, sums, 0, 16, 16, 1)


def floats(words: np.ndarray) -> np.ndarray:
    return (words.astype(np.uint32) << 16).view(np.float32)


def rows_of(tiles: np.ndarray) -> np.ndarray:
    """float32 [TILE_ROWS, KEYS] out of tiles."""
    return floats(tiles).reshape(2, KEYS // BLOCK, ROWS, BLOCK).transpose(0, 2, 1, 3).reshape(TILE_ROWS, KEYS)


def weigh(scores: np.ndarray, ranges: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    weights, of_chunk = np.zeros(TILE_ROWS * KEYS, np.uint16), np.zeros((2, TILE_ROWS), np.float32)
    weighed(weights, of_chunk, scores.ravel().copy(), np.array(ranges, np.int64), len(ranges))
    return rows_of(weights)[: len(ranges)], of_chunk[:, : len(ranges)]


@pytest.mark.parametrize("spread", [0.1, 8.0, 300.0])
def test_weights_are_powers_under_the_largest_score_that_is_seen(spread: float) -> None:
    scores = (np.random.default_rng(0).normal(size=(TILE_ROWS, KEYS)) * spread).astype(np.float32)
    ranges = [SEEN[r % len(SEEN)] for r in range(TILE_ROWS)]
    for r, (begin, end) in enumerate(ranges):  # what is not seen means nothing
        scores[r, :begin], scores[r, end:] = np.nan, np.inf
    weights, (tops, masses) = weigh(scores, ranges)
    for r, (begin, end) in enumerate(ranges):
        seen = scores[r, begin:end].astype(np.float64)
        exact = np.exp2(seen - seen.max())
        assert tops[r] == seen.max()
        np.testing.assert_allclose(masses[r], exact.sum(), rtol=1e-6)
        np.testing.assert_allclose(weights[r, begin:end], exact, rtol=2.0**-8, atol=1e-37)
        assert not weights[r, :begin].any()
        assert not weights[r, end:].any()


def test_a_row_that_sees_no_key_weighs_nothing() -> None:
    weights, (tops, masses) = weigh(np.full((2, KEYS), np.nan, np.float32), [(5, 5), (64, 3)])
    assert not weights.any()
    assert (tops == -np.inf).all()
    assert (masses == 0).all()


def test_nan_stays_nan() -> None:
    scores = np.zeros((3, KEYS), np.float32)
    scores[1, 77] = np.nan
    _, of_chunk = weigh(scores, [(0, KEYS)] * 3)
    np.testing.assert_array_equal(np.isnan(of_chunk[1]), [False, True, False])
    totals, sums = np.empty((TILE_ROWS, WIDTH), np.float32), np.empty((2, TILE_ROWS), np.float32)
    padded = np.zeros((1, 2, TILE_ROWS), np.float32)
    padded[0, :, :3] = of_chunk
    merged(totals, sums, np.ones((1, 3 * WIDTH), np.float32), padded, np.empty((2, TILE_ROWS), np.float32), 3)
    np.testing.assert_array_equal(np.isnan(sums[1, :3]), [False, True, False])


def test_a_row_weighs_the_same_wherever_it_stands_and_whatever_is_masked() -> None:
    scores = np.random.default_rng(1).normal(size=(TILE_ROWS, KEYS)).astype(np.float32)
    scores[:] = scores[0]
    weights, (tops, masses) = weigh(scores, [(0, 96)] * TILE_ROWS)
    assert (weights == weights[0]).all()
    masked = scores.copy()
    masked[:, 96:] = -np.inf
    others, (other_tops, other_masses) = weigh(masked, [(0, KEYS)])
    assert (others[0] == weights[0]).all()
    assert other_tops[0] == tops[0]
    assert other_masses[0] == masses[0]


def test_chunks_are_put_together_as_if_they_were_one() -> None:
    rng = np.random.default_rng(2)
    num_chunks, count = 5, 7
    tops = rng.normal(size=(num_chunks, count)) * 20
    masses = rng.uniform(1, 50, size=(num_chunks, count))
    tops[1, 2] = tops[:, 3] = -np.inf  # a row that sees nothing of a chunk, and one that sees nothing at all
    masses[1, 2] = masses[:, 3] = 0.0
    parts = rng.normal(size=(num_chunks, count, WIDTH))
    of_chunks = np.full((num_chunks, 2, TILE_ROWS), np.nan, np.float32)  # beyond the rows that count
    of_chunks[:, 0, :count], of_chunks[:, 1, :count] = tops, masses
    values = np.full((num_chunks, TILE_ROWS * WIDTH), np.nan, np.float32)
    values[:, : count * WIDTH] = parts.reshape(num_chunks, -1)
    values.reshape(num_chunks, TILE_ROWS, WIDTH)[1, 2] = np.nan  # zero times a value that is none
    totals, sums = np.empty((TILE_ROWS, WIDTH), np.float32), np.empty((2, TILE_ROWS), np.float32)
    merged(totals, sums, values, of_chunks, np.empty((2, TILE_ROWS), np.float32), count)
    for r in range(count):
        if r == 3:
            assert sums[0, r] == -np.inf
            assert sums[1, r] == 0
            assert not totals[r].any()
            continue
        factors = np.exp2(tops[:, r] - tops[:, r].max())
        np.testing.assert_allclose(sums[:, r], (tops[:, r].max(), (masses[:, r] * factors).sum()), rtol=1e-5)
        np.testing.assert_allclose(totals[r], (parts[:, r] * factors[:, None]).sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "exact"), [(silu_run, F.silu), (gelu_run, lambda x: F.gelu(x, approximate="tanh"))], ids=["silu", "gelu"]
)
def test_gates(run, exact) -> None:  # type: ignore[no-untyped-def]
    gates = torch.cat((torch.linspace(-60, 60, 506), torch.tensor([0.0, -0.0, 1e-30, 3e38, -3e38, torch.inf])))
    ups = torch.randn(len(gates), generator=torch.Generator().manual_seed(3))
    for at in range(0, len(gates) - 15, 16):
        sums, out = torch.cat((gates[at : at + 16], ups[at : at + 16])).numpy(), np.zeros(16, np.uint16)
        run(out, sums)
        expected = exact(gates[at : at + 16].double()) * ups[at : at + 16].double()
        torch.testing.assert_close(torch.from_numpy(floats(out)).double(), expected, rtol=2**-8, atol=1e-6)
