"""Attention of prompt chunks over paged KV, on AMX tiles (FlashAttention, arXiv:2205.14135).

The blocks of a sequence are read once per layer, whatever the number of its queries, and laid out the way the tile
product wants its second operand: K as the weights of a layer with a key for each output, V as those of one with a key
for each input. They are cut into chunks of `KEYS` keys at fixed positions, so that a query's result depends neither on
the queries that are computed with it nor on how its prompt was cut.

    item = (sequence, KV head, 32 rows)     a row is a query of one of the heads that share the KV head
    for each chunk of keys:    S = Q Kᵀ  →  P = 2^(S − top)  →  O = O · 2^(old top − top) + P V

Scores live in units of log 2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from octavo.kernels.cpu.amx import GROUP, OUTPUTS, multiply
from octavo.kernels.cpu.elementary import FASTMATH, LOG2E, exp2, softcapped
from octavo.kernels.cpu.softmax import exponentiate, largest
from octavo.kernels.cpu.team import draw, share
from octavo.kernels.cpu.tiles import BLOCK, ROWS, place, put_run

KEYS = 128  # of a chunk
TILE_ROWS = 2 * ROWS  # of an item

_ZERO, _ONE, _MINUS_INF = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_compiled = njit(fastmath=FASTMATH, error_model="numpy")


@_compiled
def padded_width(head_dim):
    """Numbers of a head as the tiles have it."""
    return (head_dim + BLOCK - 1) // BLOCK * BLOCK


@_compiled
def pack_share(packed, kv, block_tables, seq_lens, cu_query_lens, first_chunk, window, rank, size):
    """A rank's share of the chunks of K and V.

    Args:
        packed: uint16, [chunks, KV heads, 2 (K, V), KEYS · padded width], flat.
        kv: uint16 [num_blocks, 2, KV heads, block_size, head_dim].
        first_chunk: int64 [num_seqs + 1], each sequence's first chunk, and their number at the end.
    """
    num_kv_heads, width = kv.shape[2], padded_width(kv.shape[4])
    seq = 0
    begin, end = share(first_chunk[-1] * num_kv_heads, rank, size)
    for unit in range(begin, end):
        chunk, head = unit // num_kv_heads, unit % num_kv_heads
        while first_chunk[seq + 1] <= chunk:
            seq += 1
        start = (chunk - first_chunk[seq]) * KEYS
        query_len = cu_query_lens[seq + 1] - cu_query_lens[seq]
        if window > 0 and start + KEYS <= seq_lens[seq] - query_len + 1 - window:
            continue  # behind the first query's window
        count = min(KEYS, seq_lens[seq] - start)
        at = unit * 2 * KEYS * width
        # What a product reads beyond the sequence meets weights of zero, and zero times NaN would be NaN.
        packed[at : at + 2 * KEYS * width] = 0
        for key in range(count):
            block = np.int64(block_tables[seq, (start + key) // kv.shape[3]])
            slot = (start + key) % kv.shape[3]
            _pack_key(packed, at, kv[block, 0, head, slot], key, width)
            _pack_value(packed, at + KEYS * width, kv[block, 1, head, slot], key)


@_compiled
def _pack_key(packed, at, k, key, width):
    """A key is one output: its pairs of numbers lie 16 keys apart."""
    base = at + key // GROUP * GROUP * width + key % GROUP // OUTPUTS * (ROWS * BLOCK) + key % OUTPUTS * 2
    for d in range(0, k.shape[0], 2):
        to = base + d // BLOCK * (2 * ROWS * BLOCK) + d % BLOCK * OUTPUTS
        packed[to] = k[d]
        packed[to + 1] = k[d + 1]


@_compiled
def _pack_value(packed, at, v, key):
    """A key is one input: its numbers, the outputs, lie beside those of its neighbour."""
    base = at + key // BLOCK * (2 * ROWS * BLOCK) + key % BLOCK // 2 * (2 * OUTPUTS) + key % 2
    for first in range(0, v.shape[0], OUTPUTS):
        to = base + first // GROUP * (KEYS * GROUP) + first % GROUP // OUTPUTS * (ROWS * BLOCK)
        for d in range(OUTPUTS):
            packed[to + 2 * d] = v[first + d]


@_compiled
def attend_items(
    out, qkv, packed, first_chunk, first_item, counters, layer,
    seq_lens, cu_query_lens, num_q_heads, num_kv_heads, scale, window, softcap,
):  # fmt: skip
    """Draws items until none is left, those with the most keys of each sequence first.

    Args:
        out: uint16, tiles of [num_tokens, num_q_heads · head_dim].
        qkv: float32 [num_tokens, heads, head_dim], rotated.
        packed, first_chunk: As for `pack_share`.
        first_item: int64 [num_seqs + 1], each sequence's first item, and their number at the end.
        counters: int64 [num_layers]; zeros at first.
        seq_lens, cu_query_lens: Of the chunks' sequences.
    """
    head_dim, group = qkv.shape[2], num_q_heads // num_kv_heads
    width = padded_width(head_dim)
    q = np.zeros(TILE_ROWS * width, np.uint16)
    scores = np.empty(TILE_ROWS * KEYS, np.float32)
    weights = np.empty(TILE_ROWS * KEYS, np.uint16)
    total = np.empty((TILE_ROWS, width), np.float32)
    part = np.empty(TILE_ROWS * width, np.float32)
    row = np.zeros(width, np.float32)
    top, mass = np.empty(TILE_ROWS, np.float32), np.empty(TILE_ROWS, np.float32)
    shrink = np.empty(TILE_ROWS, np.float32)
    num_items = first_item[-1]
    while True:
        item = num_items - 1 - draw(counters, layer, 1)
        if item < 0:
            return
        seq = np.searchsorted(first_item, item, side="right") - 1
        tile, head = (item - first_item[seq]) // num_kv_heads, (item - first_item[seq]) % num_kv_heads
        base, token = tile * TILE_ROWS, cu_query_lens[seq]
        query_len = cu_query_lens[seq + 1] - token
        count = min(TILE_ROWS, query_len * group - base)
        _load_queries(q, row, qkv, token, head * group, group, base, count, scale)
        # The first and the last position that the item's queries have.
        first = seq_lens[seq] - query_len + base // group
        last = seq_lens[seq] - query_len + (base + count - 1) // group
        top[:], mass[:], total[:] = _MINUS_INF, _ZERO, _ZERO
        earliest = max(first + 1 - window, 0) if window > 0 else 0
        for chunk in range(earliest // KEYS, last // KEYS + 1):
            at = ((first_chunk[seq] + chunk) * num_kv_heads + head) * 2 * KEYS * width
            groups = min(KEYS, last + 1 - chunk * KEYS + GROUP - 1) // GROUP
            for g in range(groups):
                multiply_rows(scores, g * GROUP, KEYS, packed, at + g * GROUP * width, width, q, width, count)
            _weigh_chunk(
                scores, weights, first, base, count, group, chunk, groups, window, softcap, top, mass, shrink
            )  # fmt: skip
            for d in range(width // GROUP):
                values = at + KEYS * width + d * KEYS * GROUP
                multiply_rows(part, d * GROUP, width, packed, values, groups * GROUP, weights, KEYS, count)
            for r in range(count):
                _accumulate(total[r], part[r * width : (r + 1) * width], shrink[r])
        _store_rows(out, row[:head_dim], total, mass, token, head * group, group, base, count, num_q_heads * head_dim)


@_compiled
def _load_queries(q, row, qkv, token, first_head, group, base, count, scale):
    """The rows of an item from ``base`` on to tiles, in units of log 2.

    Args:
        row: float32 [padded width], scratch that is 0 beyond the heads' own width.
    """
    for r in range(count):
        heads = qkv[token + (base + r) // group, first_head + (base + r) % group]
        for d in range(heads.shape[0]):
            row[d] = heads[d] * (scale * LOG2E)
        for d in range(0, row.shape[0], BLOCK):
            put_run(q, place(r, d, row.shape[0]), row, d, BLOCK)


@_compiled
def _store_rows(out, row, total, mass, token, first_head, group, base, count, out_width):
    """An item's sums, divided by their weights, to the rows and columns of their queries.

    Args:
        out: uint16, tiles of [num_tokens, out_width]. row: float32 [head_dim], scratch.
    """
    head_dim = row.shape[0]
    for r in range(count):
        share_of_one = _ONE / mass[r]
        for d in range(head_dim):
            row[d] = total[r, d] * share_of_one
        column = (first_head + (base + r) % group) * head_dim
        for d in range(0, head_dim, OUTPUTS):
            put_run(out, place(token + (base + r) // group, column + d, out_width), row, d, OUTPUTS)


@_compiled
def _weigh_chunk(scores, weights, first, base, count, group, chunk, groups, window, softcap, top, mass, shrink):
    """Scores of an item's rows with one chunk of keys to weights, in tiles.

    Args:
        scores: float32 [32 · KEYS]. weights: uint16 [32 · KEYS], tiles. groups: of keys that some row may see.
        first: Position of the item's first query.
    """
    for r in range(count):
        position = first + (base + r) // group - base // group
        begin = max(position + 1 - window - chunk * KEYS, 0) if window > 0 else 0
        end = min(position + 1 - chunk * KEYS, groups * GROUP)
        shrink[r] = _weigh_row(scores[r * KEYS : r * KEYS + groups * GROUP], r, begin, end, softcap, top, mass)
        for g in range(groups):
            put_run(weights, place(r, g * BLOCK, KEYS), scores, r * KEYS + g * GROUP, GROUP)


@_compiled
def multiply_rows(sums, first_sum, row_step, weights, first_weight, num_inputs, x, width, count):
    """A product of up to 32 rows of tiles of this width with one group; the tiles must have 16 rows."""
    blocks, tile = num_inputs // BLOCK, ROWS * width
    if count <= ROWS:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, 1, 0)
    else:
        multiply(sums, first_sum, row_step, OUTPUTS, weights, first_weight, blocks, x, 0, tile, 2, 0)


@_compiled
def _accumulate(total, part, shrink):
    for i in range(total.shape[0]):
        total[i] = total[i] * shrink + part[i]


@_compiled
def _weigh_row(scores, r, begin, end, softcap, top, mass):
    """Turns a row's scores of one chunk into weights; keys outside begin … end get none.

    Args:
        scores: float32 [keys].
        top, mass: float32 [32], the row's largest score so far and the sum of its weights under it; updated.

    Returns:
        The factor on what the row has summed so far.
    """
    if softcap > _ZERO:
        for i in range(scores.shape[0]):
            scores[i] = softcapped(scores[i], softcap * LOG2E)
    scores[:begin] = _MINUS_INF
    scores[max(begin, end) :] = _MINUS_INF
    highest = max(top[r], largest(scores))
    if highest == _MINUS_INF:  # it sees no key of this chunk, nor of any before
        scores[:] = _ZERO
        return _ONE
    shrink = exp2(top[r] - highest)
    top[r], mass[r] = highest, mass[r] * shrink + exponentiate(scores, highest)
    return shrink
