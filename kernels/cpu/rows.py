"""The two inner loops of decode attention, over a run of K or V rows that lie at one stride in a block.

They are emitted as LLVM vector code rather than left to the auto-vectoriser, which neither keeps the accumulators
of a whole group of query heads in registers nor converts a row once for all of them. With head_dim 64 and three
query heads the loop over V holds:

    V row        [ v0 ][ v1 ][ v2 ][ v3 ]            16 lanes each, converted once
    head 0       [ a0 ][ a1 ][ a2 ][ a3 ]  += w0 ·
    head 1       [ a4 ][ a5 ][ a6 ][ a7 ]  += w1 ·   12 accumulators, in registers for the whole run
    head 2       [ a8 ][ a9 ][ aA ][ aB ]  += w2 ·
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.bits import F32, emit_splat, emit_widen
from octavo.kernels.cpu.kv_rows import scale_pointer
from octavo.kernels.cpu.memory import emit_fetch

# 16 float32 fill an AVX-512 register; LLVM splits them for narrower machines.
MAX_LANES = 16
# Accumulators that one loop over V keeps, of 32 registers: the row and a weight need some too.
MAX_ACCUMULATORS = 24
# Sums may be reordered and fused; NaN and infinity keep their meaning.
FLAGS = ("reassoc", "contract", "nsz")


@intrinsic(prefer_literal=True)
def score_run(typingctx, scores, column, query, kv, at, stride, run, ahead, group, head_dim):
    """scores[g, column + r] = query[g] · K[r], for r < run.

    Args:
        scores: float32 [group, columns].
        column: The first row's column in it.
        query: float32 [group, head_dim].
        kv: The cache, as stored; only its address matters here.
        at: Where the first row begins, in elements from there.
        stride: From one row's beginning to the next.
        run: Number of rows.
        ahead: Where the rows to be read after these begin; they are fetched meanwhile.
        group: Query heads; a literal.
        head_dim: Elements of a row; a literal.
    """

    def codegen(context, builder, signature, args):
        score, q, keys = (_Memory.of(context, builder, signature, args, i) for i in (0, 2, 3))
        starts, lanes = _lanes(head_dim.literal_value)
        heads = range(group.literal_value)
        columns = cgutils.unpack_tuple(builder, score.array.shape)[1]
        queries = [[q.vector(_index(g * head_dim.literal_value + d), lanes) for d in starts] for g in heads]
        with cgutils.for_range(builder, args[6]) as loop:
            step = builder.mul(loop.index, args[5])
            keys.prefetch(builder.add(args[7], step), head_dim.literal_value)
            begin = builder.add(args[4], step)
            key = [keys.vector(builder.add(begin, _index(d)), lanes) for d in starts]
            for g in heads:
                dot = _sum([builder.fmul(a, b, flags=FLAGS) for a, b in zip(queries[g], key, strict=True)], builder)
                to = builder.add(builder.mul(columns, _index(g)), builder.add(args[1], loop.index))
                score.store(to, keys.scaled(_sum_lanes(builder, dot, lanes), begin, head_dim.literal_value))
        return context.get_dummy_value()

    return _signature(scores, column, query, kv, at, stride, run, ahead, group, head_dim), codegen


@intrinsic(prefer_literal=True)
def weigh_run(typingctx, acc, weights, column, kv, at, stride, run, ahead, group, head_dim):
    """acc[g] += Σ_r weights[g, column + r] · V[r], over r < run.

    Args:
        acc: float32 [group, head_dim].
        weights: float32 [group, columns].
        column: The first row's column in it.
        kv: The cache, as stored; only its address matters here.
        at: Where the first row begins, in elements from there.
        stride: From one row's beginning to the next.
        run: Number of rows.
        ahead: Where the rows to be read after these begin; they are fetched meanwhile.
        group: Query heads; a literal.
        head_dim: Elements of a row; a literal.
    """

    def codegen(context, builder, signature, args):
        sums, weight, values = (_Memory.of(context, builder, signature, args, i) for i in (0, 1, 3))
        starts, lanes = _lanes(head_dim.literal_value)
        heads = range(group.literal_value)
        columns = cgutils.unpack_tuple(builder, weight.array.shape)[1]
        per_pass = max(1, MAX_ACCUMULATORS // len(heads))
        for first in range(0, len(starts), per_pass):
            part = starts[first : first + per_pass]
            cells = [(g, d, _index(g * head_dim.literal_value + d)) for g in heads for d in part]
            held = {(g, d): cgutils.alloca_once_value(builder, sums.vector(cell, lanes)) for g, d, cell in cells}
            with cgutils.for_range(builder, args[6]) as loop:
                step = builder.mul(loop.index, args[5])
                if first == 0:
                    values.prefetch(builder.add(args[7], step), head_dim.literal_value)
                begin = builder.add(args[4], step)
                value = {d: values.vector(builder.add(begin, _index(d)), lanes) for d in part}
                for g in heads:
                    at_weight = builder.add(builder.mul(columns, _index(g)), builder.add(args[2], loop.index))
                    scaled = values.scaled(weight.scalar(at_weight), begin, head_dim.literal_value)
                    factor = emit_splat(builder, scaled, lanes)
                    for d in part:
                        product = builder.fmul(factor, value[d], flags=FLAGS)
                        total = builder.fadd(builder.load(held[g, d]), product, flags=FLAGS)
                        builder.store(total, held[g, d])
            for g, d, cell in cells:
                sums.store(cell, builder.load(held[g, d]))
        return context.get_dummy_value()

    return _signature(acc, weights, column, kv, at, stride, run, ahead, group, head_dim), codegen


@dataclass(frozen=True)
class _Memory:
    """The elements of an array argument, addressed by their distance from its first one."""

    builder: Any
    stored_type: types.Type
    array: Any

    @classmethod
    def of(cls, context, builder, signature, args, i):
        array_type = signature.args[i]
        return cls(builder, array_type.dtype, context.make_array(array_type)(context, builder, args[i]))

    def scalar(self, index):
        return self.builder.load(self.builder.gep(self.array.data, [index]))

    def vector(self, index, lanes):
        """``lanes`` elements from ``index`` on, as float32."""
        pointer = self._pointer(index, ir.VectorType(self.array.data.type.pointee, lanes))
        # Only the elements are aligned: a head may begin anywhere.
        raw = self.builder.load(pointer, align=self.stored_type.bitwidth // 8)
        return emit_widen(self.builder, self.stored_type, raw, lanes)

    def scaled(self, value, index, count):
        """A value times the scale of the row of ``count`` numbers that begins at ``index``, if it has one."""
        if self.stored_type != types.int8:
            return value
        pointer = scale_pointer(self.builder, self.array.data, self.builder.add(index, _index(count)))
        return self.builder.fmul(value, self.builder.load(pointer, align=1), flags=FLAGS)

    def prefetch(self, index, count):
        """Asks for the cache lines of ``count`` elements; never faults, wherever they are."""
        num_bytes = count * self.stored_type.bitwidth // 8
        emit_fetch(self.builder, self._pointer(index, ir.IntType(8)), num_bytes)

    def store(self, index, value):
        self.builder.store(value, self._pointer(index, value.type), align=self.stored_type.bitwidth // 8)

    def _pointer(self, index, pointee):
        return self.builder.bitcast(self.builder.gep(self.array.data, [index]), pointee.as_pointer())


def _signature(*arguments):
    """Arrays and literals as they are given, every other number as an intp."""
    kept = (types.Array, types.IntegerLiteral)
    return types.void(*(x if isinstance(x, kept) else types.intp for x in arguments))


def _lanes(head_dim):
    """Where a row's vectors begin, and how many elements each has."""
    lanes = math.gcd(head_dim, MAX_LANES)
    return range(0, head_dim, lanes), lanes


def _index(number):
    return ir.IntType(types.intp.bitwidth)(number)


def _sum(products, builder):
    return reduce(lambda a, b: builder.fadd(a, b, flags=FLAGS), products)


def _sum_lanes(builder, vector, lanes):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(F32, [F32, vector.type]), f"llvm.vector.reduce.fadd.v{lanes}f32"
    )
    return builder.call(function, [F32(0.0), vector], fastmath=FLAGS)
