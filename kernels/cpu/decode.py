"""Decode attention over paged KV, in numba: it reads the blocks where they lie.

A decode step is bound by how fast K and V come from memory, so all query heads of one KV head share one pass over
its K and V. The work is cut into items that never look at the rest of the batch:

    item = (sequence, KV head, chunk of CHUNK tokens)  →  partial out [group, head_dim], lse [group]

Fixed-size chunks balance ragged batches over the cores and make a sequence's result independent of its company.
A second pass merges the chunks of each head by their log-sum-exp (flash-decoding). Scores live in units of log 2.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange, types

from octavo.kernels.cpu.bits import narrow, widen
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import FAST, LOG2E, exp2, softcapped
from octavo.kernels.cpu.rows import score_run, weigh_run
from octavo.kernels.cpu.softmax import exponentiate, largest

CHUNK = 256

_ZERO, _ONE, _MINUS_INF = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_compiled = njit(**FAST)


@cache
def decode_kernel(stored: types.Type, cached: types.Type, group: int, head_dim: int):
    """The kernel for one model; its shape is constant in it, which the vector code of `rows` needs.

    Args:
        stored: numba's type of an element of q: see `octavo.kernels.cpu.bits`. cached: of the cache's.
        group: Query heads that share a KV head.
        head_dim: Elements of one head.

    Returns:
        ``decode(out, q, kv, block_tables, seq_lens, scale, window, softcap, sinks, num_workers)``: out and q are
        [num_seqs, num_q_heads, head_dim], sinks is float32 [num_q_heads] or empty, and the rest is as for
        `octavo.kernels.attention.paged_attention`, where the tables may have more rows than there are sequences.
    """
    # Layout "A" takes any strides, so that one compiled kernel serves every caller.
    heads, cache_ = types.Array(stored, 3, "A"), types.Array(cached, 5, "A")
    tables, lengths = types.Array(types.int32, 2, "A"), types.Array(types.int32, 1, "A")
    real, number = types.float32, types.int64
    signature = types.void(heads, heads, cache_, tables, lengths, real, number, real, real[::1], number)

    @kept(signature, parallel=True, nogil=True, **FAST)
    def decode(out, q, kv, block_tables, seq_lens, scale, window, softcap, sinks, num_workers):
        num_seqs, num_kv_heads = q.shape[0], kv.shape[2]
        first_item = _first_items(seq_lens[:num_seqs], window, num_kv_heads)
        partial = np.empty((first_item[num_seqs], group, head_dim), np.float32)
        lse = np.empty((first_item[num_seqs], group), np.float32)
        for worker in prange(num_workers):
            _attend_share(
                partial, lse, q, kv, block_tables, seq_lens, first_item, scale, window, softcap,
                worker, num_workers, group, head_dim,
            )  # fmt: skip
        # Serial: it reads one row of out per CHUNK rows of K and V, and a second fork and join would cost more.
        _merge(out, partial, lse, first_item, num_kv_heads, sinks)

    return decode


@_compiled
def _first_key(seq_len, window):
    """The first position that the query, which is the sequence's last token, sees."""
    return max(seq_len - window, 0) if window > 0 else 0


@_compiled
def _first_items(seq_lens, window, num_kv_heads):
    """int64 [num_seqs + 1]: the first work item of each sequence, and their number at the end."""
    first = np.zeros(seq_lens.shape[0] + 1, np.int64)
    for seq in range(seq_lens.shape[0]):
        visible = seq_lens[seq] - _first_key(seq_lens[seq], window)
        first[seq + 1] = first[seq] + (visible + CHUNK - 1) // CHUNK * num_kv_heads
    return first


