"""Attention of decodes by products of tiles; see `octavo.kernels.cpu.chunks`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from octavo.kernels.cpu import vector_decodes
from octavo.kernels.cpu.amx import multiply_few
from octavo.kernels.cpu.chunks import (
    begin_context,
    cap_scores,
    merge,
    multiply_rows,
    pack_query,
    store,
    tile_query,
    weigh_rows,
)
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import FAST
from octavo.kernels.cpu.kv_rows import numbers_of
from octavo.kernels.cpu.packing import GROUP, groups_of
from octavo.kernels.cpu.team import draw, share
from octavo.kernels.cpu.tile_layout import (
    TILES,
    expect_tiles,
    fetch_rows,
    find_tiles,
    pack_keys,
    pack_values,
    padded_width,
    rows_at,
    workspace,
)
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, array_at, fetch, put_run

IntArray = npt.NDArray[np.integer[Any]]

# Items that are drawn together, at most: neighbours often belong to one sequence.
_NEIGHBOURS = 4

_BYTES = np.empty(0, np.uint8)  # for its type
_ZERO, _MINUS_INF = np.float32(0.0), np.float32(-np.inf)
_compiled = njit(**FAST)


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


@cache
def attend_decodes_with(few: int):
    """The stage of decodes.

    Args:
        few: On AMX, rows up to which scores are computed with the operands in each other's places; 0 for vectors.

    Returns:
        ``attend(parts, part_sums, qkv, kv, block_tables, seq_lens, entries, units, first_part, counters, which,
        num_q_heads, scale, window, softcap, desk, kinds, num_workers)``: draws items until none is left; what comes of
        them is merged by `merge_decodes`.

            parts       float32 [num_entries, KV heads, group, padded width]
            part_sums   float32 [num_entries, KV heads, 2, group]
            qkv         float32 [num_tokens, heads, head_dim], rotated; decodes come first
            entries, units       from `decode_units`
            first_part           int64 [num_seqs + 1], where each sequence's chunks have their parts
            counters, which      what is left is counted there, from zero
    """
    load = _load_either(few) if few > 0 else _load_rows
    score, sum_values = vector_decodes.score, vector_decodes.sum_values
    if few > 0:
        score, sum_values = _score_either(few), _sum_packed

    @kept(**FAST)
    def attend(
        parts, part_sums, qkv, kv, block_tables, seq_lens, entries, units, first_part, counters, which,
        num_q_heads, scale, window, softcap, desk, kinds, num_workers,
    ):  # fmt: skip
        num_kv_heads, head_dim = kv.shape[2], numbers_of(kv)
        group, width = num_q_heads // num_kv_heads, padded_width(head_dim)
        rows, packed, q, weights, scores, turned, _, part, _, of_chunk, _, ranges, places, row = workspace(
            desk, width, kinds
        )
        scratch = packed, turned, rows, places
        num_items = (units.shape[0] - 1) * num_kv_heads
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
            unit_entries = entries[units[unit] : units[unit + 1]]
            count = unit_entries.shape[0] * group
            seq, start = unit_entries[0, 0], unit_entries[0, 1] * KEYS
            num_keys = min(KEYS, seq_lens[seq] - start)
            if window > 0 and _is_out_of_sight(
                part_sums, unit_entries, first_part, seq_lens, head, start + num_keys, window
            ):
                continue
            load(q, row, qkv, unit_entries[:, 0], head * group, group, scale)
            # Memory is read ahead in both: V, and then what the next item begins with.
            score(scores, scratch, kv, block_tables[seq], head, start, num_keys, q, count)
            cap_scores(scores, count, softcap)
            for r in range(count):
                owner = unit_entries[r // group, 0]
                ranges[r, 0] = max(seq_lens[owner] - window - start, 0) if window > 0 else 0
                ranges[r, 1] = num_keys
            weigh_rows(weights, of_chunk, scores, ranges, count)
            has_next = following < num_items
            if has_next:
                entry = entries[units[following // num_kv_heads]]
                _expect_keys(places[2], kv, block_tables, seq_lens, entry, following % num_kv_heads)
            sum_values(part, scratch, kv, block_tables[seq], head, start, num_keys, weights, count, has_next)
            for r in range(count):
                owner, chunk = unit_entries[r // group, 0], unit_entries[r // group, 1]
                _put_row(parts[first_part[owner] + chunk, head, r % group], part, r * width)
                # Number by number: for a slice, numba spends seconds on a message about shapes that do not match.
                of_part, i = part_sums[first_part[owner] + chunk, head], r % group
                of_part[0, i], of_part[1, i] = of_chunk[0, r], of_chunk[1, r]

    return attend


@_compiled
def _is_out_of_sight(part_sums, unit_entries, first_part, seq_lens, head, end, window):
    """Whether the keys before ``end`` are behind the windows of all of a unit's sequences; if so, notes it."""
    for entry in unit_entries:
        if seq_lens[entry[0]] - window < end:
            return False
    for entry in unit_entries:
        of_chunk = part_sums[first_part[entry[0]] + entry[1], head]
        of_chunk[0], of_chunk[1] = _MINUS_INF, _ZERO
    return True


@_compiled
def _expect_keys(places, kv, block_tables, seq_lens, entry, head):
    """Where K of an entry's chunk is."""
    seq, start = entry[0], entry[1] * KEYS
    expect_tiles(places, kv, 0, block_tables[seq], head, start, min(KEYS, seq_lens[seq] - start))


