"""Prefill attention: chunks of queries of any lengths, each over its own paged context.

A program takes one KV head and as many query tokens of one sequence as fit in its rows; row m is query head
``m % group`` of token ``m // group``, so that any ratio of heads fills the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.softmax import attend_keys, normalised, with_sink
from octavo.kernels.triton.tiles import padded, prefill_tile


def prefill(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_query_lens: Tensor,
    *,
    max_query_len: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> None:
    """Attends with several queries per sequence.

    Args:
        out: [num_tokens, num_q_heads, head_dim]; the rows of these sequences are written.
        q: [num_tokens, num_q_heads, head_dim].
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_dim].
        block_tables: int32 [num_seqs, max_blocks].
        seq_lens: int32 [num_seqs].
        cu_query_lens: int32 [num_seqs + 1], rows of q; the first need not be 0.
        max_query_len: No chunk is longer.
        scale: Factor on the scores.
        window: Keys that a query sees, itself included; 0 means all.
        softcap: Bound on the scores' magnitude; 0 means none.
        sinks: [num_q_heads] extra logits, or None.
    """
    num_tokens, num_q_heads, head_dim = q.shape
    num_seqs = seq_lens.shape[0]
    num_kv_heads, block_size = kv_cache.shape[2:4]
    group = num_q_heads // num_kv_heads
    tile = prefill_tile(head_dim, kv_cache.element_size(), group, max_query_len)
    tokens = tile.rows // group
    # A bound that needs no lengths from the GPU: each sequence ends with at most one partial tile.
    num_tiles = num_tokens // tokens + num_seqs

    _prefill_kernel[(num_tiles, num_kv_heads)](
        out, q, kv_cache, block_tables, seq_lens, cu_query_lens, sinks,
        *out.stride()[:2], *q.stride()[:2], *kv_cache.stride()[:4], block_tables.stride(0),
        num_seqs, scale, softcap, window,
        GROUP=group, TOKENS=tokens, ROWS=tile.rows, HEAD_DIM=head_dim, DIMS=padded(head_dim),
        BLOCK_SIZE=block_size, KEYS=tile.keys,
        SOFTCAP=softcap > 0, WINDOWED=window > 0, SINKS=sinks is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
def _find_sequence(cu_query_lens, num_seqs, tile, TOKENS: tl.constexpr):
    """The sequence that a tile belongs to, and the tile's number in it.

    Sequence i's tiles begin at ``cu_query_lens[i] // TOKENS + i``, which leaves each at least its whole and one
    partial tile; a binary search finds the last sequence that begins at or before this one.
    """
    origin = tl.load(cu_query_lens)
    low, high = tl.full([], 0, tl.int32), num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(cu_query_lens + middle) - origin) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - ((tl.load(cu_query_lens + low) - origin) // TOKENS + low)


# A count that changes from step to step must not compile a variant of its own.
@triton.jit(
    do_not_specialize=["num_seqs", "window", "table_stride"],
    do_not_specialize_on_alignment=["block_tables", "seq_lens", "cu_query_lens"],
)
def _prefill_kernel(
    out, q, kv, block_tables, seq_lens, cu_query_lens, sinks,
    out_stride_token, out_stride_head, q_stride_token, q_stride_head,
    stride_block, stride_kv, stride_head, stride_slot, table_stride,
    num_seqs, scale, softcap, window,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    # Backwards, because a sequence's last tile has the most keys: long programs start first.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    seq, tile = _find_sequence(cu_query_lens, num_seqs, tile, TOKENS)
    start = tl.load(cu_query_lens + seq)
    query_len = tl.load(cu_query_lens + seq + 1) - start
    if tile * TOKENS >= query_len:
        return
    past = tl.load(seq_lens + seq) - query_len

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token = tile * TOKENS + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    real_row = (rows < TOKENS * GROUP) & (token < query_len)
    real = real_row[:, None] & (dims < HEAD_DIM)[None, :]
    # int64: token · stride passes 2^31 in long prefills.
    at = (start + token).to(tl.int64)
    query = tl.load(
        q + at[:, None] * q_stride_token + heads[:, None] * q_stride_head + dims[None, :], mask=real, other=0.0
    )

    # Keys that some row sees: begin … end − 1. Keys that every row sees, in whole tiles: all_from … all_to − 1.
    #
    #     begin        all_from                 all_to        end
    #       │ window's edge │      no mask         │  diagonal  │
    position = past + token
    first_position = past + tile * TOKENS
    last_position = past + tl.minimum((tile + 1) * TOKENS, query_len) - 1
    end = last_position + 1
    begin = 0
    all_from = 0
    if WINDOWED:
        begin = tl.maximum(first_position - window + 1, 0)
        all_from = begin + tl.cdiv(tl.maximum(last_position - window + 1 - begin, 0), KEYS) * KEYS
        all_from = tl.minimum(all_from, tl.maximum(end, begin))
    all_to = all_from + tl.maximum(first_position + 1 - all_from, 0) // KEYS * KEYS

    k_head = kv + kv_head.to(tl.int64) * stride_head
    v_head = k_head + stride_kv
    table = block_tables + seq.to(tl.int64) * table_stride
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if WINDOWED:
        acc, top, total = attend_keys(
            acc, top, total, query, position, k_head, v_head, table, stride_block, stride_slot,
            begin, all_from, all_from, scale, softcap, window,
            HEAD_DIM, DIMS, BLOCK_SIZE, KEYS, MASKED=True, SOFTCAP=SOFTCAP, WINDOWED=True,
        )  # fmt: skip
    acc, top, total = attend_keys(
        acc, top, total, query, position, k_head, v_head, table, stride_block, stride_slot,
        all_from, all_to, end, scale, softcap, window,
        HEAD_DIM, DIMS, BLOCK_SIZE, KEYS, MASKED=False, SOFTCAP=SOFTCAP, WINDOWED=False,
    )  # fmt: skip
    acc, top, total = attend_keys(
        acc, top, total, query, position, k_head, v_head, table, stride_block, stride_slot,
        all_to, end, end, scale, softcap, window,
        HEAD_DIM, DIMS, BLOCK_SIZE, KEYS, MASKED=True, SOFTCAP=SOFTCAP, WINDOWED=WINDOWED,
    )  # fmt: skip

    if SINKS:
        pivot, sunk = with_sink(top, total, sinks, heads, real_row)
        acc, total = acc * tl.exp2(top - pivot)[:, None], sunk
    to = out + at[:, None] * out_stride_token + heads[:, None] * out_stride_head + dims[None, :]
    tl.store(to, normalised(acc, total).to(out.dtype.element_ty), mask=real)
