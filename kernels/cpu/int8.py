"""Products with weights in int8, with activations in 16 bits.

Half the bytes of bfloat16 come from memory for each weight. What is multiplied with them would lose too much in one
byte, so each row of activations is put into fixed point, 16 bits under a scale of its own, whose two bytes lie apart,
because AMX tiles multiply bytes:

    x[r, k] ≈ step[r] · (256 · high[r, k] + low[r, k])        high signed, low not

    sums[r, o] = step[r] · scale[o] · (256 · Σ high · int8[o] + Σ low · int8[o])

Two products of bytes take those tiles as long as one of bfloat16; vectors put the bytes together and multiply once.
Sums of whole numbers are exact, so a row's result does
not depend on what is computed with it.

Weights lie as in `octavo.kernels.cpu.packing`, but for 64 inputs in a tile instead of 32, four of which lie side by
side; the inputs are filled up with zeros. A row's bytes lie in tiles as well: for 64 inputs, 16 rows of high bytes
(1 KiB), then 16 of low ones.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from octavo.kernels.cpu.bits import F32, I32, NUMBERS, emit_widen
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
def split_bytes(num_rows, num_inputs):
    """Of so many rows in two bytes each."""
    return (num_rows + ROWS - 1) // ROWS * num_blocks(num_inputs) * 2 * TILE


def _load_run(context, builder, signature, args, i, kind):
    """32 numbers of an array from the index in the argument after it on, as a vector of this kind of number."""
    data = context.make_array(signature.args[i])(context, builder, args[i]).data
    run = ir.VectorType(kind, BLOCK).as_pointer()
    return builder.load(builder.bitcast(builder.gep(data, [args[i + 1]]), run), align=2)


@intrinsic
def _largest_bits(typingctx, x, at):
    """The largest magnitude of 32 numbers, as the bits of a float32: without signs, they are ordered as the numbers."""
    bits = x.dtype.bitwidth
    integer = ir.IntType(bits)

    def codegen(context, builder, signature, args):
        numbers = _load_run(context, builder, signature, args, 0, integer)
        magnitudes = builder.and_(numbers, ir.Constant(numbers.type, [(1 << bits - 1) - 1] * BLOCK))
        function_type = ir.FunctionType(integer, [numbers.type])
        name = f"llvm.vector.reduce.umax.v{BLOCK}i{bits}"
        largest = builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [magnitudes])
        if bits == I32.width:
            return largest
        return builder.shl(builder.zext(largest, I32), I32(I32.width - bits))  # bfloat16

    return types.uint32(x, types.intp), codegen


@intrinsic
def _as_float(typingctx, bits):
    """A float32 from its bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen


@intrinsic
def _split_run(typingctx, split, to, x, at, factor):
    """32 numbers times ``factor``, rounded: high bytes go to ``to``, low ones a tile further."""

    def codegen(context, builder, signature, args):
        wide, single = ir.VectorType(ir.IntType(32), BLOCK), ir.VectorType(ir.FloatType(), BLOCK)
        stored = _load_run(context, builder, signature, args, 2, NUMBERS[x.dtype])
        numbers = emit_widen(builder, x.dtype, stored, BLOCK)
        factors = cgutils.alloca_once(builder, single)
        for lane in range(BLOCK):
            pointer = builder.gep(builder.bitcast(factors, ir.FloatType().as_pointer()), [_INT64(lane)])
            builder.store(args[4], pointer)
        scaled = builder.fmul(numbers, builder.load(factors))
        round_type = ir.FunctionType(single, [single])
        rounded = builder.call(
            cgutils.get_or_insert_function(builder.module, round_type, f"llvm.rint.v{BLOCK}f32"), [scaled]
        )
        fixed = builder.fptosi(rounded, wide)
        target = context.make_array(signature.args[0])(context, builder, args[0]).data
        for value, offset in ((builder.ashr(fixed, ir.Constant(wide, [8] * BLOCK)), 0), (fixed, TILE)):
            narrow = builder.trunc(value, ir.VectorType(_BYTE, BLOCK))
            pointer = builder.gep(target, [builder.add(args[1], _INT64(offset))])
            builder.store(narrow, builder.bitcast(pointer, narrow.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(split, types.intp, x, types.intp, types.float32), codegen


@njit(**EXACT)
def split_rows(split, steps, x, begin, end, num_inputs):
    """Puts rows into fixed point.

    Args:
        split: uint8 [≥ split_bytes(end − begin, num_inputs)]. steps: float32 [≥ end − begin].
        x: uint16 (bfloat16) or float32 in tiles, see `octavo.kernels.cpu.tiles`; rows from ``begin``, a multiple of 16,
            to ``end``.
    """
    blocks = num_blocks(num_inputs)
    for row in range(begin, end):
        most = np.uint32(0)
        for column in range(0, num_inputs, BLOCK):
            most = max(most, _largest_bits(x, place(row, column, num_inputs)))
        largest = _as_float(most)
        steps[row - begin] = largest / _FULL
        factor = _FULL / largest if largest > _LEAST else np.float32(0.0)
        first = (row - begin) // ROWS * blocks * 2 * TILE + row % ROWS * INPUTS
        for column in range(0, num_inputs, BLOCK):
            to = first + column // INPUTS * 2 * TILE + column % INPUTS
            _split_run(split, to, x, place(row, column, num_inputs), factor)
        if num_inputs % INPUTS:
            to = first + (blocks - 1) * 2 * TILE + BLOCK
            split[to : to + BLOCK] = 0
            split[to + TILE : to + TILE + BLOCK] = 0


@njit(**EXACT, forceinline=True)
def put_sums(target, first, panel_step, sums, count, steps, first_step, scales, group):
    """Sums of bytes as the sums of ``count`` rows: float32, 2 panels of 16 outputs, rows one after the other.

    Args:
        target: float32; ``first`` is where the first row's go, ``panel_step`` from a panel to the next.
        steps: From `split_rows`; ``first_step`` is the first row's. scales: float32 [out].
    """
    for panel in range(PANELS):
        begin = group * GROUP + panel * OUTPUTS
        num_outputs = min(OUTPUTS, scales.shape[0] - begin)
        for r in range(count):
            at, to = (panel * ROWS + r) * OUTPUTS, first + panel * panel_step + r * OUTPUTS
            for i in range(num_outputs):
                high, low = np.float32(sums[at + i]), np.float32(sums[at + PANELS * ROWS * OUTPUTS + i])
                target[to + i] = steps[first_step + r] * scales[begin + i] * (np.float32(256.0) * high + low)
