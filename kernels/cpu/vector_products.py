"""Products of tiles in ordinary vectors, for types that AMX does not multiply and processors without it.

Weights are widened to float32 in registers, so only memory sees 16 bits; the arithmetic is float32's, as fast as the
processor's own. Two bfloat16 lie in a word of 32 bits, and each is the upper half of a float32: a shift or a mask makes
the weights of 16 outputs from 16 words. Processors that multiply such words by pairs (`octavo.kernels.cpu.vectors`) do
twice as much at a time, and nothing has to be widened; rows of activations are in bfloat16, then.

Each sum runs over the inputs in their order, whatever the number of rows, so a row's result does not depend on the
others. Rows are summed six at a time with one panel of weights (12 registers of 8 sums, two of weights, one of the
number that they are multiplied with), or three with both panels (12 of sums, one of weights, three of numbers), which
leaves none to spare: the compiler would keep weights that both inputs of a pair come from, and spill sums, were it not
told that they are others (`_emit_again`).

The memory system forgets what it is asked for when it has some twenty lines on the way. So weights are asked for line
by line while those before them are multiplied.

Weights in int8 meet activations in fixed point, of 16 bits (`octavo.kernels.cpu.int8`), which are multiplied whole:

    product    4 inputs of x, 16 bits  ·  the same 4 of 4 or 8 outputs  →  2 sums of a pair each for every output
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I16, I32, NUMBERS, emit_splat, emit_widen
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.memory import AHEAD, LINE, emit_address, emit_fetch_share
from octavo.kernels.cpu.packing import OUTPUTS, PANELS
from octavo.kernels.cpu.tiles import BLOCK, ROWS
from octavo.kernels.cpu.vectors import IS_WIDE, KNOWS_BFLOAT, emit_fused, emit_pairs

# Rows that are computed side by side, at most: as many sums as there are registers for.
MANY = 8 if IS_WIDE else 6
# Rows up to which both panels of weights are computed at once: with few sums the arithmetic would wait for itself.
MOST_OF_BOTH = 8 if IS_WIDE else 3
# The same of rows in fixed point, and half of that; they are summed with one panel at a time.
_MANY_FIXED, _SOME_FIXED = (8, 4) if IS_WIDE else (2, 2)
_UNROLLED = 2  # pairs of inputs
BOTH = -1  # of two inputs' numbers, instead of 0 or 1
_STEPS = BLOCK // 2 // _UNROLLED  # of a block

_TILE = BLOCK * ROWS  # numbers
# Of 64 inputs each: a sum of so many pairs of products of 16 and 8 bits fits 32 bits.
_BLOCKS_AT_ONCE = 16
_HALF = PANELS * ROWS * OUTPUTS  # of the sums of bytes: first those of high bytes, then those of low ones
_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)
_UPPER_HALF = 0xFFFF0000
# For so many sums of pairs: an instruction, and what processors that have it are said to have.
_PAIR_PRODUCTS = {8: ("llvm.x86.avx2.pmadd.wd", "avx2"), 16: ("llvm.x86.avx512.pmaddw.d.512", "avx512bw")}


@njit(**EXACT)
def configure(config, num_rows):
    """There is nothing to be configured."""


@njit(**EXACT)
def release():
    """There is nothing to be given back."""


def _rows_with(num_rows, panels):
    """A function that sums so many rows with all of a group, some panels at once."""

    @njit(**EXACT)
    def sum_rows(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines):
        for panel in range(0, PANELS, panels):
            _sum_rows(
                sums, to + panel * panel_step, row_step, panel_step,
                weights, first_weight + panel * _TILE, blocks,
                x, at, ahead + panel * blocks * lines * LINE, lines, num_rows, panels,
            )  # fmt: skip

    return sum_rows


_sum_1, _sum_2, _sum_3, _sum_4, _sum_many = (
    _rows_with(n, PANELS if n <= MOST_OF_BOTH else 1) for n in (1, 2, 3, 4, MANY)
)


@njit(**EXACT)
def rows_of_next(left):
    """Rows that are summed together when so many are left; the last one may be nobody's."""
    return MANY if left > 4 else left


@njit(**EXACT)
def passes_of(count, row_tiles):
    """How often so many rows of some tiles go over the weights, or over one of two panels of them."""
    passes = 0
    for half in range(row_tiles):
        left = min(ROWS, count - half * ROWS)
        while left > 0:
            rows = rows_of_next(left)
            passes += 1 if rows <= MOST_OF_BOTH else PANELS
            left -= rows
    return passes


