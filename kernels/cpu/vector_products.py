"""Products of tiles in ordinary vectors, for processors without AMX: same operands, same layout, same interface.

Two bfloat16 lie in a word of 32 bits, and each is the upper half of a float32: a shift or a mask makes the weights of
16 outputs from 16 words, and the number that they are multiplied with from one. Only memory sees 16 bits, then; the
arithmetic is float32's, as fast as the processor's own.

Each sum runs over the inputs in their order, whatever the number of rows, so a row's result does not depend on the
others.

Weights in int8 meet activations in fixed point, of 16 bits (`octavo.kernels.cpu.int8`), which are multiplied whole:

    product    4 inputs of x, 16 bits  ·  the same 4 of 4 outputs  →  2 sums of a pair each for every output, 32 bits
"""

from __future__ import annotations

from functools import cache

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I16, I32, emit_splat
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.memory import AHEAD, LINE, emit_address, emit_fetch
from octavo.kernels.cpu.packing import OUTPUTS, PANELS
from octavo.kernels.cpu.tiles import BLOCK, ROWS

# 32 registers of 16 numbers, instead of 16 of 8.
_IS_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
# Rows that are computed side by side, and with how many panels of weights: as many sums as there are registers for.
# With fewer than eight registers of them the arithmetic would wait for itself; few rows wait for memory anyway.
_MANY, _PANELS_OF_MANY = (8, PANELS) if _IS_WIDE else (4, 1)
_FEWEST_OF_MANY = 5 if _IS_WIDE else 3  # rows for which the others would take longer
# Where only 8 outputs count.
_FEW_ROWS, _FEW_OUTPUTS = 8, 8
_UNROLLED = 4  # pairs of inputs

_TILE = BLOCK * ROWS  # numbers
# Of 64 inputs each: a sum of so many pairs of products of 16 and 8 bits fits 32 bits.
_BLOCKS_AT_ONCE = 16
_HALF = PANELS * ROWS * OUTPUTS  # of the sums of bytes: first those of high bytes, then those of low ones
_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)
_UPPER_HALF = 0xFFFF0000
_PAIR_PRODUCTS = "llvm.x86.avx2.pmadd.wd"


@njit(**EXACT)
def configure(config, num_rows):
    """There is nothing to be configured."""


@njit(**EXACT)
def release():
    """There is nothing to be given back."""


@njit(**EXACT)
def multiply(
    sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles, fetch
):
    """See `octavo.kernels.cpu.products.multiply`."""
    for half in range(row_tiles):
        row, end = 0, min(ROWS, count - half * ROWS)
        while row < end:
            at, to = first_x + half * tile + row * BLOCK, first_sum + (half * ROWS + row) * row_step
            # Only the first rows wait for the weights; then they are in the cache.
            ahead = AHEAD if fetch == 1 and half == 0 and row == 0 else 0
            if end - row >= _FEWEST_OF_MANY:
                for panel in range(0, PANELS, _PANELS_OF_MANY):
                    _sum_rows(
                        sums, to + panel * panel_step, row_step, panel_step,
                        weights, first_weight + panel * _TILE, blocks,
                        x, at, BLOCK, _TILE, ahead, _MANY, _PANELS_OF_MANY, OUTPUTS,
                    )  # fmt: skip
                    ahead = 0
                row += _MANY
            elif end - row == 2:
                _sum_rows(
                    sums, to, row_step, panel_step, weights, first_weight, blocks,
                    x, at, BLOCK, _TILE, ahead, 2, PANELS, OUTPUTS,
                )  # fmt: skip
                row += 2
            else:
                _sum_rows(
                    sums, to, row_step, panel_step, weights, first_weight, blocks,
                    x, at, BLOCK, _TILE, ahead, 1, PANELS, OUTPUTS,
                )  # fmt: skip
                row += 1


@njit(**EXACT)
def multiply_few(sums, first_sum, row_step, weights, first_weight, blocks, x, first_x, tile, x_row, x_block):
    """See `octavo.kernels.cpu.products.multiply_few`."""
    for half in range(2):
        for row in range(0, ROWS, _FEW_ROWS):
            _sum_rows(
                sums, first_sum + (half * ROWS + row) * row_step, row_step, 0, weights, first_weight, blocks,
                x, first_x + half * tile + row * x_row, x_row, x_block, 0, _FEW_ROWS, 1, _FEW_OUTPUTS,
            )  # fmt: skip


