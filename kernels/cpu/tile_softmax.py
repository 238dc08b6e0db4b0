"""What becomes of the scores of a chunk: weights in tiles, and how the chunks of a context are put together.

Emitted as LLVM vectors (`octavo.kernels.cpu.vectors`). A row's scores stay in registers from the first comparison to
the rounded weights; the rows of an item are rescaled side by side.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, I32, emit_splat
from octavo.kernels.cpu.tiles import BLOCK, ROWS
from octavo.kernels.cpu.vectors import FUSED, emit_exp2, emit_narrow, emit_reduce, emit_top, filled

KEYS = 128  # of a chunk
TILE_ROWS = 2 * ROWS  # of an item

_SCORES, _INTEGERS = ir.VectorType(F32, BLOCK), ir.VectorType(I32, BLOCK)
_ROWS = ir.VectorType(F32, TILE_ROWS)
_INT64 = ir.IntType(64)


@intrinsic
def top_of(typingctx, scores, at, begin, end):
    """The largest of a row's scores of one chunk from key ``begin`` to ``end``; −inf if there is none.

    Args:
        scores: float32, KEYS from ``at`` on; those outside begin … end mean nothing.
    """

    def codegen(context, builder, signature, args):
        rows = _scores(context, builder, signature.args[0], *args)
        return emit_reduce(builder, "fmax", _in_pairs(rows, lambda x, y: emit_top(builder, x, y)))

    return types.float32(scores, types.intp, types.intp, types.intp), codegen


@intrinsic
def weigh(typingctx, weights, to, scores, at, begin, end, top):
    """Turns a row's scores, in units of log 2, into weights in tiles; keys outside begin … end get none.

    Args:
        weights: As tiles have it; ``to`` is the row's place in the tiles of [32, KEYS].
        scores, at, begin, end: As for `top_of`. top: what it returned.

    Returns:
        The sum of the weights, before they were rounded.
    """

    def codegen(context, builder, signature, args):
        weights = context.make_array(signature.args[0])(context, builder, args[0]).data
        rows, top = _scores(context, builder, signature.args[2], *args[2:6]), args[6]
        nothing = builder.fcmp_ordered("==", top, F32(-math.inf))
        tops = emit_splat(builder, builder.select(nothing, F32(0.0), top), BLOCK)
        powers = [emit_exp2(builder, builder.fsub(row, tops, flags=FUSED)) for row in rows]
        for i, power in enumerate(powers):
            rounded = emit_narrow(builder, signature.args[0].dtype, power)
            pointer = builder.gep(weights, [builder.add(args[1], _INT64(i * ROWS * BLOCK))])
            builder.store(rounded, builder.bitcast(pointer, rounded.type.as_pointer()), align=2)
        return emit_reduce(builder, "fadd", _in_pairs(powers, lambda x, y: builder.fadd(x, y, flags=FUSED)))

    size = types.intp
    return types.float32(weights, size, scores, size, size, size, types.float32), codegen


def _scores(context, builder, scores, array, at, begin, end):
    """Loads a row's scores, with −inf for the keys outside begin … end."""
    first = builder.gep(context.make_array(scores)(context, builder, array).data, [at])
    begin, end = builder.trunc(begin, I32), builder.trunc(end, I32)

    def load(key):
        pointer = builder.bitcast(builder.gep(first, [_INT64(key)]), _SCORES.as_pointer())
        return builder.load(pointer, align=4)

    def seen(key):
        keys = ir.Constant(_INTEGERS, list(range(key, key + BLOCK)))
        after = builder.icmp_signed(">=", keys, emit_splat(builder, begin, BLOCK))
        before = builder.icmp_signed("<", keys, emit_splat(builder, end, BLOCK))
        return builder.select(builder.and_(after, before), load(key), filled(-math.inf, _SCORES))

    all_are = builder.and_(builder.icmp_signed("<=", begin, I32(0)), builder.icmp_signed(">=", end, I32(KEYS)))
    with builder.if_else(all_are) as (whole, cut):
        with whole:
            of_whole, from_whole = [load(key) for key in range(0, KEYS, BLOCK)], builder.block
        with cut:
            of_cut, from_cut = [seen(key) for key in range(0, KEYS, BLOCK)], builder.block
    rows = []
    for values in zip(of_whole, of_cut, strict=True):
        rows.append(builder.phi(_SCORES))
        for value, origin in zip(values, (from_whole, from_cut), strict=True):
            rows[-1].add_incoming(value, origin)
    return rows


def _in_pairs(values, combine):
    while len(values) > 1:
        values = [combine(*values[i : i + 2]) for i in range(0, len(values), 2)]
    return values[0]


@intrinsic
def rescale(typingctx, sums, of_chunk, factors):
    """Adds to the sums of each row what it has in one more chunk.

    Args:
        sums: float32 [2, TILE_ROWS], the largest score of each row so far, and the sum of weights under it.
        of_chunk: The same of one chunk alone; −inf and 0 for a row that saw no key there.
        factors: float32 [2, TILE_ROWS], by which the sums of values so far, and those of the chunk, are to be
            multiplied before they are added; means nothing for a row that saw no key.
    """

    def codegen(context, builder, signature, args):
        def at(i, half):
            data = context.make_array(signature.args[i])(context, builder, args[i]).data
            return builder.bitcast(builder.gep(data, [_INT64(half * TILE_ROWS)]), _ROWS.as_pointer())

        (before, mass_before), (top, mass) = (
            [builder.load(at(i, half), align=4) for half in range(2)] for i in range(2)
        )
        highest = emit_top(builder, before, top)
        nothing = builder.fcmp_ordered("==", highest, filled(-math.inf, _ROWS))
        finite = builder.select(nothing, filled(0.0, _ROWS), highest)
        of_sums, of_part = (emit_exp2(builder, builder.fsub(x, finite, flags=FUSED)) for x in (before, top))
        total = builder.fadd(builder.fmul(mass_before, of_sums), builder.fmul(mass, of_part))
        for i, pair in ((0, (highest, total)), (2, (of_sums, of_part))):
            for half, value in enumerate(pair):
                builder.store(value, at(i, half), align=4)
        return context.get_dummy_value()

    return types.void(sums, of_chunk, factors), codegen
