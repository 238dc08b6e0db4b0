"""What decodes do with a chunk where products are computed in vectors; see `octavo.kernels.cpu.tile_decodes`.

Rows are few, and memory is what takes time: whatever is read next is asked for line by line while something is
computed, V while K is scored, and K of the next item while V is summed.

    scores   K becomes weights, 32 keys at a time: its numbers have to lie beside those of other keys
    values   V is summed as it lies: a row of V is an input of all outputs, or two rows of it that are woven together
             where pairs are multiplied

Each sum runs over its inputs in their order, as in `octavo.kernels.cpu.vector_products`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I32, NUMBERS, emit_splat, emit_widen
from octavo.kernels.cpu.elementary import EXACT, FAST
from octavo.kernels.cpu.kv_rows import numbers_of
from octavo.kernels.cpu.memory import LINE, emit_address, emit_fetch_share
from octavo.kernels.cpu.packing import GROUP, OUTPUTS, PANELS, groups_of
from octavo.kernels.cpu.tile_layout import TILES, expect_tiles, find_tiles, padded_width, rows_at
from octavo.kernels.cpu.tile_softmax import KEYS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, array_at, columns_as_weights, fetch
from octavo.kernels.cpu.vector_products import (
    MANY,
    MOST_OF_BOTH,
    emit_sums,
    multiply_ahead,
    passes_of,
    rows_of_next,
    takes_pairs,
)
from octavo.kernels.cpu.vectors import IS_WIDE, emit_fused, emit_pairs

_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)
_BYTES = np.empty(0, np.uint8)  # for its type
_compiled, _exact = njit(**FAST), njit(**EXACT)


@_compiled
def score(scores, scratch, kv, table, head, start, num_keys, q, count):
    """Scores of some rows: Q Kᵀ.

    Args:
        scores: float32 [32 · KEYS], a row after the other.
        scratch: See `octavo.kernels.cpu.tile_decodes`.
        q: From `octavo.kernels.cpu.chunks.tile_query`.
    """
    width, row_tiles = padded_width(numbers_of(kv)), (count + ROWS - 1) // ROWS
    blocks, tile_bytes = width // BLOCK, ROWS * kv.shape[4] * kv.itemsize
    packed, _, rows, places = scratch
    keys, values = places[0], places[1]
    find_tiles(keys, rows, kv, 0, table, head, start, num_keys, width)
    expect_tiles(values, kv, 1, table, head, start, num_keys)
    share = tile_bytes // (2 * blocks)
    lines = tile_bytes // LINE // (blocks * passes_of(count, row_tiles))
    for group in range(groups_of(num_keys)):
        # One tile of V comes while K is laid out, another while it is multiplied.
        of_values = array_at(values[2 * group], (tile_bytes,), _BYTES)
        for tile in range(2):
            source = rows_at(keys[2 * group + tile], width, packed)
            for block in range(blocks):
                fetch(of_values, (tile * blocks + block) * share, share)
                columns_as_weights(packed, (2 * block + tile) * (ROWS * BLOCK), source, block * BLOCK, width)
        multiply_ahead(
            scores, group * GROUP, KEYS, OUTPUTS, packed, 0, blocks, q, 0, ROWS * width, count, row_tiles,
            values[2 * group + 1], lines,
        )  # fmt: skip


@_compiled
def sum_values(part, scratch, kv, table, head, start, num_keys, weights, count, has_next):
    """Sums of values of some rows: P V.

    Args:
        part: float32 [32 · padded width], a row after the other.
        scratch: As for `score`. weights: from `octavo.kernels.cpu.chunks.weigh_rows`.
        has_next: Whether the last places are to be asked for meanwhile.
    """
    width, row_tiles = padded_width(numbers_of(kv)), (count + ROWS - 1) // ROWS
    _, _, rows, places = scratch
    values, ahead = places[0], places[2]
    find_tiles(values, rows, kv, 1, table, head, start, num_keys, width)
    tiles, tile_bytes = 2 * groups_of(num_keys), ROWS * kv.shape[4] * kv.itemsize
    passes = passes_of(count, row_tiles) * (width // GROUP)
    lines = (tile_bytes // LINE + passes - 1) // passes if has_next else 0
    skipped = 0
    for half in range(row_tiles):
        row, end = 0, min(ROWS, count - half * ROWS)
        while row < end:
            now = rows_of_next(end - row)
            to, at = (half * ROWS + row) * width, half * (ROWS * KEYS) + row * BLOCK
            if now == MANY:
                _sum_many(part, to, width, weights, at, values, tiles, rows, ahead, skipped, lines)
            elif now == 4:
                _sum_4(part, to, width, weights, at, values, tiles, rows, ahead, skipped, lines)
            elif now == 3:
                _sum_3(part, to, width, weights, at, values, tiles, rows, ahead, skipped, lines)
            elif now == 2:
                _sum_2(part, to, width, weights, at, values, tiles, rows, ahead, skipped, lines)
            else:
                _sum_1(part, to, width, weights, at, values, tiles, rows, ahead, skipped, lines)
            skipped += lines * (width // GROUP) * (1 if now <= MOST_OF_BOTH else PANELS)
            row += now
    if has_next:
        for tile in range(tiles, TILES):
            fetch(array_at(ahead[tile], (tile_bytes,), _BYTES), 0, tile_bytes)


def _rows_with(num_rows):
    """A function that sums so many rows in all columns."""
    columns = GROUP if num_rows <= MOST_OF_BOTH else OUTPUTS

    @_exact
    def sum_rows(part, to, width, weights, at, values, tiles, like, ahead, skipped, lines):
        for column in range(0, width, columns):
            _sum_columns(
                part, to + column, width, weights, at, values, tiles, like, column, ahead, skipped, lines,
                num_rows, columns,
            )  # fmt: skip
            skipped += lines

    return sum_rows


_sum_1, _sum_2, _sum_3, _sum_4, _sum_many = (_rows_with(n) for n in (1, 2, 3, 4, MANY))


@intrinsic(prefer_literal=True)
def _sum_columns(
    typingctx, part, to, width, weights, at, values, tiles, like, column, ahead, skipped, lines, num_rows, num_columns
):  # fmt: skip
    """Sums of some rows in some columns.

    Args:
        at: Of the first row in ``weights``.
        values: int64 [TILES], addresses of so many tiles of 16 rows of ``width`` numbers of ``like``'s type.
        ahead: int64 [TILES]; so many lines of each that follow the skipped ones are fetched.
        num_rows, num_columns: Literals.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (num_rows, num_columns)):
        return None
    lanes = OUTPUTS if IS_WIDE else OUTPUTS // 2  # of a register
    rows, columns = range(num_rows.literal_value), range(num_columns.literal_value // lanes)
    floats, number = ir.VectorType(F32, lanes), like.dtype
    stored, number_bytes = ir.VectorType(NUMBERS[number], lanes), number.bitwidth // 8
    weight_bytes = weights.dtype.bitwidth // 8
    at_once = takes_pairs(number) and weights.dtype == number
    keys, emit_product = (2, emit_pairs) if at_once else (1, emit_fused)

    def codegen(context, builder, signature, args):
        total, weight = (emit_address(context, builder, signature, args, i) for i in (0, 3))
        tiles_of_values, tiles_ahead = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (5, 9)
        )
        row_bytes = builder.mul(args[2], _INT64(number_bytes))
        cells = {
            (r, j): cgutils.alloca_once_value(builder, ir.Constant(floats, [0.0] * lanes))
            for r in rows
            for j in columns
        }

        def address(places, tile, offset):
            base = builder.load(builder.gep(places, [tile]))
            return builder.inttoptr(builder.add(base, offset), _BYTE.as_pointer())

        def load_number(key, r):
            pointer = builder.gep(key, [_INT64(weight_bytes * r * BLOCK)])
            kind = I32 if at_once else F32
            return emit_splat(builder, builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4), lanes)

        def load_values(row, j):
            pointer = builder.gep(row, [_INT64(j * lanes * number_bytes)])
            numbers = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=number_bytes)
            if not at_once:
                return emit_widen(builder, number, numbers, lanes)
            pointer = builder.gep(pointer, [row_bytes])
            others = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=number_bytes)
            order = [i for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for i in pair]
            pairs = builder.shuffle_vector(numbers, others, ir.Constant(ir.VectorType(I32, 2 * lanes), order))
            return builder.bitcast(pairs, ir.VectorType(I32, lanes))

        with cgutils.for_range(builder, args[6]) as loop:
            begin = address(tiles_of_values, loop.index, builder.mul(args[8], _INT64(number_bytes)))
            fetched = address(tiles_ahead, loop.index, builder.mul(args[10], _INT64(LINE)))
            # Tiles of weights are as wide as two tiles of values are long.
            pair, odd = builder.lshr(loop.index, _INT64(1)), builder.and_(loop.index, _INT64(1))
            offset = builder.add(builder.mul(pair, _INT64(ROWS * BLOCK)), builder.mul(odd, _INT64(ROWS)))
            of_keys = builder.gep(weight, [builder.mul(offset, _INT64(weight_bytes))])
            with cgutils.for_range(builder, _INT64(ROWS // keys)) as step:
                emit_fetch_share(builder, fetched, args[11], step.index, ROWS // keys)
                key = builder.mul(step.index, _INT64(keys))
                of_key = builder.gep(of_keys, [builder.mul(key, _INT64(weight_bytes))])
                row = builder.gep(begin, [builder.mul(key, row_bytes)])
                emit_sums(builder, cells, partial(load_number, of_key), partial(load_values, row), emit_product)
        for (r, j), cell in cells.items():
            offset = builder.add(builder.mul(args[2], _INT64(4 * r)), _INT64(4 * j * lanes))
            pointer = builder.bitcast(builder.gep(total, [offset]), floats.as_pointer())
            builder.store(builder.load(cell), pointer, align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(
        part, size, size, weights, size, values, size, like, size, ahead, size, size, num_rows, num_columns
    ), codegen
