"""Choosing tokens by whole distributions, on a CPU: a few passes over a row of logits.

The token is the one at which the cumulative weight passes a given share of the total. Where all tokens may be chosen,
the weights of runs of `RUN` tokens are summed first, and those of the run in which the share lies are computed again.
Where top-k, top-p or min-p leave only some, their weights are kept beside their ids, in the order of the ids. The last
one that is left is found without sorting, digit by digit: of positive floats, the bits are in the order of the numbers.
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

# Weights are at most 1, so three digits of so many bits are all that their bits have.
_DIGIT = 10
_LAST_DIGIT = (1 << _DIGIT) - 1

_ZERO = np.float32(0.0)
_STEEPEST = np.float32(1e30)  # beyond, a weight of the likeliest token would be no number


def sample_rows(
    logits: Tensor,
    numbers: npt.NDArray[np.float64],
    temperatures: npt.NDArray[np.float32],
    top_k: npt.NDArray[np.int32],
    top_p: npt.NDArray[np.float32],
    min_p: npt.NDArray[np.float32],
) -> Tensor:
    """One token for each row; a row's token does not depend on the others.

    Args:
        logits: float32 [num_rows, vocab_size].
        numbers: float64 [num_rows], in [0, 1): the shares of the totals.
        temperatures: float32 [num_rows], positive.
        top_k: int32 [num_rows], 0 for all. top_p, min_p: float32 [num_rows], 1 and 0 for all.

    Returns:
        int64 [num_rows]. Logits that are no numbers lead to any token.
    """
    tokens = np.empty(len(logits), dtype=np.int64)
    threads = threads_for(len(logits))
    _kernel()(tokens, logits.contiguous().numpy(), numbers, temperatures, top_k, top_p, min_p, threads)
    return torch.from_numpy(tokens)


@cache
def _kernel():
    signature = types.void(
        types.int64[::1], types.float32[:, ::1], types.float64[::1], types.float32[::1], types.int32[::1],
        types.float32[::1], types.float32[::1], types.int64,
    )  # fmt: skip

    # One variant for any number of threads: two might be vectorised each in its own way.
    @kept(signature, parallel=True, nogil=True, **FAST)
    def kernel(tokens, logits, numbers, temperatures, top_k, top_p, min_p, num_workers):
        for worker in prange(num_workers):
            begin, end = share(logits.shape[0], worker, num_workers)
            weights, ids = np.empty(logits.shape[1], np.float32), np.empty(logits.shape[1], np.int32)
            for row in range(begin, end):
                if top_k[row] > 0 or top_p[row] < 1 or min_p[row] > 0:
                    left = top_k[row], top_p[row], min_p[row]
                    tokens[row] = _sample_some(logits[row], temperatures[row], numbers[row], left, weights, ids)
                else:
                    tokens[row] = _sample(logits[row], temperatures[row], numbers[row])

    return kernel


@njit(**FAST)
def _top_and_scale(logits, temperature):
    """The largest logit, and what the others' distance from it is multiplied with: weights are powers of two."""
    top = logits[0]
    for i in range(logits.shape[0]):
        top = max(top, logits[i])
    return top, min(LOG2E / temperature, _STEEPEST)


@njit(**FAST)
def _sample(logits, temperature, number):
    vocab = logits.shape[0]
    top, scale = _top_and_scale(logits, temperature)
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


# ── top-k, top-p, min-p ───────────────────────────────────────────────────────────────────────────────────────


