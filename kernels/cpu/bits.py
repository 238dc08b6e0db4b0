"""Half-precision numbers inside numba kernels.

numba knows neither bfloat16 nor, on a CPU, float16. Kernels see such tensors as 16-bit integers, and the integer
type tells which: **uint16 is bfloat16, int16 is float16**. `widen` and `narrow` choose by that type when a kernel
is compiled, so one source serves all three dtypes and LLVM vectorises the conversion.
"""

from __future__ import annotations

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

STORAGE = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}

_I16, _I32, _F16, _F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()


def stored(x: Tensor) -> Tensor:
    """The tensor as kernels see it; shares memory."""
    return x.view(STORAGE[x.dtype])


@intrinsic
def widen(typingctx, x):
    """A stored number as float32."""

    def codegen(context, builder, signature, args):
        (bits,) = args
        if x == types.uint16:  # bfloat16 is the upper half of a float32
            return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _F32)
        if x == types.int16:
            return builder.fpext(builder.bitcast(bits, _F16), _F32)
        return bits

    return types.float32(x), codegen


@intrinsic
def narrow(typingctx, x, like):
    """A float32 rounded to nearest even, as the stored type of ``like``."""

    def codegen(context, builder, signature, args):
        value, _ = args
        if like == types.uint16:
            bits = builder.bitcast(value, _I32)
            odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
            rounded = builder.add(bits, builder.add(_I32(0x7FFF), odd))
            return builder.trunc(builder.lshr(rounded, _I32(16)), _I16)
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(value, _F16), _I16)
        return value

    return like(types.float32, like), codegen


@intrinsic
def power_of_two(typingctx, exponent):
    """2 to an int32 exponent in −126 … 127, as float32: the exponent field is all there is to set."""

    def codegen(context, builder, signature, args):
        biased = builder.add(args[0], _I32(127))
        return builder.bitcast(builder.shl(biased, _I32(23)), _F32)

    return types.float32(types.int32), codegen
