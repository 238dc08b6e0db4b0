"""Attention of prompts, whole or in pieces, by products of tiles; see `octavo.kernels.cpu.chunks`."""

from __future__ import annotations

import numpy as np

from octavo.kernels.cpu.chunks import begin_context, cap_scores, merge, multiply_rows, store, tile_query, weigh_rows
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import FAST
from octavo.kernels.cpu.packing import GROUP, groups_of
from octavo.kernels.cpu.team import draw
from octavo.kernels.cpu.tile_layout import padded_width, workspace
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS


@kept(**FAST)
def attend_prompts(
    out, qkv, packed, first_chunk, first_item, counters, which,
    seq_lens, cu_query_lens, num_q_heads, num_kv_heads, scale, window, softcap, desk, kinds,
):  # fmt: skip
    """Draws items until none is left: one KV head of a sequence after the other, those with the most keys first.

    Args:
        out: Tiles of [num_tokens, num_q_heads · head_dim].
        qkv: float32 [num_tokens, heads, head_dim], rotated.
        packed, first_chunk: As for `pack_share`.
        first_item: int64 [num_seqs + 1], each sequence's first item, and their number at the end.
        counters, which: What is left is counted there, from zero.
        seq_lens, cu_query_lens: Of the prompts' sequences.
    """
    head_dim, group = qkv.shape[2], num_q_heads // num_kv_heads
    width = padded_width(head_dim)
    _, _, q, weights, scores, _, total, part, sums, of_chunk, factors, ranges, _, row = workspace(desk, width, kinds)
    num_items = first_item[-1]
    while True:
        item = num_items - 1 - draw(counters, which, 1)
        if item < 0:
            return
        seq = np.searchsorted(first_item, item, side="right") - 1
        # One head after the other: its K and V stay in the second-level cache.
        tiles = (first_item[seq + 1] - first_item[seq]) // num_kv_heads
        head, tile = (item - first_item[seq]) // tiles, (item - first_item[seq]) % tiles
        base, token = tile * TILE_ROWS, cu_query_lens[seq]
        query_len = cu_query_lens[seq + 1] - token
        count = min(TILE_ROWS, query_len * group - base)
        for r in range(count):
            query = qkv[token + (base + r) // group, head * group + (base + r) % group]
            tile_query(q, r, query, row, scale)
        # The first and the last position that the item's queries have.
        first = seq_lens[seq] - query_len + base // group
        last = seq_lens[seq] - query_len + (base + count - 1) // group
        begin_context(sums, total)
        earliest = max(first + 1 - window, 0) if window > 0 else 0
        for chunk in range(earliest // KEYS, last // KEYS + 1):
            at = ((first_chunk[seq] + chunk) * num_kv_heads + head) * 2 * KEYS * width
            groups = groups_of(min(KEYS, last + 1 - chunk * KEYS))
            for g in range(groups):
                multiply_rows(scores, g * GROUP, KEYS, packed, at + g * GROUP * width, width, q, width, count)
            for r in range(count):
                position = first + (base + r) // group - base // group - chunk * KEYS
                ranges[r, 0] = max(position + 1 - window, 0) if window > 0 else 0
                ranges[r, 1] = min(position + 1, groups * GROUP)
            cap_scores(scores, count, softcap)
            weigh_rows(weights, of_chunk, scores, ranges, count)
            for d in range(width // GROUP):
                values = at + KEYS * width + d * KEYS * GROUP
                multiply_rows(part, d * GROUP, width, packed, values, groups * GROUP, weights, KEYS, count)
            merge(total.reshape(-1), sums, part, of_chunk, factors, count, width)
        for r in range(count):
            column = (head * group + (base + r) % group) * head_dim
            store(out, token + (base + r) // group, column, num_q_heads * head_dim, total[r, :head_dim], sums[1, r])
