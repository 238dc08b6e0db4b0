"""Products with weights in int8, with activations in 16 bits.

Half the bytes of bfloat16 come from memory for each weight. What is multiplied with them would lose too much in one
byte, so each row of activations is put into fixed point, 16 bits under a scale of its own:

    x[r, k] ≈ step[r] · (256 · high[r, k] + low[r, k])        high signed, low not

    sums[r, o] = step[r] · scale[o] · (256 · Σ high · int8[o] + Σ low · int8[o])

AMX tiles multiply bytes, and take as long for two such products as for one of bfloat16. Vectors multiply 16 bits, and
tell high and low bytes of what comes out. Sums of whole numbers are exact, so a row's result does not depend on what
is computed with it.

Weights lie as in `octavo.kernels.cpu.packing`, but for 64 inputs in a tile instead of 32, four of which lie side by
side; the inputs are filled up with zeros. Rows lie in tiles as well, of 16 rows and 64 inputs: for AMX all high bytes
(1 KiB), then all low ones, and for vectors row by row.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from octavo.kernels.cpu.bits import F32, I16, I32, NUMBERS, emit_splat, emit_widen
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.packing import GROUP, OUTPUTS, PANELS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, place

INPUTS = 2 * BLOCK  # of a tile of weights
TILE = ROWS * INPUTS  # bytes
# Sums of a tile of rows: high bytes' of both panels, then low bytes'; int32.
NUM_SUMS = 2 * PANELS * ROWS * OUTPUTS

_LARGEST = 127
# Whose low bytes' sums an int32 holds.
MOST_INPUTS = (2**31 - 1) // (255 * _LARGEST)
# What the largest number of a row becomes.
_FULL = np.float32(256 * _LARGEST)
# Rows without a larger number count as zeros: what they would be multiplied by is no float32.
_LEAST = np.float32(1e-33)
_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in int8, symmetric, with a scale for each output.

    Args:
        weight: [out, in].

    Returns:
        int8 [out, in], and float32 [out]: ``weight ≈ int8 · scale``.
    """
    exact = weight.float()
    scales = exact.abs().amax(dim=1) / _LARGEST
    return (exact / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scales


def pack(numbers: Tensor) -> Tensor:
    """A weight in groups.

    Args:
        numbers: int8 [out, in].

    Returns:
        int8 [groups, in / 64, 2, 16, 16, 4]; as many groups and inputs as cover the weight.
    """
    num_outputs, num_inputs = numbers.shape
    padded = torch.nn.functional.pad(numbers, (0, -num_inputs % INPUTS, 0, -num_outputs % GROUP))
    parts = padded.view(-1, PANELS, OUTPUTS, padded.shape[1] // INPUTS, INPUTS // 4, 4)
    return parts.permute(0, 3, 1, 4, 2, 5).contiguous()


@njit(**EXACT, inline="always")
def num_blocks(num_inputs):
    """Tiles that cover so many inputs."""
    return (num_inputs + INPUTS - 1) // INPUTS


@njit(**EXACT)
def group_bytes(num_inputs):
    """Of a group of weights."""
    return GROUP * INPUTS * num_blocks(num_inputs)


@njit(**EXACT)
def fixed_bytes(num_rows, num_inputs):
    """Of so many rows in fixed point."""
    return (num_rows + ROWS - 1) // ROWS * num_blocks(num_inputs) * 2 * TILE


def _load_run(context, builder, signature, args, i, kind):
    """32 numbers of an array from the index in the argument after it on, as a vector of this kind of number."""
    data = context.make_array(signature.args[i])(context, builder, args[i]).data
    run = ir.VectorType(kind, BLOCK).as_pointer()
    return builder.load(builder.bitcast(builder.gep(data, [args[i + 1]]), run), align=2)


@intrinsic
def _largest_bits(typingctx, x, at, runs):
    """The largest magnitude of a row's numbers, as the bits of a float32: without signs, they are ordered as the
    numbers. The row has so many runs of 32, one in each tile from ``at`` on."""
    bits = x.dtype.bitwidth
    integer = ir.IntType(bits)
    run = ir.VectorType(integer, BLOCK)

    def codegen(context, builder, signature, args):
        tops = cgutils.alloca_once_value(builder, ir.Constant(run, [0] * BLOCK))
        with cgutils.for_range(builder, args[2]) as loop:
            place = builder.add(args[1], builder.mul(loop.index, _INT64(ROWS * BLOCK)))
            numbers = _load_run(context, builder, signature, [args[0], place], 0, integer)
            magnitudes = builder.and_(numbers, ir.Constant(run, [(1 << bits - 1) - 1] * BLOCK))
            top = builder.load(tops)
            builder.store(builder.select(builder.icmp_unsigned(">", magnitudes, top), magnitudes, top), tops)
        function_type = ir.FunctionType(integer, [run])
        name = f"llvm.vector.reduce.umax.v{BLOCK}i{bits}"
        reduce = cgutils.get_or_insert_function(builder.module, function_type, name)
        largest = builder.call(reduce, [builder.load(tops)])
        if bits == I32.width:
            return largest
        return builder.shl(builder.zext(largest, I32), I32(I32.width - bits))  # bfloat16

    return types.uint32(x, types.intp, types.intp), codegen


@intrinsic
def _as_float(typingctx, bits):
    """A float32 from its bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen


@intrinsic(prefer_literal=True)
def _fix_run(typingctx, fixed, to, x, at, factor, apart):
    """32 numbers times ``factor``, rounded, to byte ``to`` on; if they are taken apart (a literal), the high bytes,
    and the low ones a tile further."""
    if not isinstance(apart, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, args):
        wide, single = ir.VectorType(I32, BLOCK), ir.VectorType(F32, BLOCK)
        stored = _load_run(context, builder, signature, args, 2, NUMBERS[x.dtype])
        numbers = emit_widen(builder, x.dtype, stored, BLOCK)
        scaled = builder.fmul(numbers, emit_splat(builder, args[4], BLOCK))
        round_type = ir.FunctionType(single, [single])
        rounded = builder.call(
            cgutils.get_or_insert_function(builder.module, round_type, f"llvm.rint.v{BLOCK}f32"), [scaled]
        )
        whole = builder.fptosi(rounded, wide)
        target = context.make_array(signature.args[0])(context, builder, args[0]).data
        high = builder.ashr(whole, ir.Constant(wide, [8] * BLOCK))
        for value, kind, offset in (
            ((high, _BYTE, 0), (whole, _BYTE, TILE)) if apart.literal_value else ((whole, I16, 0),)
        ):
            narrow = builder.trunc(value, ir.VectorType(kind, BLOCK))
            pointer = builder.gep(target, [builder.add(args[1], _INT64(offset))])
            builder.store(narrow, builder.bitcast(pointer, narrow.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(fixed, types.intp, x, types.intp, types.float32, apart), codegen


@cache
def fix_rows_with(apart: int):
    """``fix_rows(fixed, steps, x, begin, end, num_inputs)`` puts rows into fixed point.

    fixed       uint8 [≥ fixed_bytes(end − begin, num_inputs)]
    steps       float32 [≥ end − begin]
    x           uint16 (bfloat16) or float32 in tiles, see `octavo.kernels.cpu.tiles`; rows from ``begin``, a multiple
                of 16, to ``end``

    Args:
        apart: 1 if high and low bytes are to lie apart, else 0.
    """
    row_bytes, run_bytes = (INPUTS, BLOCK) if apart else (2 * INPUTS, 2 * BLOCK)

    @njit(**EXACT)
    def fix_rows(fixed, steps, x, begin, end, num_inputs):
        blocks = num_blocks(num_inputs)
        for row in range(begin, end):
            largest = _as_float(_largest_bits(x, place(row, 0, num_inputs), num_inputs // BLOCK))
            steps[row - begin] = largest / _FULL
            factor = _FULL / largest if largest > _LEAST else np.float32(0.0)
            first = (row - begin) // ROWS * blocks * 2 * TILE + row % ROWS * row_bytes
            for column in range(0, num_inputs, BLOCK):
                to = first + column // INPUTS * 2 * TILE + column % INPUTS // BLOCK * run_bytes
                _fix_run(fixed, to, x, place(row, column, num_inputs), factor, apart)
            if num_inputs % INPUTS:
                to = first + (blocks - 1) * 2 * TILE + run_bytes
                fixed[to : to + run_bytes] = 0
                if apart:
                    fixed[to + TILE : to + TILE + run_bytes] = 0

    return fix_rows


@njit(**EXACT, forceinline=True)
def put_sums(target, first, panel_step, sums, count, steps, first_step, scales, group):
    """Sums of bytes as the sums of ``count`` rows: float32, 2 panels of 16 outputs, rows one after the other.

    Args:
        target: float32; ``first`` is where the first row's go, ``panel_step`` from a panel to the next.
        steps: From `fix_rows_with`; ``first_step`` is the first row's. scales: float32 [out].
    """
    for panel in range(PANELS):
        begin = group * GROUP + panel * OUTPUTS
        num_outputs = min(OUTPUTS, scales.shape[0] - begin)
        for r in range(count):
            at, to = (panel * ROWS + r) * OUTPUTS, first + panel * panel_step + r * OUTPUTS
            if num_outputs == OUTPUTS:
                _put_run(target, to, sums, at, steps[first_step + r], scales, begin)
                continue
            for i in range(num_outputs):
                high, low = np.float32(sums[at + i]), np.float32(sums[at + PANELS * ROWS * OUTPUTS + i])
                target[to + i] = steps[first_step + r] * scales[begin + i] * (np.float32(256.0) * high + low)


@intrinsic
def _put_run(typingctx, target, to, sums, at, step, scales, begin):
    """16 sums of `put_sums`: for the compiler, any of these arrays might be in the way of another."""

    def codegen(context, builder, signature, args):
        floats, whole = ir.VectorType(F32, OUTPUTS), ir.VectorType(I32, OUTPUTS)

        def address(i, offset, kind):
            data = context.make_array(signature.args[i])(context, builder, args[i]).data
            return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

        high, low = (
            builder.sitofp(builder.load(address(2, builder.add(args[3], _INT64(half)), whole), align=4), floats)
            for half in (0, PANELS * ROWS * OUTPUTS)
        )
        scale = builder.load(address(5, args[6], floats), align=4)
        factor = builder.fmul(emit_splat(builder, args[4], OUTPUTS), scale)
        total = builder.fadd(builder.fmul(high, ir.Constant(floats, [256.0] * OUTPUTS)), low)
        builder.store(builder.fmul(factor, total), address(0, args[1], floats), align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(target, size, sums, size, types.float32, scales, size), codegen