@_compiled
def _put_row(target, source, at):
    for d in range(0, target.shape[0], BLOCK):
        put_run(target, d, source, at + d, BLOCK)


@_compiled
def _load_rows(q, row, qkv, seqs, first_head, group, scale):
    """The queries of a unit's sequences, as rows of tiles."""
    for r in range(seqs.shape[0] * group):
        tile_query(q, r, qkv[seqs[r // group], first_head + r % group], row, scale)


def _load_either(few):
    """`_load_rows`, or up to so many of them as weights."""

    @_compiled
    def load(q, row, qkv, seqs, first_head, group, scale):
        count = seqs.shape[0] * group
        if count > few:
            _load_rows(q, row, qkv, seqs, first_head, group, scale)
            return
        for r in range(count):
            pack_query(q, r, qkv[seqs[r // group], first_head + r % group], row, scale)

    return load


@_compiled
def _score_packed(scores, scratch, kv, table, head, start, num_keys, q, count):
    """Scores of some rows: Q Kᵀ, with K laid out as weights.

    Args:
        scores: float32 [32 · KEYS], a row after the other.
        scratch: Of `workspace`: K or V as weights, scores turned round, copies of rows, and places, of which the first
            are for tiles that are read, and the last say what comes next.
        q: From `tile_query`.
    """
    width = padded_width(numbers_of(kv))
    packed, _, rows, places = scratch
    find_tiles(places[0], rows, kv, 0, table, head, start, num_keys, width)
    pack_keys(packed, 0, places[0], width, num_keys)
    for g in range(groups_of(num_keys)):
        multiply_rows(scores, g * GROUP, KEYS, packed, g * GROUP * width, width, q, width, count)


def _score_either(few):
    """`_score_packed`, or `_score_turned` for up to so many rows."""

    @_compiled
    def score(scores, scratch, kv, table, head, start, num_keys, q, count):
        fetch_rows(kv, 1, table, head, start, num_keys)
        if count > few:
            _score_packed(scores, scratch, kv, table, head, start, num_keys, q, count)
        else:
            _score_turned(scores, scratch, kv, table, head, start, num_keys, q, count)

    return score


@_compiled
def _score_turned(scores, scratch, kv, table, head, start, num_keys, q, count):
    """Scores of a few rows, which are the weights here: K Qᵀ, turned round.

    Args:
        scores, scratch: As for `_score_packed`. q: from `pack_query`.
    """
    width = padded_width(numbers_of(kv))
    _, turned, rows, places = scratch
    find_tiles(places[0], rows, kv, 0, table, head, start, num_keys, width)
    for pair in range(groups_of(num_keys)):
        at, other = places[0, 2 * pair], places[0, 2 * pair + 1]
        to, tile = 2 * pair * ROWS * TILE_ROWS, (other - at) // rows.itemsize
        multiply_few(turned, to, TILE_ROWS, q, 0, width // BLOCK, rows_at(at, width, rows), 0, tile, width, BLOCK)
    # What is beyond the keys means nothing, and is weighed with nothing.
    for r in range(count):
        for key in range(num_keys):
            scores[r * KEYS + key] = turned[key * TILE_ROWS + r]


@_compiled
def _sum_packed(part, scratch, kv, table, head, start, num_keys, weights, count, has_next):
    """Sums of values of some rows: P V, with V laid out as weights.

    Args:
        part: float32 [32 · padded width], a row after the other.
        scratch: As for `_score_packed`. weights: from `weigh_rows`.
        has_next: Whether the last places are to be asked for.
    """
    width, tile_bytes = padded_width(numbers_of(kv)), ROWS * kv.shape[4] * kv.itemsize
    packed, _, rows, places = scratch
    for tile in range(TILES if has_next else 0):
        fetch(array_at(places[2, tile], (tile_bytes,), _BYTES), 0, tile_bytes)
    find_tiles(places[0], rows, kv, 1, table, head, start, num_keys, width)
    pack_values(packed, 0, places[0], width, num_keys)
    num_inputs = groups_of(num_keys) * GROUP
    for d in range(width // GROUP):
        multiply_rows(part, d * GROUP, width, packed, d * KEYS * GROUP, num_inputs, weights, KEYS, count)


@kept(**FAST)
def merge_decodes(out, parts, part_sums, first_part, num_decodes, head_dim, desk, kinds, rank, size):
    """A rank's share of the decodes: all parts of each query, in order, to its row of tiles."""
    num_kv_heads, group, width = parts.shape[1:]
    _, _, _, _, _, _, total, _, sums, of_chunk, factors, _, _, _ = workspace(desk, width, kinds)
    begin, end = share(num_decodes, rank, size)
    for seq in range(begin, end):
        for head in range(num_kv_heads):
            begin_context(sums, total[:group])
            for part in range(first_part[seq], first_part[seq + 1]):
                for r in range(group):
                    of_chunk[0, r], of_chunk[1, r] = part_sums[part, head, 0, r], part_sums[part, head, 1, r]
                merge(total.reshape(-1), sums, parts[part, head].reshape(-1), of_chunk, factors, group, width)
            for r in range(group):
                column = (head * group + r) * head_dim
                store(out, seq, column, num_kv_heads * group * head_dim, total[r, :head_dim], sums[1, r])
