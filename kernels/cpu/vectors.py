"""Elementary functions of LLVM vectors, for loops that are emitted by hand.

The auto-vectoriser takes half of a wide register, and leaves a maximum to a chain of scalar comparisons. Vectors are of
float32, of any length that fills whole registers; what takes several registers is computed side by side.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from octavo.kernels.cpu.bits import F16, F32, I16, I32
from octavo.kernels.cpu.elementary import EXP2, LOG2E, UNDERFLOW

# 32 registers of 16 numbers, instead of 16 of 8.
IS_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
# Instructions that round to bfloat16, and that add the products of pairs to float32.
KNOWS_BFLOAT = bool(binding.get_host_cpu_features().get("avx512bf16"))
# Sums may be reordered and fused.
REORDERED = ("reassoc", "contract", "nsz")
# Products may be fused with sums, and nothing else changes: numbers are equal to the last bit wherever the code is
# inlined. To operations without any flag numba adds those of the function that they are emitted into.
FUSED = ("contract",)
# Added to a number, it leaves no room for a fraction, and the whole part plus 127 in the lowest bits.
_WHOLE_AND_BIAS = 1.5 * 2.0**23 + 127.0
_EXPONENT = 23


def filled(number: float, vector: ir.VectorType) -> ir.Constant:
    """A vector of one number."""
    return ir.Constant(vector, [number] * vector.count)


class _BFloat(ir.types.Type):
    """LLVM's type of that name, which llvmlite lacks."""

    null = "0.0"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def emit_bfloat(builder, x):
    """float32 rounded to the nearest bfloat16, to the even one of two; NaN stays NaN. What is to be stored."""
    if KNOWS_BFLOAT:  # LLVM would call a function for each number without
        return builder.fptrunc(x, ir.VectorType(_BFloat(), x.type.count))
    words = ir.VectorType(I32, x.type.count)
    bits = builder.bitcast(x, words)
    odd = builder.and_(builder.lshr(bits, filled(16, words)), filled(1, words))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, filled(0x7FFF, words))), filled(16, words))
    quiet = filled(0x7FC0, words)  # rounding may carry a NaN's bits away
    kept = builder.select(builder.fcmp_unordered("uno", x, x), quiet, rounded)
    return builder.trunc(kept, ir.VectorType(I16, x.type.count))


def emit_narrow(builder, stored_type, x):
    """float32 rounded to the nearest number of a stored type (`octavo.kernels.cpu.bits`). What is to be stored."""
    if stored_type == types.uint16:
        return emit_bfloat(builder, x)
    if stored_type == types.int16:
        halves = builder.fptrunc(x, ir.VectorType(F16, x.type.count))
        return builder.bitcast(halves, ir.VectorType(I16, x.type.count))
    return x


def emit_exp2(builder, x):
    """2^x, x ≤ 0; 0 below the range of normal numbers, NaN of NaN. See `octavo.kernels.cpu.elementary.exp2`."""
    floats = x.type
    integers = ir.VectorType(I32, floats.count)
    lowest, whole_and_bias = filled(float(UNDERFLOW), floats), filled(_WHOLE_AND_BIAS, floats)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    shifted = builder.fadd(x, whole_and_bias, flags=FUSED)
    f = builder.fsub(x, builder.fsub(shifted, whole_and_bias, flags=FUSED), flags=FUSED)

    def horner(value, coefficient):
        return builder.fadd(builder.fmul(value, f, flags=FUSED), filled(coefficient, floats), flags=FUSED)

    fraction = reduce(horner, reversed((1.0, *EXP2[:-1])), filled(EXP2[-1], floats))
    exponent = builder.shl(builder.bitcast(shifted, integers), filled(_EXPONENT, integers))
    return builder.fmul(fraction, builder.bitcast(exponent, floats), flags=FUSED)


def emit_sigmoid(builder, x):
    """1 / (1 + 2^(−x · log2 e)); the exponential is of −|x|, which cannot overflow."""
    floats = x.type
    one = filled(1.0, floats)
    scaled = builder.fmul(x, filled(float(LOG2E), floats), flags=FUSED)
    positive = builder.fcmp_ordered(">=", x, filled(0.0, floats))
    e = emit_exp2(builder, builder.select(positive, builder.fneg(scaled, flags=FUSED), scaled))
    over = builder.select(positive, one, e)
    return builder.fdiv(over, builder.fadd(one, e, flags=FUSED), flags=FUSED)


def emit_top(builder, x, y):
    """The larger one of each pair; y where one of them is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def emit_reduce(builder, operation, x):
    """The largest number of a vector ("fmax"; none may be NaN), or the sum of all ("fadd")."""
    arguments, flags = ([F32(0.0), x], REORDERED) if operation == "fadd" else ([x], ("nnan", "nsz"))
    name = f"llvm.vector.reduce.{operation}.v{x.type.count}f32"
    function_type = ir.FunctionType(F32, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments, fastmath=flags)


def emit_fused(builder, x, y, total):
    """total + x · y, rounded once."""
    kind = total.type
    function_type = ir.FunctionType(kind, [kind] * 3)
    name = f"llvm.fmuladd.v{kind.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [x, y, total])


def emit_pairs(builder, x, y, total):
    """total + the products of both numbers in bfloat16 that each word holds, 16 sums at a time, where `KNOWS_BFLOAT`.

    What is too small for a normal number counts as 0.

    Args:
        x, y: Words of 32 bits. total: float32.
    """
    kind = total.type
    # LLVM takes the words, as it once wanted them, for pairs.
    function_type = ir.FunctionType(kind, [kind, x.type, y.type])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [total, x, y])