@njit(**EXACT)
def multiply_bytes(sums, numbers, first_weight, blocks, split, first_x, count, fetch):
    """See `octavo.kernels.cpu.products.multiply_bytes`."""
    rows = min(count, ROWS)
    for i in range(2 * _HALF):
        sums[i] = 0
    for begin in range(0, blocks, _BLOCKS_AT_ONCE):
        now = min(_BLOCKS_AT_ONCE, blocks - begin)
        x = first_x + begin * 4 * _TILE
        for panel in range(PANELS):
            weight = first_weight + (begin * PANELS + panel) * 2 * _TILE
            for row in range(0, rows, 2):
                to, at = (panel * ROWS + row) * OUTPUTS, x + row * 2 * BLOCK
                ahead = AHEAD if fetch == 1 and panel == 0 and row == 0 else 0
                if rows - row > 1:
                    _sum_byte_rows(sums, to, numbers, weight, now, split, at, ahead, 2)
                else:
                    _sum_byte_rows(sums, to, numbers, weight, now, split, at, ahead, 1)


@intrinsic(prefer_literal=True)
def _sum_byte_rows(typingctx, sums, first_sum, numbers, first_weight, blocks, split, first_x, ahead, num_rows):
    """Adds the products of one or two rows with one panel of weights in int8 to the sums.

    Args:
        ahead: As for `_sum_rows`.
        num_rows: A literal.
    """
    if not isinstance(num_rows, types.IntegerLiteral):
        return None
    rows, quarters = range(num_rows.literal_value), range(OUTPUTS // 4)
    bytes_of_quarter, pairs = ir.VectorType(_BYTE, 16), ir.VectorType(I32, 8)
    four_bytes, longs = ir.VectorType(_BYTE, 4), ir.VectorType(_INT64, 4)

    def codegen(context, builder, signature, args):
        weight, first = (emit_address(context, builder, signature, args, i) for i in (2, 5))
        zero = ir.Constant(pairs, [0] * pairs.count)
        cells = {(r, k): cgutils.alloca_once_value(builder, zero) for r in rows for k in quarters}

        def load(pointer, offset, kind):
            return builder.load(builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer()), align=1)

        with cgutils.for_range(builder, args[4]) as loop:
            # A block has as many bytes of weights, in both panels, as of rows, in high and low bytes.
            offset = builder.mul(loop.index, _INT64(4 * _TILE))
            weight_block, row_block = builder.gep(weight, [offset]), builder.gep(first, [offset])
            with builder.if_then(builder.icmp_signed(">", args[7], _INT64(0))):
                emit_fetch(builder, builder.gep(weight_block, [args[7]]), 4 * _TILE)
            with cgutils.for_range(builder, _INT64(ROWS)) as quad:
                at = builder.mul(quad.index, _INT64(LINE))
                factors = []
                for k in quarters:
                    stored = load(weight_block, builder.add(at, _INT64(16 * k)), bytes_of_quarter)
                    factors.append(builder.sext(stored, ir.VectorType(I16, 16)))
                for r in rows:
                    place = builder.add(builder.mul(quad.index, _INT64(4)), _INT64(r * 2 * BLOCK))
                    high = load(row_block, place, four_bytes)
                    low = load(row_block, builder.add(place, _INT64(2 * _TILE)), four_bytes)
                    order = ir.Constant(ir.VectorType(I32, 8), [0, 4, 1, 5, 2, 6, 3, 7])
                    fixed = builder.bitcast(builder.shuffle_vector(low, high, order), _INT64)
                    x = builder.bitcast(emit_splat(builder, fixed, longs.count), ir.VectorType(I16, 16))
                    for k in quarters:
                        total = builder.add(builder.load(cells[r, k]), _emit_pair_products(builder, factors[k], x))
                        builder.store(total, cells[r, k])
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        for (r, k), cell in cells.items():
            total, eight = builder.load(cell), ir.Constant(pairs, [8] * 8)
            parts = builder.ashr(total, eight), builder.and_(total, ir.Constant(pairs, [255] * 8))
            for half, part in enumerate(parts):
                place = builder.add(args[1], _INT64(half * _HALF + r * OUTPUTS + 4 * k))
                pointer = builder.bitcast(builder.gep(data, [place]), ir.VectorType(I32, 4).as_pointer())
                both = builder.add(_emit_every_other(builder, part, 0), _emit_every_other(builder, part, 1))
                builder.store(builder.add(builder.load(pointer, align=4), both), pointer, align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, size, numbers, size, size, split, size, size, num_rows), codegen


