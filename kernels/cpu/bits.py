"""Half-precision numbers inside numba kernels.

numba knows neither bfloat16 nor, on a CPU, float16. Kernels see such tensors as 16-bit integers, and the integer
type tells which: **uint16 is bfloat16, int16 is float16**. Conversions choose by that type when a kernel is
compiled, so one source serves all three dtypes.
"""

from __future__ import annotations

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

STORAGE = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}

NUMBA_TYPES = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}

I16, I32, F16, F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()

# What LLVM loads and stores of each type.
NUMBERS = {types.float32: F32, types.uint16: I16, types.int16: I16, types.int8: ir.IntType(8)}


def stored(x: Tensor) -> Tensor:
    """The tensor as kernels see it; shares memory."""
    return x.view(STORAGE[x.dtype])


def emit_widen(builder, stored_type, value, lanes=None):
    """Emits the conversion of one stored value, or of a vector of ``lanes`` of them, to float32."""

    def shaped(scalar):
        return scalar if lanes is None else ir.VectorType(scalar, lanes)

    if stored_type == types.uint16:  # bfloat16 is the upper half of a float32
        sixteen = I32(16) if lanes is None else ir.Constant(shaped(I32), [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(value, shaped(I32)), sixteen), shaped(F32))
    if stored_type == types.int8:  # its scale is the caller's to know
        return builder.sitofp(value, shaped(F32))
    if stored_type == types.int16:
        return builder.fpext(builder.bitcast(value, shaped(F16)), shaped(F32))
    return value


def emit_splat(builder, value, lanes):
    """Emits a vector of ``lanes`` times the same number."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


@intrinsic
def widen(typingctx, x):
    """A stored number as float32."""

    def codegen(context, builder, signature, args):
        return emit_widen(builder, x, args[0])

    return types.float32(x), codegen


@intrinsic
def narrow(typingctx, x, like):
    """A float32 rounded to the nearest even number of ``like``'s stored type."""

    def codegen(context, builder, signature, args):
        value, _ = args
        if like == types.uint16:
            bits = builder.bitcast(value, I32)
            odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
            rounded = builder.add(bits, builder.add(I32(0x7FFF), odd))
            return builder.trunc(builder.lshr(rounded, I32(16)), I16)
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(value, F16), I16)
        return value

    return like(types.float32, like), codegen


@intrinsic
def power_of_two(typingctx, exponent):
    """2 to an int32 exponent in −126 … 127, as float32: the exponent field is all there is to set."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.add(args[0], I32(127)), I32(23)), F32)

    return types.float32(types.int32), codegen
