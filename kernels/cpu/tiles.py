"""Activations in tiles, and what the stages of a layer do with them row by row.

Whatever is multiplied with weights is kept the way the tile product reads it, so that no product has to rearrange its
input. Tiles of 16 rows lie one after the other, each cut into blocks of 32 numbers:

    tile t     block 0: [ row 16t: numbers 0 … 31 ][ row 16t + 1: 0 … 31 ] … 16 of them in a row
               block 1: [ row 16t: 32 … 63 ] …

Rows are computed in float32. Where they enter a tile they get the type that products want, and are rounded to bfloat16
if that is it (`octavo.kernels.cpu.products.type_of_rows`).
"""

from __future__ import annotations

from itertools import product

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import I32, NUMBERS, emit_splat, emit_widen, narrow, widen
from octavo.kernels.cpu.elementary import EXACT, FAST
from octavo.kernels.cpu.memory import LINE, emit_address, emit_fetch
from octavo.kernels.cpu.vectors import FUSED, IS_WIDE, emit_narrow, emit_reduce, emit_sigmoid, filled

# Of a tile of activations.
ROWS, BLOCK = 16, 32

_ONE = np.float32(1.0)
_GELU_SCALE, _GELU_CUBE = (2.0 / np.pi) ** 0.5, 0.044715
_HERE = ir.IntType(64)(0)
_RUN = ir.VectorType(ir.FloatType(), BLOCK)
_row_wise = njit(**FAST)


@njit(**EXACT)
def tiled_size(num_rows, width):
    """Numbers that the tiles of so many rows take; products read pairs of tiles."""
    return (num_rows + 2 * ROWS - 1) // (2 * ROWS) * (2 * ROWS) * width


