"""The element-wise operations of a decoder layer, each in one pass over memory.

torch runs RMSNorm as five operations and SiLU·mul as two. At one token per sequence their cost is the calls, over a
long prefill it is the memory that the intermediate results go through.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit, prange, types
from torch import Tensor

from octavo.kernels.cpu.bits import NUMBA_TYPES, narrow, stored, widen
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import EXACT, FAST, LOG2E, exp2
from octavo.kernels.cpu.team import threads_for
from octavo.kernels.cpu.tiles import BLOCK, sum_of_squares

# Waking the other threads costs about as much as handling so many numbers.
_NUMBERS_PER_THREAD = 16 * 1024

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root-mean-square normalisation (arXiv:1910.07467), times a weight.

    Args:
        x: float32 [num_rows, width], contiguous.
        weight: float32 [width].
        eps: Added to the mean square.
        dtype: Of the result.

    Returns:
        [num_rows, width] of ``dtype``.
    """
    out = torch.empty(x.shape, dtype=dtype)
    workers = _workers_for(x)
    kernel = _rms_norm_kernel(NUMBA_TYPES[dtype], workers > 1)
    kernel(stored(out).numpy(), x.numpy(), weight.numpy(), eps, workers)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) · up`` (arXiv:2002.05202) of the two halves of each row.

    Args:
        gate_up: [num_rows, 2 · width], contiguous.

    Returns:
        [num_rows, width] of the same dtype.
    """
    out = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype)
    workers = _workers_for(out)
    kernel = _silu_mul_kernel(NUMBA_TYPES[gate_up.dtype], workers > 1)
    kernel(stored(out).numpy(), stored(gate_up).numpy(), workers)
    return out


def _workers_for(x: Tensor) -> int:
    """Threads that are worth waking."""
    shares = x.numel() // _NUMBERS_PER_THREAD
    # To ask how many there are takes longer than a row does.
    return threads_for(shares) if shares > 1 else 1


def warm_up(width: int, dtype: torch.dtype) -> None:
    """Compiles, or loads, the kernels for one row and for many."""
    for num_rows in (1, -(-2 * _NUMBERS_PER_THREAD // width)):
        rms_norm(torch.zeros(num_rows, width), torch.ones(width), 1e-6, dtype)
        silu_mul(torch.zeros(num_rows, 2 * width, dtype=dtype))


@cache
def _rms_norm_kernel(number: types.Type, parallel: bool):
    signature = types.void(number[:, ::1], types.float32[:, ::1], types.float32[::1], types.float32, types.int64)

    # Exact, as a row must not depend on how many there are: the two variants would be vectorised each in its own way.
    @kept(signature, parallel=parallel, nogil=True, **EXACT)
    def kernel(out, x, weight, eps, num_workers):
        num_rows = x.shape[0]
        for worker in prange(num_workers):
            for row in range(num_rows * worker // num_workers, num_rows * (worker + 1) // num_workers):
                put_normed(out, row, x[row], weight, eps)

    return kernel


@njit(**EXACT)
def put_normed(out, row, x, weight, eps):
    """A normalised row, rounded, to one of ``out``; see `rms_norm`."""
    width = x.shape[0]
    squares = sum_of_squares(x)
    for i in range(width // BLOCK * BLOCK, width):
        squares += x[i] * x[i]
    factor = _ONE / np.sqrt(squares / np.float32(width) + eps)
    for i in range(width):
        out[row, i] = narrow(x[i] * factor * weight[i], out[row, i])


@cache
def _silu_mul_kernel(number: types.Type, parallel: bool):
    signature = types.void(number[:, ::1], number[:, ::1], types.int64)

    @kept(signature, parallel=parallel, nogil=True, **FAST)
    def kernel(out, gate_up, num_workers):
        num_rows, width = out.shape
        for worker in prange(num_workers):
            for row in range(num_rows * worker // num_workers, num_rows * (worker + 1) // num_workers):
                for i in range(width):
                    gate, up = widen(gate_up[row, i]), widen(gate_up[row, width + i])
                    # The exponential of a negative number only, which cannot overflow.
                    e = exp2(-abs(gate) * LOG2E)
                    share = (_ONE if gate >= _ZERO else e) / (_ONE + e)
                    out[row, i] = narrow(gate * share * up, out[row, i])

    return kernel
