"""Decode attention over paged KV, in numba: it reads the blocks where they lie.

A decode step is bound by how fast K and V come from memory, so all query heads of one KV head share one pass over
its K and V. The work is cut into items that never look at the rest of the batch:

    item = (sequence, KV head, chunk of CHUNK tokens)  →  partial out [group, head_dim], lse [group]

Fixed-size chunks balance ragged batches over the cores and make a sequence's result independent of its company.
A second pass merges the chunks of each head by their log-sum-exp (flash-decoding).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import njit, prange

from octavo.kernels.cpu.bits import narrow, widen
from octavo.kernels.cpu.elementary import FASTMATH, LOG2E, exp2, softcapped

CHUNK = 256

_inlined = njit(fastmath=FASTMATH, forceinline=True, error_model="numpy")
_ZERO, _MINUS_INF = np.float32(0.0), np.float32(-np.inf)


@cache
def decode_kernel(head_dim: int, group: int):
    """The kernel for one model; head_dim and group are constants in it, so that LLVM unrolls over them.

    Args:
        head_dim: Elements of one head.
        group: Query heads that share a KV head.

    Returns:
        ``decode(out, q, kv, strides, block_size, num_kv_heads, block_tables, seq_lens, scale, window, softcap,
        sinks, num_workers)``: out and q are [num_seqs, num_q_heads, head_dim], kv is the flat cache, strides are
        its strides over (block, K or V, head, slot), and sinks is float32 [num_q_heads] or empty.
    """

    @njit(parallel=True, fastmath=FASTMATH, error_model="numpy", nogil=True, cache=True)
    def decode(
        out, q, kv, strides, block_size, num_kv_heads, block_tables, seq_lens, scale, window, softcap, sinks, num_workers
    ):
        num_seqs = seq_lens.shape[0]
        first_item = _first_items(seq_lens, window, num_kv_heads)
        num_items = first_item[num_seqs]
        partial = np.empty((num_items, group, head_dim), np.float32)
        lse = np.empty((num_items, group), np.float32)

        for worker in prange(num_workers):
            query = np.empty((group, head_dim), np.float32)
            scores = np.empty((group, CHUNK), np.float32)
            seq = 0
            for item in range(num_items * worker // num_workers, num_items * (worker + 1) // num_workers):
                while first_item[seq + 1] <= item:
                    seq += 1
                num_chunks = (first_item[seq + 1] - first_item[seq]) // num_kv_heads
                head, chunk = divmod(item - first_item[seq], num_chunks)
                start, end = _chunk_bounds(chunk, seq_lens[seq], window)
                k_head = head * strides[2]
                v_head = k_head + strides[1]
                table = block_tables[seq]
                _load_query(query, q[seq], head * group, scale * LOG2E, group, head_dim)
                _score(scores, query, kv, k_head, strides, table, block_size, start, end, group, head_dim)
                _soften(scores, lse[item], end - start, softcap, group)
                _weigh(partial[item], scores, kv, v_head, strides, table, block_size, start, end, group, head_dim)

        for worker in prange(num_workers):
            for row in range(num_seqs * num_kv_heads * worker // num_workers, num_seqs * num_kv_heads * (worker + 1) // num_workers):
                seq, head = divmod(row, num_kv_heads)
                num_chunks = (first_item[seq + 1] - first_item[seq]) // num_kv_heads
                begin = first_item[seq] + head * num_chunks
                for g in range(group):
                    _merge(out[seq, head * group + g], partial, lse, begin, begin + num_chunks, g, sinks, head * group + g, head_dim)

    return decode


@njit(error_model="numpy")
def _first_items(seq_lens, window, num_kv_heads):
    """int64 [num_seqs + 1]: the first work item of each sequence, and their number at the end."""
    first = np.zeros(seq_lens.shape[0] + 1, np.int64)
    for seq in range(seq_lens.shape[0]):
        visible = seq_lens[seq] - _first_key(seq_lens[seq], window)
        first[seq + 1] = first[seq] + (visible + CHUNK - 1) // CHUNK * num_kv_heads
    return first


@_inlined
def _first_key(seq_len, window):
    return max(seq_len - window, 0) if window > 0 else 0


@_inlined
def _chunk_bounds(chunk, seq_len, window):
    start = _first_key(seq_len, window) + chunk * CHUNK
    return start, min(start + CHUNK, seq_len)


@_inlined
def _slot(table, position, block_size, strides):
    # int64: block · stride passes 2^31 in pools of a few GiB.
    return np.int64(table[position // block_size]) * strides[0] + (position % block_size) * strides[3]


@_inlined
def _load_query(query, q, first_head, scale, group, head_dim):
    for g in range(group):
        for d in range(head_dim):
            query[g, d] = widen(q[first_head + g, d]) * scale


@_inlined
def _score(scores, query, kv, k_head, strides, table, block_size, start, end, group, head_dim):
    """scores[g, t] = query[g] · K[start + t], in units of log 2."""
    for t in range(end - start):
        at = k_head + _slot(table, start + t, block_size, strides)
        key = kv[at : at + head_dim]
        for g in range(group):
            dot = _ZERO
            for d in range(head_dim):
                dot += query[g, d] * widen(key[d])
            scores[g, t] = dot


@_inlined
def _soften(scores, lse, count, softcap, group):
    """Turns scores into weights relative to their maximum; lse[g] = log2 Σ 2^score."""
    for g in range(group):
        if softcap > _ZERO:
            for t in range(count):
                scores[g, t] = softcapped(scores[g, t], softcap * LOG2E)
        top = _MINUS_INF
        for t in range(count):
            top = max(top, scores[g, t])
        total = _ZERO
        for t in range(count):
            scores[g, t] = exp2(scores[g, t] - top)
            total += scores[g, t]
        for t in range(count):
            scores[g, t] /= total
        lse[g] = top + math.log2(total)


@_inlined
def _weigh(partial, scores, kv, v_head, strides, table, block_size, start, end, group, head_dim):
    """partial[g] = Σ_t scores[g, t] · V[start + t]."""
    partial[:] = _ZERO
    for t in range(end - start):
        at = v_head + _slot(table, start + t, block_size, strides)
        value = kv[at : at + head_dim]
        for g in range(group):
            for d in range(head_dim):
                partial[g, d] += scores[g, t] * widen(value[d])


@_inlined
def _merge(out, partial, lse, begin, end, g, sinks, q_head, head_dim):
    """out = Σ_c 2^(lse_c − top) · partial_c / Σ_c 2^(lse_c − top), the sink's weight in the denominator only."""
    top = sinks[q_head] * LOG2E if sinks.shape[0] > 0 else _MINUS_INF
    for item in range(begin, end):
        top = max(top, lse[item, g])
    total = exp2(sinks[q_head] * LOG2E - top) if sinks.shape[0] > 0 else _ZERO
    merged = np.zeros(head_dim, np.float32)
    for item in range(begin, end):
        weight = exp2(lse[item, g] - top)
        total += weight
        for d in range(head_dim):
            merged[d] += weight * partial[item, g, d]
    for d in range(head_dim):
        # No chunk, no sink: a padded row of length 0, whose output is zeros.
        out[d] = narrow(merged[d] / total if end > begin else _ZERO, out[d])