@njit(**FAST)
def _sample_some(logits, temperature, number, left, weights, ids):
    """`_sample` among those that ``left``, top-k, top-p and min-p, leaves; ``weights`` and ``ids`` are scratch."""
    top_k, top_p, min_p = left
    bits, heaviest = weights.view(np.int32), np.empty((logits.shape[0] + RUN - 1) // RUN, np.int32)
    total = _weigh(logits, temperature, bits, weights, heaviest)
    count = _gather(bits, weights, ids, heaviest, _lightest(left, total, logits.shape[0], heaviest))
    if 0 < top_k < count:
        value, place = _cut(bits, weights, count, np.float64(top_k), True)
        count = _keep(bits, weights, ids, count, value, place)
    if top_p < 1:
        if top_k > 0:  # of what that left
            total = _sum(weights, count)
        value, place = _cut(bits, weights, count, np.float64(top_p) * total, False)
        count = _keep(bits, weights, ids, count, value, place)
    if min_p > 0:  # the likeliest token weighs 1
        count = _keep(bits, weights, ids, count, _bits_of(min_p), count)
    if count == 0:  # logits that are no numbers
        return 0
    return np.int64(ids[_pass(weights[:count], number * _sum(weights, count))[0]])


@njit(**FAST)
def _weigh(logits, temperature, bits, weights, heaviest):
    """Weighs all tokens, and tells each run's heaviest weight as bits; returns the total."""
    vocab = logits.shape[0]
    top, scale = _top_and_scale(logits, temperature)
    total = 0.0
    for run in range(heaviest.shape[0]):
        begin, end = run * RUN, min((run + 1) * RUN, vocab)
        total += np.float64(_weigh_run(logits[begin:end], top, scale, weights[begin:end]))
        heaviest[run] = _largest(bits[begin:end])
    return total


@njit(**FAST)
def _weigh_run(logits, top, scale, weights):
    total = _ZERO
    for i in range(logits.shape[0]):
        weights[i] = exp2((logits[i] - top) * scale)
        total += weights[i]
    return total


@njit(**FAST)
def _largest(numbers):
    largest = numbers[0]
    for i in range(numbers.shape[0]):
        largest = max(largest, numbers[i])
    return largest


@njit(**FAST)
def _lightest(left, total, vocab, heaviest):
    """Bits of a weight below which no token can be left."""
    top_k, top_p, min_p = left
    if top_k > heaviest.shape[0]:
        return 1
    if top_k > 0:
        # Each of so many runs has a token that weighs as much.
        return max(1, _cut(heaviest, heaviest.view(np.float32), heaviest.shape[0], np.float64(top_k), True)[0])
    if top_p < 1:
        # All lighter ones together weigh less than what top-p leaves out.
        return max(1, _bits_of(np.float32(0.5 * (1.0 - np.float64(top_p)) * total / vocab)))
    return max(1, _bits_of(min_p))


@njit(**FAST)
def _gather(bits, weights, ids, heaviest, least):
    """Moves the weights whose bits are at least ``least`` to the front, with their places; returns how many."""
    count = 0
    for run in range(heaviest.shape[0]):
        if heaviest[run] < least:
            continue
        for i in range(run * RUN, min((run + 1) * RUN, weights.shape[0])):
            if bits[i] >= least:
                weights[count], ids[count] = weights[i], i
                count += 1
    return count


@njit(**FAST)
def _cut(bits, weights, count, goal, counting):
    """With which of these weights all that are heavier, and equals before it, come to ``goal``.

    Args:
        counting: The goal is a number of weights, not their sum.

    Returns:
        Its bits, and its place. If all together come short, those of something lighter.
    """
    table, before, value = np.empty(1 << _DIGIT, np.float64), 0.0, 0
    for shift in (2 * _DIGIT, _DIGIT, 0):
        table[:] = 0.0
        for i in range(count):
            if bits[i] >> (shift + _DIGIT) == value:
                table[(bits[i] >> shift) & _LAST_DIGIT] += 1.0 if counting else np.float64(weights[i])
        digit = _LAST_DIGIT
        while digit > 0 and before + table[digit] < goal:
            before += table[digit]
            digit -= 1
        value = (value << _DIGIT) | digit
    place = count
    for i in range(count):
        if bits[i] == value:
            place = i
            before += 1.0 if counting else np.float64(weights[i])
            if before >= goal:
                break
    return value, place


@njit(**FAST)
def _keep(bits, weights, ids, count, value, place):
    """Of so many weights keeps those heavier than that of bits ``value``, and equals up to ``place``; how many."""
    left = 0
    for i in range(count):
        if bits[i] > value or (bits[i] == value and i <= place):
            weights[left], ids[left] = weights[i], ids[i]
            left += 1
    return left


@njit(**FAST)
def _sum(weights, count):
    total = 0.0
    for i in range(count):
        total += np.float64(weights[i])
    return total


@njit(**FAST)
def _bits_of(number):
    one = np.empty(1, np.float32)
    one[0] = number
    return np.int64(one.view(np.int32)[0])
