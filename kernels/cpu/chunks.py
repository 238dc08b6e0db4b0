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

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from octavo.kernels.cpu.amx import GROUP, OUTPUTS, multiply, multiply_in_place
from octavo.kernels.cpu.elementary import FASTMATH, LOG2E, exp2, softcapped
from octavo.kernels.cpu.softmax import exponentiate, largest
from octavo.kernels.cpu.team import draw, share
from octavo.kernels.cpu.tiles import BLOCK, ROWS, array_at, fetch, interleave_rows, place, put_run, transpose_tile

IntArray = npt.NDArray[np.integer[Any]]

KEYS = 128  # of a chunk
TILE_ROWS = 2 * ROWS  # of an item
# Up to so many rows it is cheaper to turn the product round than to lay K out.
_FEW = 8
# Items that are drawn together, at most: neighbours often belong to one sequence.
_NEIGHBOURS = 4

_FLOATS, _BFLOATS = np.empty(0, np.float32), np.empty(0, np.uint16)  # for their types
_ZERO, _ONE, _MINUS_INF = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_compiled = njit(fastmath=FASTMATH, error_model="numpy")
_exact = njit(error_model="numpy")  # no operation is fused or reordered: equal wherever it is inlined


def decode_units(block_tables: IntArray, seq_lens: IntArray, block_size: int, group: int) -> tuple[IntArray, IntArray]:
    """What decodes compute together.

    Args:
        block_tables: int32 [num_seqs, columns]. seq_lens: int32 [num_seqs].
        group: Query heads that share a KV head.

    Returns:
        int32 [num_entries, 2], every (sequence, chunk), those of a unit beside each other; and int64 [num_units + 1],
        where each unit begins. The sequences of a unit have the same blocks for all of its chunk.
    """
    chunks = -(-seq_lens // KEYS)
    seqs = np.repeat(np.arange(len(seq_lens), dtype=np.int32), chunks)
    chunk = np.arange(len(seqs), dtype=np.int32) - (np.cumsum(chunks) - chunks)[seqs]
    alone = np.arange(len(seqs) + 1, dtype=np.int64)
    at_once = TILE_ROWS // group
    # Prefixes are shared from the first block on.
    if at_once < 2 or len(np.unique(block_tables[:, 0])) == len(seq_lens):
        return np.stack((seqs, chunk), axis=1).astype(np.int32), alone
    complete = (chunk + 1) * KEYS < seq_lens[seqs]
    first, last = chunk * KEYS // block_size, ((chunk + 1) * KEYS - 1) // block_size
    width = block_tables.shape[1]
    # Blocks have one parent: sequences that agree in a chunk's last block, agree in all before it.
    tail = np.where(complete, block_tables[seqs, np.minimum(last, width - 1)], -1 - np.arange(len(seqs)))
    head = np.where(complete, block_tables[seqs, first], 0)
    order = np.lexsort((seqs, head, tail, chunk))
    seqs, chunk, tail, head = seqs[order], chunk[order], tail[order], head[order]
    new = np.ones(len(seqs), dtype=bool)
    new[1:] = (tail[1:] != tail[:-1]) | (head[1:] != head[:-1]) | (chunk[1:] != chunk[:-1])
    begins = np.flatnonzero(new)
    # A unit has no more rows than an item.
    within = np.arange(len(seqs)) - begins[np.cumsum(new) - 1]
    starts = np.flatnonzero(within % at_once == 0)
    return np.stack((seqs, chunk), axis=1).astype(np.int32), np.append(starts, len(seqs)).astype(np.int64)


@_compiled
def padded_width(head_dim):
    """Numbers of a head as the tiles have it."""
    return (head_dim + BLOCK - 1) // BLOCK * BLOCK


@_compiled
def desk_bytes(head_dim):
    """What `workspace` takes for heads of so many numbers."""
    return (
        padded_width(head_dim) * (4 * KEYS + 2 * TILE_ROWS + 8 * TILE_ROWS + 4) + KEYS * TILE_ROWS * 10 + 16 * TILE_ROWS
    )


@_compiled
def workspace(desk, width):
    """A thread's scratch memory: slices of arrays that nobody counts references to cost nothing.

    Args:
        desk: Where it begins.

    Returns:
        K or V as rows of tiles, and as weights; queries; weights of keys; scores, and scores turned round; sums of
        values, and those of a chunk; the largest scores and the sums of weights, and those of a chunk; a row, zeros.
    """
    shapes = (KEYS * width,), (TILE_ROWS * width,), (TILE_ROWS * KEYS,)
    rows = array_at(desk, shapes[0], _BFLOATS)
    packed = array_at(desk + 2 * KEYS * width, shapes[0], _BFLOATS)
    desk += 4 * KEYS * width
    q = array_at(desk, shapes[1], _BFLOATS)
    desk += 2 * TILE_ROWS * width
    weights = array_at(desk, shapes[2], _BFLOATS)
    desk += 2 * TILE_ROWS * KEYS
    scores = array_at(desk, shapes[2], _FLOATS)
    turned = array_at(desk + 4 * TILE_ROWS * KEYS, shapes[2], _FLOATS)
    desk += 8 * TILE_ROWS * KEYS
    total = array_at(desk, (TILE_ROWS, width), _FLOATS)
    part = array_at(desk + 4 * TILE_ROWS * width, shapes[1], _FLOATS)
    desk += 8 * TILE_ROWS * width
    sums = array_at(desk, (TILE_ROWS, 2), _FLOATS)
    of_chunk = array_at(desk + 8 * TILE_ROWS, (TILE_ROWS, 2), _FLOATS)
    row = array_at(desk + 16 * TILE_ROWS, (width,), _FLOATS)
    row[:] = _ZERO
    return rows, packed, q, weights, scores, turned, total, part, sums, of_chunk, row


# ── laying out K and V ────────────────────────────────────────────────────────────────────────────────────


@_compiled
def pack_share(packed, kv, block_tables, seq_lens, cu_query_lens, first_chunk, window, desk, rank, size):
    """A rank's share of the chunks of K and V that prompts read.

    Args:
        packed: uint16, [chunks, KV heads, 2 (K, V), KEYS · padded width], flat.
        kv: uint16 [num_blocks, 2, KV heads, block_size, head_dim].
        first_chunk: int64 [num_seqs + 1], each sequence's first chunk, and their number at the end.
    """
    num_kv_heads, width = kv.shape[2], padded_width(kv.shape[4])
    rows = workspace(desk, width)[0]
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
        at = unit * 2 * KEYS * width
        count = min(KEYS, seq_lens[seq] - start)
        _tile_rows(rows, kv, 0, block_tables[seq], head, start, count, width)
        _pack_keys(packed, at, rows, width)
        _tile_rows(rows, kv, 1, block_tables[seq], head, start, count, width)
        _pack_values(packed, at + KEYS * width, rows, width)


@_compiled
def _pack_keys(packed, at, keys, width):
    """Keys from `_tile_rows` as weights: a key is one output, and its pairs of numbers lie 16 keys apart."""
    for tile in range(KEYS // ROWS):
        for block in range(width // BLOCK):
            to = at + tile // 2 * GROUP * width + (2 * block + tile % 2) * (ROWS * BLOCK)
            transpose_tile(packed, to, keys, (tile * (width // BLOCK) + block) * (ROWS * BLOCK))


@_compiled
def _pack_values(packed, at, values, width):
    """Values from `_tile_rows` as weights: a value is one input, and its numbers, the outputs, lie beside those of its
    neighbour."""
    for tile in range(KEYS // ROWS):
        for panel in range(width // OUTPUTS):
            to = at + panel // 2 * (KEYS * GROUP) + tile // 2 * (2 * ROWS * BLOCK) + panel % 2 * (ROWS * BLOCK)
            to += tile % 2 * (ROWS // 2 * BLOCK)
            interleave_rows(packed, to, values, place(tile * ROWS, panel * OUTPUTS, width), BLOCK)


@_compiled
def _tile_rows(tiles, kv, part, table, head, start, count, width):
    """K (part 0) or V (1) of a chunk as rows of tiles.

    What a product reads beyond the sequence meets weights of zero, and zero times NaN would be NaN; so those are zeros.
    """
    if count < KEYS or width > kv.shape[4]:
        tiles[: KEYS * width] = 0
    # It walks the slots one by one: a division for each key would cost more than copying it.
    column, slot = start // kv.shape[3], start % kv.shape[3]
    for key in range(count):
        row = kv[np.int64(table[column]), part, head, slot]
        if kv.shape[4] % BLOCK == 0:
            for first in range(0, row.shape[0], BLOCK):
                put_run(tiles, place(key, first, width), row, first, BLOCK)
        else:
            for first in range(0, row.shape[0], OUTPUTS):
                put_run(tiles, place(key, first, width), row, first, OUTPUTS)
        slot += 1
        if slot == kv.shape[3]:
            column, slot = column + 1, 0


@_compiled
def _fetch_rows(kv, part, table, head, start, count):
    """Asks for K (part 0) or V (1) of a chunk."""
    column, slot, head_bytes = start // kv.shape[3], start % kv.shape[3], 2 * kv.shape[4]
    while count > 0:
        run = min(kv.shape[3] - slot, count)
        fetch(kv[np.int64(table[column]), part, head, slot], run * head_bytes)
        column, slot, count = column + 1, 0, count - run


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────


@_compiled
def attend_prompts(
    out, qkv, packed, first_chunk, first_item, counters, which,
    seq_lens, cu_query_lens, num_q_heads, num_kv_heads, scale, window, softcap, desk,
):  # fmt: skip
    """Draws items until none is left, those with the most keys of each sequence first.

    Args:
        out: uint16, tiles of [num_tokens, num_q_heads · head_dim].
        qkv: float32 [num_tokens, heads, head_dim], rotated.
        packed, first_chunk: As for `pack_share`.
        first_item: int64 [num_seqs + 1], each sequence's first item, and their number at the end.
        counters, which: What is left is counted there, from zero.
        seq_lens, cu_query_lens: Of the prompts' sequences.
    """
    head_dim, group = qkv.shape[2], num_q_heads // num_kv_heads
    width = padded_width(head_dim)
    _, _, q, weights, scores, _, total, part, sums, of_chunk, row = workspace(desk, width)
    num_items = first_item[-1]
    while True:
        item = num_items - 1 - draw(counters, which, 1)
        if item < 0:
            return
        seq = np.searchsorted(first_item, item, side="right") - 1
        tile, head = (item - first_item[seq]) // num_kv_heads, (item - first_item[seq]) % num_kv_heads
        base, token = tile * TILE_ROWS, cu_query_lens[seq]
        query_len = cu_query_lens[seq + 1] - token
        count = min(TILE_ROWS, query_len * group - base)
        for r in range(count):
            query = qkv[token + (base + r) // group, head * group + (base + r) % group]
            _tile_query(q, r, query, row, scale)
        # The first and the last position that the item's queries have.
        first = seq_lens[seq] - query_len + base // group
        last = seq_lens[seq] - query_len + (base + count - 1) // group
        sums[:, 0], sums[:, 1], total[:] = _MINUS_INF, _ZERO, _ZERO
        earliest = max(first + 1 - window, 0) if window > 0 else 0
        for chunk in range(earliest // KEYS, last // KEYS + 1):
            at = ((first_chunk[seq] + chunk) * num_kv_heads + head) * 2 * KEYS * width
            groups = min(KEYS, last + 1 - chunk * KEYS + GROUP - 1) // GROUP
            for g in range(groups):
                multiply_rows(scores, g * GROUP, KEYS, packed, at + g * GROUP * width, width, q, width, count)
            for r in range(count):
                position = first + (base + r) // group - base // group
                begin = max(position + 1 - window - chunk * KEYS, 0) if window > 0 else 0
                end = min(position + 1 - chunk * KEYS, groups * GROUP)
                top, mass = _weigh_row(scores[r * KEYS : r * KEYS + groups * GROUP], begin, end, softcap)
                of_chunk[r, 0], of_chunk[r, 1] = top, mass
                for g in range(groups):
                    put_run(weights, place(r, g * BLOCK, KEYS), scores, r * KEYS + g * GROUP, GROUP)
            for d in range(width // GROUP):
                values = at + KEYS * width + d * KEYS * GROUP
                multiply_rows(part, d * GROUP, width, packed, values, groups * GROUP, weights, KEYS, count)
            for r in range(count):
                merge(total[r], sums[r], part[r * width : (r + 1) * width], of_chunk[r])
        for r in range(count):
            column = (head * group + (base + r) % group) * head_dim
            store(out, token + (base + r) // group, column, num_q_heads * head_dim, total[r, :head_dim], sums[r, 1])


# ── decodes ───────────────────────────────────────────────────────────────────────────────────────────────


@_compiled
def attend_decodes(
    parts, part_sums, qkv, kv, block_tables, seq_lens, entries, units, first_part, counters, which,
    num_q_heads, scale, window, softcap, desk, num_workers,
):  # fmt: skip
    """Draws items until none is left; what comes of them is merged by `merge_decodes`.

    Args:
        parts: float32 [num_entries, KV heads, group, padded width].
        part_sums: float32 [num_entries, KV heads, group, 2].
        qkv: float32 [num_tokens, heads, head_dim], rotated; decodes come first.
        entries, units: From `decode_units`.
        first_part: int64 [num_seqs + 1], where each sequence's chunks have their parts.
        counters, which: What is left is counted there, from zero.
    """
    num_kv_heads, head_dim = kv.shape[2], kv.shape[4]
    group, width = num_q_heads // num_kv_heads, padded_width(head_dim)
    rows, packed, q, weights, scores, turned, _, part, _, _, row = workspace(desk, width)
    num_items = (units.shape[0] - 1) * num_kv_heads
    in_place = kv.shape[3] % ROWS == 0 and width == head_dim  # tiles of K are rows of blocks
    at_once = max(1, min(_NEIGHBOURS, num_items // (4 * num_workers)))
    drawn = draw(counters, which, at_once)
    following = drawn
    while following < num_items:
        item = following
        following += 1
        if following == drawn + at_once:
            drawn = draw(counters, which, at_once)
            following = drawn
        unit, head = item // num_kv_heads, item % num_kv_heads
        begin_entry, end_entry = units[unit], units[unit + 1]
        count = (end_entry - begin_entry) * group
        seq, start = entries[begin_entry, 0], entries[begin_entry, 1] * KEYS
        num_keys = min(KEYS, seq_lens[seq] - start)
        groups = (num_keys + GROUP - 1) // GROUP
        _load_unit(q, row, qkv, entries[begin_entry:end_entry, 0], head * group, group, scale)
        # Memory is read ahead while the tiles multiply: V, and then what the next item begins with.
        _fetch_rows(kv, 1, block_tables[seq], head, start, num_keys)
        if count > _FEW or not in_place:
            _tile_rows(rows, kv, 0, block_tables[seq], head, start, num_keys, width)
        if count <= _FEW and in_place:
            _score_in_place(turned, kv, block_tables[seq], head, start, num_keys, q)
            _turn(scores, turned, count, groups)
        elif count <= _FEW:
            for g in range(groups):
                at = g * GROUP
                multiply(
                    turned, at * TILE_ROWS, TILE_ROWS, OUTPUTS, q, 0, width // BLOCK,
                    rows, at * width, ROWS * width, 2, 0,
                )  # fmt: skip
            _turn(scores, turned, count, groups)
        else:
            _pack_keys(packed, 0, rows, width)
            for g in range(groups):
                multiply_rows(scores, g * GROUP, KEYS, packed, g * GROUP * width, width, q, width, count)
        if following < num_items:
            entry = units[following // num_kv_heads]
            next_seq, next_start = entries[entry, 0], entries[entry, 1] * KEYS
            next_keys = min(KEYS, seq_lens[next_seq] - next_start)
            _fetch_rows(kv, 0, block_tables[next_seq], following % num_kv_heads, next_start, next_keys)
        if in_place and num_keys == KEYS:
            _pack_values_in_place(packed, kv, block_tables[seq], head, start)
        else:
            _tile_rows(rows, kv, 1, block_tables[seq], head, start, num_keys, width)
            _pack_values(packed, 0, rows, width)
        for r in range(count):
            owner, chunk = entries[begin_entry + r // group, 0], entries[begin_entry + r // group, 1]
            begin = max(seq_lens[owner] - window - start, 0) if window > 0 else 0
            top, mass = _weigh_row(scores[r * KEYS : r * KEYS + groups * GROUP], begin, num_keys, softcap)
            for g in range(groups):
                put_run(weights, place(r, g * BLOCK, KEYS), scores, r * KEYS + g * GROUP, GROUP)
            of_chunk = part_sums[first_part[owner] + chunk, head, r % group]
            of_chunk[0], of_chunk[1] = top, mass
        for d in range(width // GROUP):
            multiply_rows(part, d * GROUP, width, packed, d * KEYS * GROUP, groups * GROUP, weights, KEYS, count)
        for r in range(count):
            owner, chunk = entries[begin_entry + r // group, 0], entries[begin_entry + r // group, 1]
            target = parts[first_part[owner] + chunk, head, r % group]
            for d in range(0, width, BLOCK):
                put_run(target, d, part, r * width + d, BLOCK)


@_compiled
def _load_unit(q, row, qkv, seqs, first_head, group, scale):
    """The queries of a unit's sequences, as weights if they are few, else as rows of tiles."""
    count = seqs.shape[0] * group
    for r in range(count):
        query = qkv[seqs[r // group], first_head + r % group]
        if count <= _FEW:
            _pack_query(q, r, query, row, scale)
        else:
            _tile_query(q, r, query, row, scale)


@_compiled
def _score_in_place(turned, kv, table, head, start, num_keys, q):
    """Scores of a few rows, which are the weights here: K Qᵀ, turned round, with K from its blocks.

    Args:
        turned: float32 [KEYS · 32], a key after the other; beyond ``num_keys`` they mean nothing.
        q: From `_pack_query`.
    """
    size, width = kv.shape[3], kv.shape[4]
    block_step, head_step = 2 * kv.shape[2] * size * width, head * size * width
    for key in range(0, num_keys, 2 * ROWS):
        first, second = start + key, start + min(key + ROWS, num_keys - 1) // ROWS * ROWS
        at = np.int64(table[first // size]) * block_step + head_step + first % size * width
        other = np.int64(table[second // size]) * block_step + head_step + second % size * width
        multiply_in_place(
            turned, key * TILE_ROWS, TILE_ROWS, OUTPUTS, q, 0, width // BLOCK, kv, at, other - at, width
        )  # fmt: skip


@_compiled
def _turn(scores, turned, count, groups):
    """Scores of ``count`` rows [32, KEYS] from those of ``groups`` · 32 keys [KEYS, 32]."""
    for r in range(count):
        for key in range(groups * GROUP):
            scores[r * KEYS + key] = turned[key * TILE_ROWS + r]


@_compiled
def _pack_values_in_place(packed, kv, table, head, start):
    """`_pack_values` of a whole chunk, from its blocks."""
    size, width = kv.shape[3], kv.shape[4]
    for tile in range(KEYS // ROWS):
        position = start + tile * ROWS
        rows = kv[np.int64(table[position // size]), 1, head, position % size]
        for panel in range(width // OUTPUTS):
            to = panel // 2 * (KEYS * GROUP) + tile // 2 * (2 * ROWS * BLOCK) + panel % 2 * (ROWS * BLOCK)
            interleave_rows(packed, to + tile % 2 * (ROWS // 2 * BLOCK), rows, panel * OUTPUTS, width)


@_compiled
def merge_decodes(out, parts, part_sums, first_part, num_decodes, head_dim, desk, rank, size):
    """A rank's share of the decodes: all parts of each query, in order, to its row of tiles."""
    num_kv_heads, group, width = parts.shape[1:]
    _, _, _, _, _, _, totals, _, every, _, _ = workspace(desk, width)
    total, sums = totals[0], every[0]
    begin, end = share(num_decodes, rank, size)
    for seq in range(begin, end):
        for head in range(num_kv_heads * group):
            sums[0], sums[1], total[:] = _MINUS_INF, _ZERO, _ZERO
            for part in range(first_part[seq], first_part[seq + 1]):
                of_chunk = part_sums[part, head // group, head % group]
                merge(total, sums, parts[part, head // group, head % group], of_chunk)
            store(out, seq, head * head_dim, num_kv_heads * group * head_dim, total[:head_dim], sums[1])


# ── what both have in common ──────────────────────────────────────────────────────────────────────────────


@_compiled
def _tile_query(q, r, query, row, scale):
    """A query, in units of log 2, as a row of tiles.

    Args:
        row: float32 [padded width], scratch that is 0 beyond the head's own width.
    """
    _scale_query(row, query, scale)
    for d in range(0, row.shape[0], BLOCK):
        put_run(q, place(r, d, row.shape[0]), row, d, BLOCK)


@_compiled
def _pack_query(q, r, query, row, scale):
    """A query, in units of log 2, as the weights of one output; ``row`` as for `_tile_query`."""
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
def _weigh_row(scores, begin, end, softcap):
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