def _emit_pair_products(builder, x, y):
    """Sums of the products of two neighbours each: <16 x i16> times <16 x i16> to <8 x i32>."""
    if _has_pair_products():
        function_type = ir.FunctionType(ir.VectorType(I32, 8), [x.type, y.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, _PAIR_PRODUCTS), [x, y])
    wide = ir.VectorType(I32, 16)
    products = builder.mul(builder.sext(x, wide), builder.sext(y, wide))
    return builder.add(_emit_every_other(builder, products, 0), _emit_every_other(builder, products, 1))


@cache
def _has_pair_products() -> bool:
    """Whether the processor has an instruction for them."""
    return bool(binding.get_host_cpu_features().get("avx2"))


def _emit_every_other(builder, x, first):
    order = ir.Constant(ir.VectorType(I32, x.type.count // 2), list(range(first, x.type.count, 2)))
    return builder.shuffle_vector(x, x, order)


@intrinsic(prefer_literal=True)
def _sum_rows(
    typingctx, sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, x_row, x_block,
    ahead, num_rows, panels, outputs,
):  # fmt: skip
    """Sums of some rows with some panels of weights.

    Args:
        x_row, x_block: Numbers from a row of x to the next, and from a block of 32 inputs to the next.
        ahead: Bytes by which both panels' weights are fetched before they are used; 0 fetches nothing.
        num_rows, panels, outputs: Literals; the outputs are the first of each panel.
    """
    literals = num_rows, panels, outputs
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    rows, columns = range(num_rows.literal_value), range(panels.literal_value)
    words, floats = (ir.VectorType(kind, outputs.literal_value) for kind in (I32, F32))
    sixteen, upper_half = (ir.Constant(words, [number] * words.count) for number in (16, _UPPER_HALF))

    def codegen(context, builder, signature, args):
        total, weight, first = (emit_address(context, builder, signature, args, i) for i in (0, 4, 7))
        row_step, panel_step, row_bytes, block_bytes = (
            builder.mul(args[i], _INT64(size)) for i, size in ((2, 4), (3, 4), (9, 2), (10, 2))
        )
        zero = ir.Constant(floats, [0.0] * floats.count)
        cells = {(r, j): cgutils.alloca_once_value(builder, zero) for r in rows for j in columns}
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{floats.count}f32"
        )

        def halves(pair):
            """Both numbers of each word as float32."""
            return [
                builder.bitcast(half, floats) for half in (builder.shl(pair, sixteen), builder.and_(pair, upper_half))
            ]

        with cgutils.for_range(builder, args[6]) as loop:
            weight_block = builder.gep(weight, [builder.mul(loop.index, _INT64(PANELS * 2 * _TILE))])
            row_block = builder.gep(first, [builder.mul(loop.index, block_bytes)])
            with builder.if_then(builder.icmp_signed(">", args[11], _INT64(0))):
                emit_fetch(builder, builder.gep(weight_block, [args[11]]), PANELS * 2 * _TILE)
            with cgutils.for_range(builder, _INT64(BLOCK // 2 // _UNROLLED)) as inner:
                for i in range(_UNROLLED):
                    pair = builder.add(builder.mul(inner.index, _INT64(_UNROLLED)), _INT64(i))
                    factors = []
                    for j in columns:
                        offset = builder.add(builder.mul(pair, _INT64(LINE)), _INT64(j * 2 * _TILE))
                        pointer = builder.bitcast(builder.gep(weight_block, [offset]), words.as_pointer())
                        factors.append(halves(builder.load(pointer, align=4)))
                    for r in rows:
                        offset = builder.add(builder.mul(row_bytes, _INT64(r)), builder.mul(pair, _INT64(4)))
                        pointer = builder.bitcast(builder.gep(row_block, [offset]), I32.as_pointer())
                        numbers = halves(emit_splat(builder, builder.load(pointer, align=2), words.count))
                        for half, number in enumerate(numbers):
                            for j in columns:
                                held = builder.load(cells[r, j])
                                builder.store(builder.call(fused, [number, factors[j][half], held]), cells[r, j])
        for (r, j), cell in cells.items():
            offset = builder.add(builder.mul(row_step, _INT64(r)), builder.mul(panel_step, _INT64(j)))
            pointer = builder.bitcast(builder.gep(total, [offset]), floats.as_pointer())
            builder.store(builder.load(cell), pointer, align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(
        sums, size, size, size, weights, size, size, x, size, size, size, size, num_rows, panels, outputs
    ), codegen
