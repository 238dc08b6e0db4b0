"""The two passes of a softmax over a row of scores; see `octavo.kernels.cpu.vectors`."""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I32, emit_splat
from octavo.kernels.cpu.vectors import REORDERED, emit_exp2, emit_reduce, emit_top

# Two registers of the widest machines, so that one is computed while the other waits.
_LANES = 32
_VECTOR, _INTEGERS = ir.VectorType(F32, _LANES), ir.VectorType(I32, _LANES)


@intrinsic
def largest(typingctx, row):
    """The largest element of a contiguous float32 row; −inf if it is empty. No element may be NaN."""
    if row.layout != "C":
        return None

    def codegen(context, builder, signature, args):
        top = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [-math.inf] * _LANES))
        for _, value in _vectors(context, builder, row, args[0], -math.inf):
            builder.store(emit_top(builder, value, builder.load(top)), top)
        return emit_reduce(builder, "fmax", builder.load(top))

    return types.float32(row), codegen


@intrinsic
def exponentiate(typingctx, row, top):
    """row = 2^(row − top), in place; returns the sum.

    Args:
        row: float32, contiguous; no element is larger than ``top``. Those far below become 0.
    """
    if row.layout != "C":
        return None

    def codegen(context, builder, signature, args):
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * _LANES))
        tops = emit_splat(builder, args[1], _LANES)
        for store, value in _vectors(context, builder, row, args[0], -math.inf):
            power = emit_exp2(builder, builder.fsub(value, tops, flags=REORDERED))
            builder.store(builder.fadd(builder.load(total), power, flags=REORDERED), total)
            store(power)
        return emit_reduce(builder, "fadd", builder.load(total))

    return types.float32(row, types.float32), codegen


def _vectors(context, builder, array_type, value, padding):
    """Emits a loop over a row's vectors, and what follows once more for the rest of it, padded.

    Yields a function that emits the store of as many numbers, and the loaded vector.
    """
    array = context.make_array(array_type)(context, builder, value)
    (length,) = cgutils.unpack_tuple(builder, array.shape)
    index = length.type
    whole = builder.udiv(length, index(_LANES))

    def at(first):
        return builder.bitcast(builder.gep(array.data, [first]), _VECTOR.as_pointer())

    with cgutils.for_range(builder, whole) as loop:
        pointer = at(builder.mul(loop.index, index(_LANES)))
        yield lambda vector: builder.store(vector, pointer, align=4), builder.load(pointer, align=4)
    done = builder.mul(whole, index(_LANES))
    with builder.if_then(builder.icmp_unsigned("<", done, length)):
        rest = builder.trunc(builder.sub(length, done), I32)
        mask = builder.icmp_signed("<", ir.Constant(_INTEGERS, list(range(_LANES))), emit_splat(builder, rest, _LANES))
        pointer = at(done)
        load = _masked(builder, "load", _VECTOR, [pointer.type, I32, mask.type, _VECTOR])
        padded = ir.Constant(_VECTOR, [padding] * _LANES)
        store = _masked(builder, "store", ir.VoidType(), [_VECTOR, pointer.type, I32, mask.type])
        vector = builder.call(load, [pointer, I32(4), mask, padded])
        yield lambda vector: builder.call(store, [vector, pointer, I32(4), mask]), vector


def _masked(builder, name, result, arguments):
    full = f"llvm.masked.{name}.v{_LANES}f32.p0v{_LANES}f32"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full)