@njit(**EXACT, inline="always")
def place(row, column, width):
    """Where a row's number lies among the tiles; the rest of its block follows."""
    return (row // ROWS * (width // BLOCK) + column // BLOCK) * (ROWS * BLOCK) + row % ROWS * BLOCK + column % BLOCK


@njit(**EXACT)
def tile_rows(tiles, x):
    """Rows [num_rows, width], as stored, to tiles."""
    for row in range(x.shape[0]):
        for column in range(0, x.shape[1], BLOCK):
            to = place(row, column, x.shape[1])
            for i in range(BLOCK):
                tiles[to + i] = narrow(widen(x[row, column + i]), tiles[0])


@_row_wise
def norm_row(tiles, row, x, weight, eps):
    """Root-mean-square normalisation of one row (arXiv:1910.07467) into its tile.

    Args:
        tiles: uint16 or float32, flat. row: which of their rows.
        x, weight: float32 [width].
    """
    width = x.shape[0]
    _put_scaled(tiles, place(row, 0, width), x, weight, _ONE / np.sqrt(sum_of_squares(x) / np.float32(width) + eps))


@_row_wise
def add_normed(x, out, weight, eps, normed):
    """Adds a normalised row to the residual stream."""
    _scale_row(normed, out, weight, eps)
    for i in range(x.shape[0]):
        x[i] += normed[i]


@_row_wise
def norm_head(head, weight, eps):
    """Normalises one head in place."""
    _scale_row(head, head, weight, eps)


@_row_wise
def _scale_row(normed, x, weight, eps):
    squares = np.float32(0.0)
    for i in range(x.shape[0]):
        squares += x[i] * x[i]
    scale = _ONE / np.sqrt(squares / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        normed[i] = x[i] * scale * weight[i]


@intrinsic
def sum_of_squares(typingctx, x):
    """Of a contiguous float32 row; what is left behind its last block of 32 numbers does not count."""

    def codegen(context, builder, signature, args):
        total = cgutils.alloca_once_value(builder, filled(0.0, _RUN))
        for (value,), _ in _blocks(context, builder, signature.args, args):
            square = builder.fmul(value, value, flags=FUSED)
            builder.store(builder.fadd(square, builder.load(total), flags=FUSED), total)
        return emit_reduce(builder, "fadd", builder.load(total))

    return types.float32(x), codegen


@intrinsic
def _put_scaled(typingctx, tiles, at, x, weight, scale):
    """A row x · scale · weight to its tiles, which begin ``at``; x and weight are contiguous, float32."""

    def codegen(context, builder, signature, args):
        tiles = context.make_array(signature.args[0])(context, builder, args[0]).data
        scales = emit_splat(builder, args[4], BLOCK)
        for (value, factor), block in _blocks(context, builder, signature.args[2:4], args[2:4]):
            scaled = builder.fmul(builder.fmul(value, scales, flags=FUSED), factor, flags=FUSED)
            rounded = emit_narrow(builder, signature.args[0].dtype, scaled)
            to = builder.gep(tiles, [builder.add(args[1], builder.mul(block, block.type(ROWS * BLOCK)))])
            builder.store(rounded, builder.bitcast(to, rounded.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(tiles, types.intp, x, weight, types.float32), codegen


def _blocks(context, builder, array_types, arrays):
    """Emits a loop over the blocks of rows of equal length, and yields the vectors of a block, and which it is."""
    rows = [context.make_array(kind)(context, builder, array) for kind, array in zip(array_types, arrays, strict=True)]
    (length,) = cgutils.unpack_tuple(builder, rows[0].shape)
    with cgutils.for_range(builder, builder.udiv(length, length.type(BLOCK))) as loop:
        begin = builder.mul(loop.index, length.type(BLOCK))
        pointers = [builder.bitcast(builder.gep(row.data, [begin]), _RUN.as_pointer()) for row in rows]
        yield [builder.load(pointer, align=4) for pointer in pointers], loop.index


@_row_wise
def rotate_head(head, angles):
    """Rotary positions (arXiv:2104.09864) in place; pair i is (x[i], x[i + head_dim / 2]).

    Args:
        head: float32 [head_dim]. angles: float32 [head_dim], cosines and sines of each pair.
    """
    half = head.shape[0] // 2
    for i in range(half):
        a, b = head[i], head[i + half]
        head[i] = a * angles[i] - b * angles[i + half]
        head[i + half] = b * angles[i] + a * angles[i + half]


ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


def _emit_silu(builder, x):
    """x · sigmoid(x)."""
    return builder.fmul(x, emit_sigmoid(builder, x), flags=FUSED)


def _emit_gelu_tanh(builder, x):
    """The tanh form of GELU (arXiv:1606.08415), x / 2 · (1 + tanh z), which is x · sigmoid(2 z)."""
    square = builder.fmul(x, x, flags=FUSED)
    cubic = builder.fadd(
        builder.fmul(square, filled(_GELU_CUBE, x.type), flags=FUSED), filled(1.0, x.type), flags=FUSED
    )
    z = builder.fmul(builder.fmul(x, cubic, flags=FUSED), filled(2 * _GELU_SCALE, x.type), flags=FUSED)
    return builder.fmul(x, emit_sigmoid(builder, z), flags=FUSED)


_EMITTED_ACTIVATIONS = _emit_silu, _emit_gelu_tanh  # in the order of `ACTIVATIONS`


@intrinsic(prefer_literal=True)
def put_run(typingctx, target, at, source, begin, count):
    """target[at: at + count] = source[begin: …].

    There are instructions that round many numbers at once, which no compiler finds behind `bits.narrow`.

    Args:
        target: As stored, contiguous. source: the same, or float32 that is rounded.
        count: A literal.
    """

    def put(builder, _, load):
        value = load()
        return emit_narrow(builder, target.dtype, value) if target.dtype != source.dtype else value

    return _on_runs(target, source, count, put)


@intrinsic(prefer_literal=True)
def put_scaled_run(typingctx, target, at, source, begin, count, scale):
    """`put_run` of what is stored in the same type as it is, or of int8 times a scale.

    Args:
        scale: float32; means nothing beside other types.
    """

    def put(builder, _, load, scale):
        value = load()
        if source.dtype == target.dtype:
            return value
        lanes = value.type.count
        numbers = emit_widen(builder, source.dtype, value, lanes)
        product = builder.fmul(numbers, emit_splat(builder, scale, lanes))
        return emit_narrow(builder, target.dtype, product)

    return _on_runs(target, source, count, put, types.float32)


@intrinsic(prefer_literal=True)
def put_gated_run(typingctx, target, at, source, begin, count, ups, activation):
    """`put_run` of activation(gate) · up, float32.

    Args:
        ups: How many numbers after its gate each up lies.
        activation: A literal; which of `ACTIVATIONS`.
    """
    if not isinstance(activation, types.IntegerLiteral):
        return None
    emit_activation = _EMITTED_ACTIVATIONS[activation.literal_value]

    def put(builder, _, load, ups, activation):
        gated = builder.fmul(emit_activation(builder, load()), load(ups), flags=FUSED)
        return emit_narrow(builder, target.dtype, gated)

    return _on_runs(target, source, count, put, types.intp, activation)


@intrinsic(prefer_literal=True)
def add_run(typingctx, target, at, source, begin, count):
    """target[at: at + count] += source[begin: …], both float32."""

    def add(builder, pointer, load):
        value = load()
        held = builder.bitcast(pointer, value.type.as_pointer())
        return builder.fadd(builder.load(held, align=4), value)

    return _on_runs(target, source, count, add)


@intrinsic(prefer_literal=True)
def blend_run(typingctx, target, at, source, begin, count, of_target, of_source):
    """target[at: at + count] = of_target · target[…] + of_source · source[begin: …], all float32, rounded each time."""

    def blend(builder, pointer, load, of_target, of_source):
        value = load()
        held = builder.load(builder.bitcast(pointer, value.type.as_pointer()), align=4)
        products = (
            builder.fmul(x, emit_splat(builder, factor, value.type.count))
            for x, factor in ((held, of_target), (value, of_source))
        )
        return builder.fadd(*products)

    return _on_runs(target, source, count, blend, types.float32, types.float32)


@intrinsic
def fetch(typingctx, array, at, num_bytes):
    """Asks for so many bytes of an array from number ``at`` on, beyond its end if they are more; never faults."""

    def codegen(context, builder, signature, args):
        begin, index = emit_address(context, builder, signature, args, 0), args[2].type
        lines = builder.udiv(builder.add(args[2], index(LINE - 1)), index(LINE))
        with cgutils.for_range(builder, lines) as loop:
            emit_fetch(builder, builder.gep(begin, [builder.mul(loop.index, index(LINE))]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def rows_as_weights(typingctx, target, to, source, at, row_step):
    """16 numbers of each of 16 rows as half a tile of weights: a row is an input (`octavo.kernels.cpu.packing`).

    Args:
        target, source: As stored; ``to`` says where the first row goes, ``at`` where its first number is.
        row_step: Numbers from a row to the next.
    """
    number = NUMBERS[target.dtype]

    def codegen(context, builder, signature, args):
        target, source = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        )
        narrow, wide = ir.VectorType(number, ROWS), ir.VectorType(I32, ROWS)
        index = ir.IntType(64)

        def numbers(row):
            at = builder.mul(args[4], index(row))
            pointer = builder.bitcast(builder.gep(source, [at]), narrow.as_pointer())
            return builder.load(pointer, align=2)

        def put(row, value):
            pointer = builder.bitcast(builder.gep(target, [index(row * ROWS)]), value.type.as_pointer())
            builder.store(value, pointer, align=2)

        if signature.args[0].dtype != types.uint16:
            for row, value in enumerate([numbers(row) for row in range(ROWS)]):
                put(row, value)
            return context.get_dummy_value()
        words = [builder.zext(numbers(row), wide) for row in range(ROWS)]
        high = ir.Constant(wide, [16] * ROWS)
        pairs = [builder.or_(words[row], builder.shl(words[row + 1], high)) for row in range(0, ROWS, 2)]
        for i, pair in enumerate(pairs):
            put(2 * i, pair)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def columns_as_weights(typingctx, target, to, source, at, row_step):
    """32 numbers of each of 16 rows as a tile of weights: a row is an output (`octavo.kernels.cpu.packing`).

    Args:
        target, source: As stored; ``to`` says where the tile begins, ``at`` where the first row's first number is.
        row_step: Numbers from a row to the next.
    """
    number = NUMBERS[target.dtype]
    number_bytes = target.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        side = ROWS if IS_WIDE else ROWS // 2  # of a square of words that fits the registers
        index, words = ir.IntType(64), ir.VectorType(I32, side)
        target, source = (emit_address(context, builder, signature, args, i) for i in (0, 2))
        row_bytes = builder.mul(args[4], index(number_bytes))

        def load(row, word):
            offset = builder.add(builder.mul(row_bytes, index(row)), index(4 * word))
            return builder.load(builder.bitcast(builder.gep(source, [offset]), words.as_pointer()), align=2)

        def store(value, offset):
            builder.store(
                value, builder.bitcast(builder.gep(target, [index(offset)]), value.type.as_pointer()), align=2
            )

        for row, word in product(range(0, ROWS, side), range(0, BLOCK * number_bytes // 4, side)):
            columns = _emit_transposed(builder, [load(row + i, word) for i in range(side)])
            for i, column in enumerate(columns):
                begin = 4 * ROWS * (word + i)  # of both inputs that a word holds, or of one
                if signature.args[0].dtype == types.int16:  # they lie apart
                    for half, numbers in enumerate(_emit_halves(builder, column, number)):
                        store(numbers, begin + 2 * (half * ROWS + row))
                else:
                    store(column, begin + 4 * row)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


def _emit_halves(builder, words, half):
    """The lower halves of words, and the upper ones."""
    halves = builder.bitcast(words, ir.VectorType(half, 2 * words.type.count))
    for first in range(2):
        order = ir.Constant(words.type, list(range(first, 2 * words.type.count, 2)))
        yield builder.shuffle_vector(halves, halves, order)


def _emit_transposed(builder, rows):
    """As many vectors of as many words, rows made columns."""
    rows, lanes = list(rows), range(len(rows))
    step = 1
    while step < len(rows):  # swaps the off-diagonal quarters of blocks of 2, 4, 8 …
        upper = [lane if not lane & step else len(rows) + (lane ^ step) for lane in lanes]
        lower = [lane ^ step if not lane & step else len(rows) + lane for lane in lanes]
        masks = [ir.Constant(ir.VectorType(I32, len(rows)), order) for order in (upper, lower)]
        for r in lanes:
            if not r & step:
                pair = rows[r], rows[r + step]
                rows[r], rows[r + step] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        step *= 2
    return rows


def _on_runs(target, source, count, result, *more):
    """Signature and code of an intrinsic that stores ``result(builder, target pointer, load, …)``.

    ``load()`` emits the loading of the run, and ``load(n)`` of the one that begins n numbers after it.

    Args:
        more: Types of what the intrinsic is given beyond a run, and ``result`` is as well.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, args):
        to, values = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        wide = ir.VectorType(values.type.pointee, count.literal_value)
        begin, place = builder.gep(values, [args[3]]), builder.gep(to, [args[1]])

        def load(ahead=_HERE):
            pointer = builder.bitcast(builder.gep(begin, [ahead]), wide.as_pointer())
            return builder.load(pointer, align=source.dtype.bitwidth // 8)

        value = result(builder, place, load, *args[5:])
        builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=target.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, count, *more), codegen


@intrinsic
def array_at(typingctx, address, shape, like):
    """A contiguous array of ``like``'s element type that begins at an address; nobody but its owner keeps it alive.

    Args:
        address: int64.
        shape: A tuple of int64. like: An array; only its element type matters.
    """
    array_type = types.Array(like.dtype, shape.count, "C")

    def codegen(context, builder, signature, args):
        from numba.np.arrayobj import populate_array

        array = context.make_array(array_type)(context, builder)
        item_bytes = context.get_abi_sizeof(context.get_data_type(like.dtype))
        extents = cgutils.unpack_tuple(builder, args[1])
        strides, stride = [], context.get_constant(types.intp, item_bytes)
        for extent in reversed(extents):
            strides.insert(0, stride)
            stride = builder.mul(stride, extent)
        populate_array(
            array, data=builder.inttoptr(args[0], array.data.type), shape=extents, strides=strides,
            itemsize=context.get_constant(types.intp, item_bytes), meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return array_type(types.int64, shape, like), codegen
