"""Linear layers over packed weights, for any number of rows, and what happens to their sums.

A product visits the rows in blocks that stay in a core's cache, and in each all groups of outputs that fall to the
thread. Sums of 32 rows × 32 outputs are finished where they are: stored, added to the residual stream, or put through
the MLP's gate.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
import torch
from numba import njit, prange, types
from torch import Tensor

from octavo.kernels.cpu import amx, bits, elementary, team, tiles
from octavo.kernels.cpu.amx import GROUP, OUTPUTS, PANELS, configure, multiply, release
from octavo.kernels.cpu.bits import NUMBA_TYPES, source_key, stored
from octavo.kernels.cpu.elementary import FASTMATH
from octavo.kernels.cpu.team import share
from octavo.kernels.cpu.tiles import BLOCK, ROWS, add_run, gelu_tanh, place, put_run, silu, tile_rows, tiled_size

# Rows whose inputs stay in a core's second-level cache while it goes over the weights.
ROW_BLOCK = 256
# Waking the other threads costs about as much as multiplying with so many weights.
_WEIGHTS_PER_THREAD = 64 * 1024

# Sums of a group lie panel by panel: 2 × 32 rows × 16 outputs.
PANEL = 2 * ROWS * OUTPUTS

_NO_BIAS = np.empty(0, np.float32)


def workers_for(num_weights: int) -> int:
    """Threads that are worth waking to multiply with so many weights; numba's next parallel loop will have them."""
    workers = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, num_weights // _WEIGHTS_PER_THREAD))
    numba.set_num_threads(workers)
    return workers


def linear(x: Tensor, packed: Tensor, num_outputs: int, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x Wᵀ + b``, summed in float32.

    Args:
        x: bfloat16 [num_rows, in]; rows are contiguous.
        packed: From `octavo.kernels.cpu.amx.pack`.
        num_outputs: Rows of the weight.
        bias: float32 [out], or None.
        dtype: Of the result: bfloat16 or float32.

    Returns:
        [num_rows, out].
    """
    out = torch.empty((x.shape[0], -(-num_outputs // OUTPUTS) * OUTPUTS), dtype=dtype)
    kernel = _linear_kernel(NUMBA_TYPES[dtype])
    workers = workers_for(packed.numel())
    kernel(
        stored(out).numpy(), stored(x).numpy(), stored(packed).numpy().reshape(-1),
        _NO_BIAS if bias is None else bias.numpy(), workers,
    )  # fmt: skip
    return out[:, :num_outputs].contiguous()


@cache
def _linear_kernel(number: types.Type):
    key = source_key(amx, bits, elementary, team, tiles)
    signature = types.void(
        number[:, ::1], types.Array(types.uint16, 2, "A"), types.uint16[::1], types.float32[::1], types.int64
    )

    @njit(signature, parallel=True, error_model="numpy", nogil=True, cache=True)
    def kernel(out, x, weights, bias, num_workers):
        _ = key  # part of the key under which numba keeps compiled code
        num_rows, num_inputs = x.shape
        tiled = np.empty(tiled_size(num_rows, num_inputs), np.uint16)
        tile_rows(tiled, x)
        flat, width = out.reshape(-1), out.shape[1]
        groups = (width + GROUP - 1) // GROUP
        for worker in prange(num_workers):
            sums, config = np.empty(2 * ROWS * GROUP, np.float32), np.zeros(64, np.uint8)
            configure(config, min(num_rows, ROWS))
            store_product(
                (flat, width), tiled, num_rows, num_inputs, weights, groups, bias, worker, num_workers, sums
            )  # fmt: skip
            release()

    return kernel


def product_with(finish):
    """A product whose sums are finished by a function of its own.

    Args:
        finish: ``finish(target, sums, row, count, group, bias)``, with sums float32 [2 · PANEL] of
            ``count`` rows from ``row`` on.

    Returns:
        ``product(target, x, num_rows, num_inputs, weights, num_groups, bias, rank, size, sums)``, a rank's share of the
        groups. Its tiles must be configured.
    """

    @njit(error_model="numpy")
    def product(target, x, num_rows, num_inputs, weights, num_groups, bias, rank, size, sums):
        first, last = share(num_groups, rank, size)
        blocks, tile = num_inputs // BLOCK, ROWS * num_inputs
        for begin in range(0, num_rows, ROW_BLOCK):
            end = min(num_rows, begin + ROW_BLOCK)
            for group in range(first, last):
                weight = group * GROUP * num_inputs
                # Only the first rows wait for the weights; then they are in the cache.
                if end - begin <= ROWS:
                    multiply(sums, 0, OUTPUTS, PANEL, weights, weight, blocks, x, begin * num_inputs, tile, 1, 1)
                else:
                    multiply(sums, 0, OUTPUTS, PANEL, weights, weight, blocks, x, begin * num_inputs, tile, 2, 1)
                finish(target, sums, begin, min(2 * ROWS, end - begin), group, bias)
                for row in range(begin + 2 * ROWS, end, 2 * ROWS):
                    if end - row <= ROWS:
                        multiply(sums, 0, OUTPUTS, PANEL, weights, weight, blocks, x, row * num_inputs, tile, 1, 0)
                    else:
                        multiply(sums, 0, OUTPUTS, PANEL, weights, weight, blocks, x, row * num_inputs, tile, 2, 0)
                    finish(target, sums, row, min(2 * ROWS, end - row), group, bias)

    return product


_finishing = njit(fastmath=FASTMATH, error_model="numpy")


@_finishing
def _add_bias(sums, count, group, bias):
    if bias.shape[0] == 0:
        return
    for panel in range(PANELS):
        begin = group * GROUP + panel * OUTPUTS
        for r in range(count):
            at = panel * PANEL + r * OUTPUTS
            for i in range(min(OUTPUTS, bias.shape[0] - begin)):
                sums[at + i] += bias[begin + i]


def _to_rows(put):
    """Sums to rows [num_rows, out] with `put_run` or `add_run`; out is a multiple of 16."""

    @_finishing
    def finish(out, sums, row, count, group, bias):
        _add_bias(sums, count, group, bias)
        flat, width = out
        for panel in range(PANELS):
            column = group * GROUP + panel * OUTPUTS
            for r in range(count if column < width else 0):
                put(flat, (row + r) * width + column, sums, panel * PANEL + r * OUTPUTS, OUTPUTS)

    return finish


@_finishing
def _gate(out, sums, row, count, group, bias):
    """``activation(gate) · up`` to tiles; gates are the first panel of each group, see `interleave`."""
    tiled, num_outputs, activation = out
    _add_bias(sums, count, group, bias)
    if activation == 0:
        for i in range(count * OUTPUTS):
            sums[i] = silu(sums[i]) * sums[PANEL + i]
    else:
        for i in range(count * OUTPUTS):
            sums[i] = gelu_tanh(sums[i]) * sums[PANEL + i]
    for r in range(count):
        put_run(tiled, place(row + r, group * OUTPUTS, num_outputs), sums, r * OUTPUTS, OUTPUTS)


# Their target is (rows, flat; their width).
store_product = product_with(_to_rows(put_run))
add_product = product_with(_to_rows(add_run))
# Gate and up projections in turns; the target is (tiles, their width, the activation's place in ACTIVATIONS).
gated_product = product_with(_gate)


def interleave(gate_up: Tensor) -> Tensor:
    """Gate and up projections in turns, 16 outputs of each: [2 · n, …] → [2 · n, …], n a multiple of 16."""
    return gate_up.unflatten(0, (2, -1, OUTPUTS)).transpose(0, 1).flatten(0, 2)