@njit(**EXACT)
def multiply(
    sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles, fetch
):
    """See `octavo.kernels.cpu.products.multiply`."""
    ahead, lines = 0, 0
    # One row of pairs takes so few instructions that the processor reads ahead by itself.
    if fetch == 1 and (count > 1 or x.itemsize > 2):
        passes = passes_of(count, row_tiles)
        block_bytes = PANELS * _TILE * weights.itemsize
        # If there are several passes, the next group comes while this one is multiplied, in equal parts for all.
        ahead = weights.ctypes.data + first_weight * weights.itemsize + (blocks * block_bytes if passes > 1 else AHEAD)
        lines = (block_bytes // LINE + passes - 1) // passes
    multiply_ahead(
        sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles,
        ahead, lines,
    )  # fmt: skip


@njit(**EXACT)
def multiply_ahead(
    sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles,
    ahead, lines,
):  # fmt: skip
    """`multiply`, and asks for what will be read after it.

    Args:
        ahead, lines: In each pass over the weights, for each of their blocks, so many lines are fetched; the address
            of the first of all.
    """
    for half in range(row_tiles):
        row, end = 0, min(ROWS, count - half * ROWS)
        while row < end:
            rows = rows_of_next(end - row)
            at, to = first_x + half * tile + row * BLOCK, first_sum + (half * ROWS + row) * row_step
            if rows == MANY:
                _sum_many(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines)
            elif rows == 4:
                _sum_4(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines)
            elif rows == 3:
                _sum_3(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines)
            elif rows == 2:
                _sum_2(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines)
            else:
                _sum_1(sums, to, row_step, panel_step, weights, first_weight, blocks, x, at, ahead, lines)
            ahead += lines * LINE * blocks * (1 if rows <= MOST_OF_BOTH else PANELS)
            row += rows


@njit(**EXACT)
def multiply_bytes(sums, numbers, first_weight, blocks, fixed, first_x, count, fetch):
    """See `octavo.kernels.cpu.products.multiply_bytes`."""
    end = min(count, ROWS)
    for i in range(2 * _HALF):
        sums[i] = 0
    for begin in range(0, blocks, _BLOCKS_AT_ONCE):
        now = min(_BLOCKS_AT_ONCE, blocks - begin)
        x = first_x + begin * 4 * _TILE
        for panel in range(PANELS):
            weight, row = first_weight + (begin * PANELS + panel) * 2 * _TILE, 0
            while row < end:
                to, at, left = (panel * ROWS + row) * OUTPUTS, x + row * 4 * BLOCK, end - row
                ahead = AHEAD if fetch == 1 and panel == 0 and row == 0 else 0
                # The last rows may be nobody's.
                if left > _SOME_FIXED:
                    _sum_fixed_rows(sums, to, numbers, weight, now, fixed, at, ahead, _MANY_FIXED)
                    row += _MANY_FIXED
                elif left > 2:
                    _sum_fixed_rows(sums, to, numbers, weight, now, fixed, at, ahead, _SOME_FIXED)
                    row += _SOME_FIXED
                elif left > 1:
                    _sum_fixed_rows(sums, to, numbers, weight, now, fixed, at, ahead, 2)
                    row += 2
                else:
                    _sum_fixed_rows(sums, to, numbers, weight, now, fixed, at, ahead, 1)
                    row += 1


@intrinsic(prefer_literal=True)
def _sum_fixed_rows(typingctx, sums, first_sum, numbers, first_weight, blocks, fixed, first_x, ahead, num_rows):
    """Adds the products of some rows with one panel of weights in int8 to the sums.

    Args:
        ahead: Bytes from a block of weights to what is fetched meanwhile; 0 for nothing.
        num_rows: A literal.
    """
    if not isinstance(num_rows, types.IntegerLiteral):
        return None
    lanes = OUTPUTS if IS_WIDE else OUTPUTS // 2  # of a register of sums: two for each output
    rows, columns = range(num_rows.literal_value), range(2 * OUTPUTS // lanes)
    totals, shorts = ir.VectorType(I32, lanes), ir.VectorType(I16, 2 * lanes)

    def codegen(context, builder, signature, args):
        weight, first = (emit_address(context, builder, signature, args, i) for i in (2, 5))
        cells = {
            (r, j): cgutils.alloca_once_value(builder, ir.Constant(totals, [0] * lanes)) for r in rows for j in columns
        }

        def load(pointer, offset, kind):
            return builder.load(builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer()), align=1)

        def load_inputs(block, quad, r):
            offset = builder.add(builder.mul(quad, _INT64(8)), _INT64(4 * r * BLOCK))
            return builder.bitcast(emit_splat(builder, load(block, offset, _INT64), lanes // 2), shorts)

        def load_factors(block, quad, j):
            offset = builder.add(builder.mul(quad, _INT64(LINE)), _INT64(2 * lanes * j))
            return builder.sext(load(block, offset, ir.VectorType(_BYTE, 2 * lanes)), shorts)

        lines = builder.select(builder.icmp_signed(">", args[7], _INT64(0)), _INT64(4 * _TILE // LINE), _INT64(0))
        with cgutils.for_range(builder, args[4]) as loop:
            # A block has as many bytes of weights, in both panels, as of rows: 64 inputs of 32 outputs, or of 16 rows.
            offset = builder.mul(loop.index, _INT64(4 * _TILE))
            weight_block, row_block = builder.gep(weight, [offset]), builder.gep(first, [offset])
            fetched = builder.gep(weight_block, [args[7]])
            with cgutils.for_range(builder, _INT64(ROWS)) as quad:
                emit_fetch_share(builder, fetched, lines, quad.index, ROWS)
                emit_sums(
                    builder, cells, partial(load_inputs, row_block, quad.index),
                    partial(load_factors, weight_block, quad.index), _emit_pair_products,
                )  # fmt: skip
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        for (r, j), cell in cells.items():
            total = builder.load(cell)
            eight, byte = (ir.Constant(totals, [number] * lanes) for number in (8, 255))
            for half, part in enumerate((builder.ashr(total, eight), builder.and_(total, byte))):
                place = builder.add(args[1], _INT64(half * _HALF + r * OUTPUTS + j * lanes // 2))
                pointer = builder.bitcast(builder.gep(data, [place]), ir.VectorType(I32, lanes // 2).as_pointer())
                both = builder.add(_emit_every_other(builder, part, 0), _emit_every_other(builder, part, 1))
                builder.store(builder.add(builder.load(pointer, align=4), both), pointer, align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, size, numbers, size, size, fixed, size, size, num_rows), codegen


def _emit_pair_products(builder, x, y, total):
    """total + the sums of the products of two neighbours each: <2n x i16> times <2n x i16> to <n x i32>."""
    name = _pair_products(total.type.count)
    if name is not None:
        function_type = ir.FunctionType(total.type, [x.type, y.type])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.add(total, builder.call(function, [x, y]))
    wide = ir.VectorType(I32, x.type.count)
    products = builder.mul(builder.sext(x, wide), builder.sext(y, wide))
    return builder.add(total, builder.add(*(_emit_every_other(builder, products, first) for first in range(2))))


@cache
def _pair_products(count: int) -> str | None:
    """The instruction for so many sums of them, if the processor has one."""
    name, feature = _PAIR_PRODUCTS[count]
    return name if binding.get_host_cpu_features().get(feature) else None


def _emit_every_other(builder, x, first):
    order = ir.Constant(ir.VectorType(I32, x.type.count // 2), list(range(first, x.type.count, 2)))
    return builder.shuffle_vector(x, x, order)


@intrinsic(prefer_literal=True)
def _sum_rows(
    typingctx, sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, ahead, lines,
    num_rows, panels,
):  # fmt: skip
    """Sums of some rows with some panels of weights.

    Args:
        ahead, lines: For each block of weights, so many lines are fetched; the address of the first of all.
        num_rows, panels: Literals.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (num_rows, panels)):
        return None
    rows = range(num_rows.literal_value)
    lanes = OUTPUTS if IS_WIDE else OUTPUTS // 2  # of a register
    columns = range(panels.literal_value * OUTPUTS // lanes)
    floats = ir.VectorType(F32, lanes)
    at_once = takes_pairs(weights.dtype) and x.dtype == weights.dtype
    halves, emit_product = ((BOTH,), emit_pairs) if at_once else ((0, 1), emit_fused)
    weight_bytes, x_bytes = (array.dtype.bitwidth // 8 for array in (weights, x))

    def codegen(context, builder, signature, args):
        total, weight, first = (emit_address(context, builder, signature, args, i) for i in (0, 4, 7))
        again = _emit_again(builder, weight)
        row_step, panel_step = (builder.mul(args[i], _INT64(4)) for i in (2, 3))
        zero = ir.Constant(floats, [0.0] * floats.count)
        cells = {(r, j): cgutils.alloca_once_value(builder, zero) for r in rows for j in columns}

        def load_weights(block, pair, half, j):
            panel, output = divmod(j * lanes, OUTPUTS)
            offset = builder.mul(pair, _INT64(2 * OUTPUTS * weight_bytes))
            pointer = builder.gep(block, [builder.add(offset, _INT64(panel * weight_bytes * _TILE))])
            return _emit_weights(builder, weights.dtype, pointer, half, output, floats)

        def load_number(block, pair, half, r):
            offset = builder.add(_INT64(r * BLOCK * x_bytes), builder.mul(pair, _INT64(2 * x_bytes)))
            return emit_splat(builder, _emit_number(builder, x.dtype, builder.gep(block, [offset]), half), lanes)

        with cgutils.for_range(builder, args[6]) as loop:
            offset = builder.mul(loop.index, _INT64(PANELS * weight_bytes * _TILE))
            blocks_of_halves = {half: builder.gep(again if half == 1 else weight, [offset]) for half in halves}
            row_block = builder.gep(first, [builder.mul(loop.index, _INT64(_TILE * x_bytes))])
            of_block = builder.mul(args[10], _INT64(LINE))
            ahead = builder.inttoptr(builder.add(args[9], builder.mul(loop.index, of_block)), _BYTE.as_pointer())
            with cgutils.for_range(builder, _INT64(_STEPS)) as step:
                emit_fetch_share(builder, ahead, args[10], step.index, _STEPS)
                for i, half in product(range(_UNROLLED), halves):
                    pair = builder.add(builder.mul(step.index, _INT64(_UNROLLED)), _INT64(i))
                    emit_sums(
                        builder, cells, partial(load_number, row_block, pair, half),
                        partial(load_weights, blocks_of_halves[half], pair, half), emit_product,
                    )  # fmt: skip
        for (r, j), cell in cells.items():
            panel, output = divmod(j * lanes, OUTPUTS)
            offset = builder.add(builder.mul(row_step, _INT64(r)), builder.mul(panel_step, _INT64(panel)))
            pointer = builder.gep(total, [builder.add(offset, _INT64(4 * output))])
            builder.store(builder.load(cell), builder.bitcast(pointer, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, size, size, size, weights, size, size, x, size, size, size, num_rows, panels), codegen


def takes_pairs(number) -> bool:
    """Whether two numbers of a stored type that lie in one word are multiplied with two others, and added, at once."""
    return IS_WIDE and KNOWS_BFLOAT and number == types.uint16


def emit_sums(builder, cells, load_number, load_factors, emit_product):
    """Adds ``number · factors`` to the sums of each row in each column of registers.

    Args:
        cells: {(row, column): where a vector of sums is}.
        load_number: ``load_number(row)``, a vector of one number, or of one pair.
        load_factors: ``load_factors(column)``, a vector of as many.
        emit_product: `octavo.kernels.cpu.vectors.emit_fused`, or `emit_pairs`.
    """
    rows, columns = ({at[i]: None for at in cells} for i in range(2))
    # What is less stays in registers, and the other comes one after the other.
    if len(rows) < len(columns):
        numbers = {row: load_number(row) for row in rows}
        for column in columns:
            factors = load_factors(column)
            for row in rows:
                cell = cells[row, column]
                builder.store(emit_product(builder, numbers[row], factors, builder.load(cell)), cell)
    else:
        factors = {column: load_factors(column) for column in columns}
        for row in rows:
            number = load_number(row)
            for column in columns:
                cell = cells[row, column]
                builder.store(emit_product(builder, number, factors[column], builder.load(cell)), cell)


def _emit_weights(builder, kind, pointer, half, output, floats):
    """One of two inputs' numbers for some outputs, from one of 16 on, as float32, or words that hold both; see
    `octavo.kernels.cpu.packing`."""
    if kind == types.uint16:
        pointer = builder.gep(pointer, [_INT64(4 * output)])
        words = builder.load(builder.bitcast(pointer, ir.VectorType(I32, floats.count).as_pointer()), align=4)
        return words if half == BOTH else builder.bitcast(_emit_half(builder, words, half), floats)
    pointer = builder.gep(pointer, [_INT64((half * OUTPUTS + output) * kind.bitwidth // 8)])
    stored = ir.VectorType(NUMBERS[kind], floats.count)
    return emit_widen(builder, kind, builder.load(builder.bitcast(pointer, stored.as_pointer()), align=2), floats.count)


def _emit_number(builder, kind, pointer, half):
    """One of two numbers of a row, as float32, or a word that holds both."""
    if kind == types.uint16:  # one load for both
        word = builder.load(builder.bitcast(pointer, I32.as_pointer()), align=2)
        return word if half == BOTH else builder.bitcast(_emit_half(builder, word, half), F32)
    pointer = builder.gep(pointer, [_INT64(half * kind.bitwidth // 8)])
    return emit_widen(builder, kind, builder.load(builder.bitcast(pointer, NUMBERS[kind].as_pointer()), align=2))


def _emit_half(builder, words, half):
    """The bits of float32 that are one of the two numbers in bfloat16 of each word."""
    number = _UPPER_HALF if half else 16
    kind = words.type
    operand = ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)
    return builder.and_(words, operand) if half else builder.shl(words, operand)


def _emit_again(builder, pointer):
    """The same pointer, which the compiler takes for another: it keeps nothing in registers to load it only once."""
    function_type = ir.FunctionType(pointer.type, [pointer.type])
    return builder.asm(function_type, "", "=r,0", [pointer], side_effect=False)