@_compiled
def _attend_share(
    partial, lse, q, kv, block_tables, seq_lens, first_item, scale, window, softcap,
    worker, num_workers, group, head_dim,
):  # fmt: skip
    """One worker's share of the items: a contiguous range, because neighbours share their sequence's blocks."""
    num_items, num_kv_heads = partial.shape[0], kv.shape[2]
    query = np.empty((group, head_dim), np.float32)
    scores = np.empty((group, CHUNK), np.float32)
    seq = 0
    for item in range(num_items * worker // num_workers, num_items * (worker + 1) // num_workers):
        while first_item[seq + 1] <= item:
            seq += 1
        chunks = (first_item[seq + 1] - first_item[seq]) // num_kv_heads
        head, chunk = (item - first_item[seq]) // chunks, (item - first_item[seq]) % chunks
        start = _first_key(seq_lens[seq], window) + chunk * CHUNK
        count = min(CHUNK, seq_lens[seq] - start)
        table = block_tables[seq]

        _load_query(query, q[seq, head * group : (head + 1) * group], scale)
        _score(scores, query, kv, head, table, start, count, group, head_dim)
        for g in range(group):
            lse[item, g] = _exponentiate(scores[g, :count], softcap)
        _weigh(partial[item], scores, kv, head, table, start, count, group, head_dim)


@_compiled
def _load_query(query, q, scale):
    for g in range(query.shape[0]):
        for d in range(query.shape[1]):
            query[g, d] = widen(q[g, d]) * (scale * LOG2E)


@_compiled
def _stride(kv, axis):
    return kv.strides[axis] // kv.itemsize


@_compiled
def _locate(kv, table, position):
    """Where a position's slot begins in the cache, in elements, and how many slots its block has from there on."""
    block_size = kv.shape[3]
    offset = position % block_size
    # int64: block · stride passes 2^31 in pools of a few GiB.
    return np.int64(table[position // block_size]) * _stride(kv, 0) + offset * _stride(kv, 3), block_size - offset


@_compiled
def _score(scores, query, kv, head, table, start, count, group, head_dim):
    """scores[g, t] = query[g] · K[start + t]."""
    k = head * _stride(kv, 2)
    done = 0
    at, run = _locate(kv, table, start)
    while done < count:
        ahead, next_run = _locate(kv, table, min(start + done + run, start + count - 1))
        run = min(run, count - done)
        score_run(scores, done, query, kv, k + at, _stride(kv, 3), run, k + ahead, group, head_dim)
        done += run
        at, run = ahead, next_run


@_compiled
def _weigh(acc, weights, kv, head, table, start, count, group, head_dim):
    """acc[g] = Σ_t weights[g, t] · V[start + t]."""
    v = head * _stride(kv, 2) + _stride(kv, 1)
    acc[:] = _ZERO
    done = 0
    at, run = _locate(kv, table, start)
    while done < count:
        ahead, next_run = _locate(kv, table, min(start + done + run, start + count - 1))
        run = min(run, count - done)
        weigh_run(acc, weights, done, kv, v + at, _stride(kv, 3), run, v + ahead, group, head_dim)
        done += run
        at, run = ahead, next_run


@_compiled
def _exponentiate(scores, softcap):
    """Turns one head's scores into weights that sum to 1; returns log2 Σ 2^score."""
    if softcap > _ZERO:
        for t in range(scores.shape[0]):
            scores[t] = softcapped(scores[t], softcap * LOG2E)
    top = largest(scores)
    total = exponentiate(scores, top)
    scores *= _ONE / total
    return top + np.log2(total)


@_compiled
def _merge(out, partial, lse, first_item, num_kv_heads, sinks):
    """Each head's chunks into its row of out [num_seqs, num_q_heads, head_dim]."""
    group = partial.shape[1]
    for seq in range(out.shape[0]):
        chunks = (first_item[seq + 1] - first_item[seq]) // num_kv_heads
        for q_head in range(out.shape[1]):
            begin, g = first_item[seq] + q_head // group * chunks, q_head % group
            sink = sinks[q_head] * LOG2E if sinks.shape[0] > 0 else _MINUS_INF
            _merge_head(out[seq, q_head], partial[begin : begin + chunks, g], lse[begin : begin + chunks, g], sink)


@_compiled
def _merge_head(out, partial, lse, sink):
    """out = Σ_c 2^(lse_c − top) · partial_c / (Σ_c 2^(lse_c − top) + 2^(sink − top)) over the chunks c."""
    top = sink
    for c in range(lse.shape[0]):
        top = max(top, lse[c])
    weights = np.empty(lse.shape[0], np.float32)
    for c in range(lse.shape[0]):
        weights[c] = exp2(lse[c] - top)
    total = weights.sum() + exp2(sink - top)
    for d in range(out.shape[0]):
        merged = _ZERO
        for c in range(lse.shape[0]):
            merged += weights[c] * partial[c, d]
        # Without a chunk this is a padded row, of length 0: its output is zeros.
        out[d] = narrow(merged / total if lse.shape[0] > 0 else _ZERO, out[d])
