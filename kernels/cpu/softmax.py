"""The two passes of a softmax over a row of scores.

They are emitted as LLVM vectors: the auto-vectoriser leaves a maximum to a chain of scalar comparisons, and takes
half of a wide register for the rest.
"""

from __future__ import annotations

import math
from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I32
from octavo.kernels.cpu.elementary import EXP2, UNDERFLOW

# Two registers of the widest machines, so that one is computed while the other waits.
_LANES = 32
_FLAGS = ("reassoc", "contract", "nsz")
_VECTOR, _INTEGERS = ir.VectorType(F32, _LANES), ir.VectorType(I32, _LANES)


@intrinsic
def largest(typingctx, row):
    """The largest element of a contiguous float32 row; −inf if it is empty. No element may be NaN."""
    if row.layout != "C":
        return None

    def codegen(context, builder, signature, args):
        top = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [-math.inf] * _LANES))
        for _, value in _vectors(context, builder, row, args[0], -math.inf):
            held = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", value, held), value, held), top)
        return _reduce(builder, "fmax", [builder.load(top)], ("nnan", "nsz"))

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
        tops = _splat(builder, args[1])
        for store, value in _vectors(context, builder, row, args[0], -math.inf):
            power = _exp2(builder, builder.fsub(value, tops, flags=_FLAGS))
            builder.store(builder.fadd(builder.load(total), power, flags=_FLAGS), total)
            store(power)
        return _reduce(builder, "fadd", [F32(0.0), builder.load(total)], _FLAGS)

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
        mask = builder.icmp_signed("<", ir.Constant(_INTEGERS, list(range(_LANES))), _splat(builder, rest, _INTEGERS))
        pointer = at(done)
        load = _masked(builder, "load", _VECTOR, [pointer.type, I32, mask.type, _VECTOR])
        padded = ir.Constant(_VECTOR, [padding] * _LANES)
        store = _masked(builder, "store", ir.VoidType(), [_VECTOR, pointer.type, I32, mask.type])
        vector = builder.call(load, [pointer, I32(4), mask, padded])
        yield lambda vector: builder.call(store, [vector, pointer, I32(4), mask]), vector


def _masked(builder, name, result, arguments):
    full = f"llvm.masked.{name}.v{_LANES}f32.p0v{_LANES}f32"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full)


def _exp2(builder, x):
    """2^x of a vector, x ≤ 0; see `octavo.kernels.cpu.elementary.exp2`."""

    def all_of(number):
        return ir.Constant(_VECTOR, [number] * _LANES)

    smallest = all_of(float(UNDERFLOW))
    x = builder.select(builder.fcmp_ordered(">", x, smallest), x, smallest)
    whole = builder.fptosi(builder.fsub(x, all_of(0.5), flags=_FLAGS), _INTEGERS)
    f = builder.fsub(x, builder.sitofp(whole, _VECTOR), flags=_FLAGS)

    def horner(value, coefficient):
        return builder.fadd(builder.fmul(value, f, flags=_FLAGS), all_of(coefficient), flags=_FLAGS)

    fraction = reduce(horner, reversed((1.0, *EXP2[:-1])), all_of(EXP2[-1]))
    exponent = builder.add(whole, ir.Constant(_INTEGERS, [127] * _LANES))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(_INTEGERS, [23] * _LANES)), _VECTOR)
    return builder.fmul(fraction, power, flags=_FLAGS)


def _reduce(builder, operation, arguments, flags):
    types_ = [argument.type for argument in arguments]
    name = f"llvm.vector.reduce.{operation}.v{_LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(F32, types_), name)
    return builder.call(function, arguments, fastmath=flags)


def _splat(builder, value, vector=_VECTOR):
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, _LANES), [0] * _LANES))
