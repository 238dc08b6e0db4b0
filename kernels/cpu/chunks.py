"""Attention over paged KV on AMX tiles, for prompts and decodes alike (FlashAttention, arXiv:2205.14135).

A sequence's context is cut into chunks of `KEYS` keys at fixed positions, and a query's result is put together chunk
by chunk, in order:

    S = Q Kᵀ      P = 2^(S − top)      part = P V      total = total · 2^(top before − top after) + part · 2^(…)

Each of these is computed in the same way, to the last bit, wherever a query stands: in a prompt, however that was cut,
or alone as the last token of its sequence; and whatever is computed beside it. Only how the work is cut differs:

    item of prompts   (sequence, KV head, 32 rows)      a row is a query of one of the heads that share the KV head
    item of decodes   (KV head, chunk, sequences that share it)      their parts are merged when all are there

Prompts have K and V laid out once per layer the way the tile product wants its second operand: K as the weights of a
layer with a key for each output, V as those of one with a key for each input. A chunk that several decodes share is
laid out so, too; for a single one the product is turned round, with K as it comes. Scores live in units of log 2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from octavo.kernels.cpu.amx import OUTPUTS, multiply
from octavo.kernels.cpu.elementary import FASTMATH, LOG2E, exp2, softcapped
from octavo.kernels.cpu.softmax import exponentiate, largest
from octavo.kernels.cpu.tiles import BLOCK, ROWS, place, put_run

KEYS = 128  # of a chunk
TILE_ROWS = 2 * ROWS  # of an item

_ZERO, _ONE, _MINUS_INF = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_compiled = njit(fastmath=FASTMATH, error_model="numpy")
_exact = njit(error_model="numpy")  # no operation is fused or reordered: equal wherever it is inlined


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
    """A query, in units of log 2, as the weights of one output; ``row`` as for `tile_query`."""
    _scale_query(row, query, scale)
    for first in range(0, row.shape[0], BLOCK):
        base = first // BLOCK * (2 * ROWS * BLOCK) + r // OUTPUTS * (ROWS * BLOCK) + r % OUTPUTS * 2
        for d in range(0, BLOCK, 2):
            put_run(q, base + d * OUTPUTS, row, first + d, 2)


@_exact
def _scale_query(row, query, scale):
    factor = scale * LOG2E
    for d in range(query.shape[0]):
        row[d] = query[d] * factor


@_compiled
def multiply_rows(sums, first_sum, row_step, weights, first_weight, num_inputs, x, width, count):
    """A product of up to 32 rows of tiles of this width with one group; the tiles must have 16 rows."""
    blocks, tile = num_inputs // BLOCK, ROWS * width
    if count <= ROWS:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, 1, 0)
    else:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, 2, 0)


@_compiled
def weigh_row(scores, begin, end, softcap):
    """Turns a row's scores of one chunk into weights; keys outside begin … end get none.

    Args:
        scores: float32 [keys], a multiple of 32.

    Returns:
        The largest score (−inf if no key is seen), and the sum of the weights under it.
    """
    if softcap > _ZERO:
        for i in range(scores.shape[0]):
            scores[i] = softcapped(scores[i], softcap * LOG2E)
    scores[:begin] = _MINUS_INF
    scores[max(begin, end) :] = _MINUS_INF
    top = largest(scores)
    if top == _MINUS_INF:
        scores[:] = _ZERO
        return top, _ZERO
    return top, exponentiate(scores, top)


@_compiled
def put_weights(weights, r, row):
    """A row of weights, rounded to bfloat16, to tiles of [32, KEYS]."""
    for key in range(0, row.shape[0], BLOCK):
        put_run(weights, place(r, key, KEYS), row, key, BLOCK)


@_exact
def merge(total, sums, part, of_chunk):
    """Adds one chunk's part of a query to what came before it.

    Args:
        total: float32 [width]. sums: float32 [2], the largest score so far and the sum of weights under it.
        part: float32 [width]. of_chunk: what `sums` is, of this chunk alone.
    """
    top, mass = of_chunk[0], of_chunk[1]
    if top == _MINUS_INF:
        return
    highest = max(sums[0], top)
    before, now = exp2(sums[0] - highest), exp2(top - highest)
    sums[0], sums[1] = highest, sums[1] * before + mass * now
    for d in range(total.shape[0]):
        total[d] = total[d] * before + part[d] * now


@_exact
def store(out, row, column, out_width, total, mass):
    """A query's sums, divided by their weights, to its row of tiles; zeros for a padded row, which saw no key."""
    share_of_one = _ONE / mass if mass > _ZERO else _ZERO
    for d in range(total.shape[0]):
        total[d] = total[d] * share_of_one
    for d in range(0, total.shape[0], OUTPUTS):
        put_run(out, place(row, column + d, out_width), total, d, OUTPUTS)
