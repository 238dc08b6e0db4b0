"""Rows of the KV cache inside numba kernels: numbers as they are, or in int8 with their scale behind them.

The type of a cache's elements tells which (see `octavo.kernels.kv_rows`), and is chosen by when a kernel is compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from octavo.config import KV_SCALE_BYTES
from octavo.kernels.cpu.bits import F32, narrow, widen
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.kv_rows import LARGEST, LEAST

_ZERO, _NAN = np.float32(0.0), np.float32(np.nan)
_LARGEST, _LEAST = np.float32(LARGEST), np.float32(LEAST)


@njit(**EXACT, inline="always")
def numbers_of(kv):
    """Numbers of a row of a cache [num_blocks, 2, KV heads, block_size, row width]."""
    return kv.shape[4] - (KV_SCALE_BYTES if kv.itemsize == 1 else 0)


def put_row(row, x):
    """Writes a row.

    Args:
        row: Of the cache. x: [head_dim], as stored or float32.
    """


@overload(put_row, jit_options={"error_model": "numpy"})  # exact: whoever quantizes gets the same
def _put_row(row, x):
    return _put_quantized if row.dtype == types.int8 else _put_numbers


def _put_numbers(row, x):
    for d in range(x.shape[0]):
        row[d] = narrow(widen(x[d]), row[d])


def _put_quantized(row, x):
    largest, finite = _ZERO, True
    for d in range(x.shape[0]):
        largest = max(largest, abs(widen(x[d])))
        finite &= np.isfinite(widen(x[d]))
    inverse = _LARGEST / largest if largest > _LEAST else _ZERO
    for d in range(x.shape[0]):
        row[d] = np.int8(np.rint(widen(x[d]) * inverse)) if finite else np.int8(0)
    _put_scale(row, x.shape[0], largest / _LARGEST if finite else _NAN)


@intrinsic
def _put_scale(typingctx, row, at, scale):
    def codegen(context, builder, signature, args):
        begin = context.make_array(row)(context, builder, args[0]).data
        builder.store(args[2], scale_pointer(builder, begin, args[1]), align=1)
        return context.get_dummy_value()

    return types.void(row, types.intp, types.float32), codegen


@intrinsic
def scale_of(typingctx, row, head_dim):
    """The scale of a row's numbers; 1 if they are as they are."""

    def codegen(context, builder, signature, args):
        if row.dtype != types.int8:
            return F32(1.0)
        begin = context.make_array(row)(context, builder, args[0]).data
        return builder.load(scale_pointer(builder, begin, args[1]), align=1)

    return types.float32(row, types.intp), codegen


def scale_pointer(builder, begin, index):
    """Where the scale is that lies behind so many numbers."""
    return builder.bitcast(builder.gep(begin, [index]), F32.as_pointer())
