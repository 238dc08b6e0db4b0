"""Linear layers over packed weights, for any number of rows, and what happens to their sums.

A product visits the rows in blocks that stay in a core's cache, and in each all groups of outputs that fall to the
thread. Sums of 32 rows × 32 outputs are finished where they are: stored, added to the residual stream, or put through
the MLP's gate. Weights are in the model's type, or int8 with a scale for each output (`octavo.kernels.cpu.int8`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit, prange, types
from torch import Tensor

from octavo.kernels.cpu import int8
from octavo.kernels.cpu.bits import NUMBA_TYPES, stored
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import EXACT, FAST
from octavo.kernels.cpu.int8 import NUM_SUMS
from octavo.kernels.cpu.packing import GROUP, OUTPUTS, PANELS, groups_of
from octavo.kernels.cpu.products import TAKES_BYTES, configure, multiply, multiply_bytes, release, type_of_rows
from octavo.kernels.cpu.team import share, threads_for
from octavo.kernels.cpu.tiles import (
    BLOCK,
    ROWS,
    add_run,
    fetch,
    place,
    put_gated_run,
    put_run,
    tile_rows,
    tiled_size,
)

# Rows whose inputs stay in a core's second-level cache while it goes over the weights.
ROW_BLOCK = 256
# Waking the other threads costs about as much as multiplying with so many weights.
_WEIGHTS_PER_THREAD = 64 * 1024

# Sums of a group lie panel by panel: 2 × 32 rows × 16 outputs.
PANEL = 2 * ROWS * OUTPUTS

_fix_rows = int8.fix_rows_with(TAKES_BYTES)

_NONE = np.empty(0, np.float32)
_NO_NUMBERS = np.empty(0, np.int8)


def workers_for(num_weights: int) -> int:
    """Threads that are worth waking to multiply with so many weights; numba's next parallel loop will have them."""
    return threads_for(num_weights // _WEIGHTS_PER_THREAD)


def linear(
    x: Tensor,
    packed: Tensor,
    num_outputs: int,
    bias: Tensor | None,
    dtype: torch.dtype,
    scales: Tensor | None = None,
) -> Tensor:
    """``x Wᵀ + b``, summed in float32.

    Args:
        x: [num_rows, in]; rows are contiguous, ``in`` is a multiple of 32.
        packed: From `octavo.kernels.cpu.packing.pack`, or from that of `octavo.kernels.cpu.int8`.
        num_outputs: Rows of the weight.
        bias: float32 [out], or None.
        dtype: Of the result: float32, or that of x.
        scales: float32 [out] of weights in int8, from `octavo.kernels.cpu.int8.quantize`; None if they are not.

    Returns:
        [num_rows, out].
    """
    out = torch.empty((x.shape[0], -(-num_outputs // OUTPUTS) * OUTPUTS), dtype=dtype)
    kernel = _linear_kernel(NUMBA_TYPES[dtype], NUMBA_TYPES[x.dtype])
    workers = workers_for(packed.numel())
    flat = packed.view(-1)
    kernel(
        stored(out).numpy(), stored(x).numpy(),
        stored(flat if scales is None else x.new_empty(0)).numpy(), _NO_NUMBERS if scales is None else flat.numpy(),
        _NONE if scales is None else scales.numpy(), _NONE if bias is None else bias.numpy(), workers,
    )  # fmt: skip
    return out[:, :num_outputs].contiguous()


@cache
def _linear_kernel(result: types.Type, number: types.Type):
    row_type = type_of_rows(np.dtype(str(number))).type
    signature = types.void(
        result[:, ::1], types.Array(number, 2, "A"),
        number[::1], types.int8[::1], types.float32[::1], types.float32[::1], types.int64,
    )  # fmt: skip

    @kept(signature, parallel=True, nogil=True, **EXACT)
    def kernel(out, x, words, numbers, scales, bias, num_workers):
        num_rows, num_inputs = x.shape
        tiled = np.empty(tiled_size(num_rows, num_inputs), row_type)
        tile_rows(tiled, x)
        flat, width = out.reshape(-1), out.shape[1]
        for worker in prange(num_workers):
            store_share(
                (flat, width), tiled, num_rows, num_inputs, words, numbers, scales, bias, worker, num_workers
            )  # fmt: skip

    return kernel


@njit(**EXACT)
def store_share(target, tiled, num_rows, num_inputs, words, numbers, scales, bias, worker, num_workers):
    """A worker's share of `store_product`, with scratch memory and a configuration of its own."""
    sums, config = np.empty(2 * ROWS * GROUP, np.float32), np.zeros(64, np.uint8)
    room = np.empty(room_bytes(num_rows, num_inputs) if scales.shape[0] > 0 else 0, np.uint8)
    weights = words, numbers, scales, room, np.empty(ROW_BLOCK, np.float32), np.empty(NUM_SUMS, np.int32)
    configure(config, min(num_rows, ROWS))
    store_product(
        target, tiled, num_rows, num_inputs, weights, groups_of(target[1]), bias, worker, num_workers, sums
    )  # fmt: skip
    release()


@njit(**EXACT)
def room_bytes(num_rows, num_inputs):
    """Scratch that a product with weights in int8 needs."""
    return int8.fixed_bytes(min(num_rows, ROW_BLOCK), num_inputs)


@njit(**EXACT, forceinline=True)
def put_byte_products(sums, byte_sums, row, end, begin, num_inputs, numbers, scales, group, fixed, steps):
    """Sums of up to 32 rows from ``row`` on, in a block of rows from ``begin`` on, with a group of weights in int8."""
    blocks, weight = int8.num_blocks(num_inputs), group * int8.group_bytes(num_inputs)
    for half in range(row, min(end, row + 2 * ROWS), ROWS):
        at = int8.fixed_bytes(half - begin, num_inputs)
        # Only the first rows wait for the weights; then they are in the cache.
        if half == begin:
            multiply_bytes(byte_sums, numbers, weight, blocks, fixed, at, end - half, 1)
        else:
            multiply_bytes(byte_sums, numbers, weight, blocks, fixed, at, end - half, 0)
        int8.put_sums(
            sums, (half - row) * OUTPUTS, PANEL, byte_sums, min(ROWS, end - half), steps, half - begin, scales, group
        )


def product_with(expect, finish):
    """A product whose sums are finished by a function of its own.

    Args:
        expect: ``expect(target, row, count, group)`` may ask for the memory that `finish` is going to write to, which
            then arrives while the tiles multiply.
        finish: ``finish(target, sums, row, count, group, bias)``, with sums float32 [2 · PANEL] of
            ``count`` rows from ``row`` on.

    Returns:
        ``product(target, x, num_rows, num_inputs, weights, num_groups, bias, rank, size, sums)``, a rank's share of the
        groups. Its tiles must be configured. ``weights`` are those as they are and those in int8, one of which
        is empty, the latter's scales, and scratch: uint8 [room_bytes], float32 [ROW_BLOCK] and int32 [NUM_SUMS].
    """

    @kept(**EXACT)
    def product(target, x, num_rows, num_inputs, weights, num_groups, bias, rank, size, sums):
        first, last = share(num_groups, rank, size)
        blocks, tile = num_inputs // BLOCK, ROWS * num_inputs
        words, numbers, scales, fixed, steps, byte_sums = weights
        for begin in range(0, num_rows, ROW_BLOCK):
            end = min(num_rows, begin + ROW_BLOCK)
            if scales.shape[0] > 0:
                _fix_rows(fixed, steps, x, begin, end, num_inputs)
                for group in range(first, last):
                    for row in range(begin, end, 2 * ROWS):
                        expect(target, row, min(2 * ROWS, end - row), group)
                        put_byte_products(
                            sums, byte_sums, row, end, begin, num_inputs, numbers, scales, group, fixed, steps
                        )
                        finish(target, sums, row, min(2 * ROWS, end - row), group, bias)
                continue
            for group in range(first, last):
                weight = group * GROUP * num_inputs
                expect(target, begin, min(2 * ROWS, end - begin), group)
                # Only the first rows wait for the weights; then they are in the cache.
                if end - begin <= ROWS:
                    multiply(
                        sums, 0, OUTPUTS, PANEL, words, weight, blocks, x, begin * num_inputs, tile, end - begin, 1, 1
                    )
                else:
                    multiply(
                        sums, 0, OUTPUTS, PANEL, words, weight, blocks, x, begin * num_inputs, tile, end - begin, 2, 1
                    )
                finish(target, sums, begin, min(2 * ROWS, end - begin), group, bias)
                for row in range(begin + 2 * ROWS, end, 2 * ROWS):
                    expect(target, row, min(2 * ROWS, end - row), group)
                    if end - row <= ROWS:
                        multiply(
                            sums, 0, OUTPUTS, PANEL, words, weight, blocks, x, row * num_inputs, tile, end - row, 1, 0
                        )
                    else:
                        multiply(
                            sums, 0, OUTPUTS, PANEL, words, weight, blocks, x, row * num_inputs, tile, end - row, 2, 0
                        )
                    finish(target, sums, row, min(2 * ROWS, end - row), group, bias)

    return product


_finishing = njit(**FAST)


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
    for r in range(count):
        to, gate = place(row + r, group * OUTPUTS, num_outputs), r * OUTPUTS
        if activation == 0:
            put_gated_run(tiled, to, sums, gate, OUTPUTS, PANEL, 0)
        else:
            put_gated_run(tiled, to, sums, gate, OUTPUTS, PANEL, 1)


@njit(**EXACT)
def _expect_rows(out, row, count, group):
    """Rows that lie far apart are fetched by nothing else, and wide ones have left the cache."""
    flat, width = out
    for r in range(count):
        fetch(flat, (row + r) * width + group * GROUP, GROUP * flat.itemsize)


@njit(**EXACT)
def _expect_nothing(out, row, count, group):
    pass


# Their target is (rows, flat; their width).
store_product = product_with(_expect_rows, _to_rows(put_run))
add_product = product_with(_expect_nothing, _to_rows(add_run))
# Gate and up projections in turns; the target is (tiles, their width, the activation's place in ACTIVATIONS).
gated_product = product_with(_expect_nothing, _gate)


def interleave(gate_up: Tensor) -> Tensor:
    """Gate and up projections in turns, 16 outputs of each: [2 · n, …] → [2 · n, …], n a multiple of 16."""
    return gate_up.unflatten(0, (2, -1, OUTPUTS)).transpose(0, 1).flatten(0, 2)
