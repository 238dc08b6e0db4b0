"""Choosing tokens by whole distributions, on a CPU: two passes over a row of logits, and no memory beside it.

The token is the one at which the cumulative weight passes a given share of the total. The weights of runs of `RUN`
tokens are summed first; those of the run in which the share lies are computed again, one after the other.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, prange, types
from torch import Tensor

from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import FAST, LOG2E, exp2
from octavo.kernels.cpu.team import share, threads_for

RUN = 256

_ZERO = np.float32(0.0)
_STEEPEST = np.float32(1e30)  # beyond, a weight of the likeliest token would be no number


def sample_rows(logits: Tensor, temperatures: npt.NDArray[np.float32], numbers: npt.NDArray[np.float64]) -> Tensor:
    """One token for each row; a row's token does not depend on the others.

    Args:
        logits: float32 [num_rows, vocab_size].
        temperatures: float32 [num_rows], positive.
        numbers: float64 [num_rows], in [0, 1): the shares of the totals.

    Returns:
        int64 [num_rows]. Logits that are no numbers lead to any token.
    """
    tokens = np.empty(len(logits), dtype=np.int64)
    _kernel()(tokens, logits.contiguous().numpy(), temperatures, numbers, threads_for(len(logits)))
    return torch.from_numpy(tokens)


@cache
def _kernel():
    signature = types.void(
        types.int64[::1], types.float32[:, ::1], types.float32[::1], types.float64[::1], types.int64
    )  # fmt: skip

    # One variant for any number of threads: two might be vectorised each in its own way.
    @kept(signature, parallel=True, nogil=True, **FAST)
    def kernel(tokens, logits, temperatures, numbers, num_workers):
        for worker in prange(num_workers):
            begin, end = share(logits.shape[0], worker, num_workers)
            for row in range(begin, end):
                tokens[row] = _sample(logits[row], temperatures[row], numbers[row])

    return kernel


@njit(**FAST)
def _sample(logits, temperature, number):
    vocab = logits.shape[0]
    top = logits[0]
    for i in range(vocab):
        top = max(top, logits[i])
    scale = min(LOG2E / temperature, _STEEPEST)
    num_runs = (vocab + RUN - 1) // RUN
    sums, total = np.empty(num_runs, np.float32), 0.0
    for run in range(num_runs):
        sums[run] = _sum_of_run(logits[run * RUN : min((run + 1) * RUN, vocab)], top, scale)
        total += np.float64(sums[run])
    run, into = _pass(sums, number * total)
    chosen = logits[run * RUN : min((run + 1) * RUN, vocab)]
    weights, total = np.empty(chosen.shape[0], np.float32), 0.0
    for i in range(chosen.shape[0]):
        weights[i] = exp2((chosen[i] - top) * scale)
        total += np.float64(weights[i])
    return run * RUN + _pass(weights, into * total)[0]


@njit(**FAST)
def _sum_of_run(logits, top, scale):
    total = _ZERO
    for i in range(logits.shape[0]):
        total += exp2((logits[i] - top) * scale)
    return total


@njit(**FAST)
def _pass(weights, goal):
    """Where the cumulative weight passes ``goal``, and how far into that weight, in [0, 1).

    What weighs nothing is not chosen, however the sums were rounded.
    """
    before, last = 0.0, 0
    for i in range(weights.shape[0]):
        weight = np.float64(weights[i])
        if weight > 0.0:
            if before + weight > goal:
                return i, max(0.0, (goal - before) / weight)
            before, last = before + weight, i
    return last, 1.0 - 2.0**-53
