"""Attention over paged KV by products of tiles, for prompts and decodes alike (FlashAttention, arXiv:2205.14135).

A sequence's context is cut into chunks of `KEYS` keys at fixed positions, and a query's result is put together chunk
by chunk, in order:

    S = Q Kᵀ      P = 2^(S − top)      part = P V      total = total · 2^(top before − top after) + part · 2^(…)

Each of these is computed in the same way, to the last bit, wherever a query stands: in a prompt, however that was cut,
or alone as the last token of its sequence; and whatever is computed beside it. Only how the work is cut differs:

    item of prompts   (sequence, KV head, 32 rows)      a row is a query of one of the heads that share the KV head
    item of decodes   (KV head, chunk, sequences that share it)      their parts are merged when all are there

Prompts have K and V laid out once per layer the way the tile product wants its second operand: K as the weights of a
layer with a key for each output, V as those of one with a key for each input. A chunk that decodes read is laid out
so, too, with two exceptions: where AMX multiplies and they are few, their scores are turned round, with K as it comes;
where vectors do, V is summed as it comes (`octavo.kernels.cpu.vector_decodes`). Scores live in units of log 2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from octavo.kernels.cpu.elementary import EXACT, FAST, LOG2E, softcapped
from octavo.kernels.cpu.packing import OUTPUTS
from octavo.kernels.cpu.products import multiply
from octavo.kernels.cpu.tile_softmax import KEYS, rescale, top_of, weigh
from octavo.kernels.cpu.tiles import BLOCK, ROWS, blend_run, place, put_run

_ZERO, _ONE, _MINUS_INF = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_compiled = njit(**FAST)
_exact = njit(**EXACT)


@_compiled
def tile_query(q, r, query, row, scale):
    """A query, in units of log 2, as a row of tiles.

    Args:
        row: float32 [padded width], scratch that is 0 beyond the head's own width.
    """
    _scale_query(row, query, scale)
    for d in range(0, row.shape[0], BLOCK):
        put_run(q, place(r, d, row.shape[0]), row, d, BLOCK)


@_compiled
def pack_query(q, r, query, row, scale):
    """A query, in units of log 2, as the weights of one output, in bfloat16; ``row`` as for `tile_query`."""
    _scale_query(row, query, scale)
    for first in range(0, row.shape[0], BLOCK):
        base = first // BLOCK * (2 * ROWS * BLOCK) + r // OUTPUTS * (ROWS * BLOCK)
        for d in range(0, BLOCK, 2):
            put_run(q, base + d * OUTPUTS + r % OUTPUTS * 2, row, first + d, 2)


@_exact
def _scale_query(row, query, scale):
    factor = scale * LOG2E
    for d in range(query.shape[0]):
        row[d] = query[d] * factor


@_compiled
def multiply_rows(sums, first_sum, row_step, weights, first_weight, num_inputs, x, width, count):
    """A product of up to 32 rows of tiles of this width with one group; the tiles must be configured for 16."""
    blocks, tile = num_inputs // BLOCK, ROWS * width
    if count <= ROWS:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, count, 1, 0)
    else:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, count, 2, 0)


@_compiled
def cap_scores(scores, count, softcap):
    """Bounds the scores of so many rows, which are in units of log 2, if there is a bound."""
    if softcap > _ZERO:
        for i in range(count * KEYS):
            scores[i] = softcapped(scores[i], softcap * LOG2E)


@_compiled
def weigh_rows(weights, of_chunk, scores, ranges, count):
    """Turns the scores of one chunk into weights in tiles of [32, KEYS], row by row; see `tile_softmax.weigh`.

    Args:
        of_chunk: float32 [2, 32], told the largest score of each row (−inf if it sees no key), and the sum of weights.
        scores: float32 [32 · KEYS], a row after the other.
        ranges: int64 [32, 2], the keys that each row sees; scores of others mean nothing.
    """
    # All tops first: a row's powers wait for its top, and the processor does not look far enough ahead for the next.
    for r in range(count):
        of_chunk[0, r] = top_of(scores, r * KEYS, ranges[r, 0], ranges[r, 1])
    for r in range(count):
        to = place(r, 0, KEYS)
        of_chunk[1, r] = weigh(weights, to, scores, r * KEYS, ranges[r, 0], ranges[r, 1], of_chunk[0, r])


@_exact
def begin_context(sums, total):
    """Nothing has been seen yet."""
    sums[0], sums[1], total[:] = _MINUS_INF, _ZERO, _ZERO


@_exact
def merge(total, sums, part, of_chunk, factors, count, width):
    """Adds one chunk's part to what came before it, for each of some rows.

    Args:
        total, part: float32, a row after the other.
        sums: float32 [2, 32], the largest score so far of each row, and the sum of weights under it.
        of_chunk: What ``sums`` is, of this chunk alone.
        factors: float32 [2, 32], scratch.
    """
    rescale(sums, of_chunk, factors)
    for r in range(count):
        if of_chunk[0, r] != _MINUS_INF:
            for at in range(r * width, (r + 1) * width, BLOCK):
                blend_run(total, at, part, at, BLOCK, factors[0, r], factors[1, r])


@_exact
def store(out, row, column, out_width, total, mass):
    """A query's sums, divided by their weights, to its row of tiles; zeros for a padded row, which saw no key."""
    share_of_one = _ZERO if mass == _ZERO else _ONE / mass
    for d in range(total.shape[0]):
        total[d] = total[d] * share_of_one
    for d in range(0, total.shape[0], OUTPUTS):
        put_run(out, place(row, column + d, out_width), total, d, OUTPUTS)
