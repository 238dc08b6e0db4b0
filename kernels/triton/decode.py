"""Decode attention: one query token per sequence, its context cut into splits that run side by side.

    program = (sequence, KV head, split)  →  partial out [group, head_dim] and lse [group]
    merge   = (sequence, query head)      →  out [head_dim]

All query heads of a KV head are the rows of one matrix product, so K and V are read once. A sequence's splits
depend on its own length alone, hence its result does not depend on the rest of the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.softmax import attend_keys, normalised, with_sink
from octavo.kernels.triton.tiles import decode_tile, padded

# A split is at least so long (shorter ones would spend their time on start-up and merging), and there are at most
# so many of them: 32 × 8 KV heads already give every SM of an H100 work at batch 1.
MIN_SPLIT = 256
MAX_SPLITS = 32


def decode(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    max_seq_len: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> None:
    """Attends with one query per sequence.

    Args:
        out: [num_seqs, num_q_heads, head_dim], written.
        q: [num_seqs, num_q_heads, head_dim].
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_dim].
        block_tables: int32 [num_seqs, max_blocks].
        seq_lens: int32 [num_seqs].
        max_seq_len: No sequence is longer; under graph capture, none of any replay. It sizes the grid.
        scale: Factor on the scores.
        window: Keys that the query sees, itself included; 0 means all.
        softcap: Bound on the scores' magnitude; 0 means none.
        sinks: [num_q_heads] extra logits, or None.
    """
    num_seqs, num_q_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2:4]
    group = num_q_heads // num_kv_heads
    tile = decode_tile(head_dim, kv_cache.element_size(), group)
    longest = min(max_seq_len, window) if window else max_seq_len
    num_splits = min(MAX_SPLITS, max(1, triton.cdiv(longest, MIN_SPLIT)))
    partial, lse = _workspace(q, num_splits)

    _decode_kernel[(num_splits, num_kv_heads, num_seqs)](
        out, partial, lse, q, kv_cache, block_tables, seq_lens, sinks,
        *out.stride()[:2], *q.stride()[:2], *kv_cache.stride()[:4], block_tables.stride(0),
        scale, softcap, window,
        GROUP=group, ROWS=tile.rows, HEAD_DIM=head_dim, DIMS=padded(head_dim), BLOCK_SIZE=block_size, KEYS=tile.keys,
        MIN_SPLIT=MIN_SPLIT, MAX_SPLITS=MAX_SPLITS, SPLIT=num_splits > 1, SOFTCAP=softcap > 0, SINKS=sinks is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if num_splits > 1:
        _merge_kernel[(num_q_heads, num_seqs)](
            out, partial, lse, seq_lens, sinks,
            *out.stride()[:2], num_splits, window,
            HEAD_DIM=head_dim, DIMS=padded(head_dim), MIN_SPLIT=MIN_SPLIT, MAX_SPLITS=MAX_SPLITS,
            SINKS=sinks is not None, num_warps=4,
        )  # fmt: skip


def _workspace(q: Tensor, num_splits: int) -> tuple[Tensor, Tensor]:
    """Partial outs [num_seqs, num_q_heads, num_splits, head_dim] and their log2-sum-exp, both float32.

    A single split writes straight to the output, and needs none.
    """
    num_seqs, num_q_heads, head_dim = q.shape
    rows = (num_seqs, num_q_heads, num_splits) if num_splits > 1 else (0, 0, 0)
    partial = torch.empty((*rows, head_dim), dtype=torch.float32, device=q.device)
    return partial, torch.empty(rows, dtype=torch.float32, device=q.device)


@triton.jit
def _visible(seq_len, window, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """The first key that the query sees, and the keys in one split; both follow from the sequence alone."""
    first = tl.where(window > 0, tl.maximum(seq_len - window, 0), 0)
    per_split = tl.cdiv(seq_len - first, MAX_SPLITS)
    return first, tl.maximum(tl.cdiv(per_split, MIN_SPLIT) * MIN_SPLIT, MIN_SPLIT)


@triton.jit(do_not_specialize=["window", "table_stride"], do_not_specialize_on_alignment=["block_tables", "seq_lens"])
def _decode_kernel(
    out, partial, lse, q, kv, block_tables, seq_lens, sinks,
    out_stride_seq, out_stride_head, q_stride_seq, q_stride_head,
    stride_block, stride_kv, stride_head, stride_slot, table_stride,
    scale, softcap, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
    SPLIT: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    seq_len = tl.load(seq_lens + seq)
    first, split_len = _visible(seq_len, window, MIN_SPLIT, MAX_SPLITS)
    begin = first + split * split_len
    end = tl.minimum(begin + split_len, seq_len)
    # Past the sequence's last split; the merge does not look here. A single split goes on, to write its zeros.
    if SPLIT and begin >= end:
        return

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    heads = kv_head * GROUP + rows
    real = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    query = tl.load(q + seq * q_stride_seq + heads[:, None] * q_stride_head + dims[None, :], mask=real, other=0.0)

    k_head = kv + kv_head.to(tl.int64) * stride_head
    v_head = k_head + stride_kv
    table = block_tables + seq * table_stride
    position = tl.full([ROWS], 0, tl.int32) + (end - 1)
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    whole = begin + tl.maximum(end - begin, 0) // KEYS * KEYS
    acc, top, total = attend_keys(
        acc, top, total, query, position, k_head, v_head, table, stride_block, stride_slot,
        begin, whole, end, scale, softcap, window,
        HEAD_DIM, DIMS, BLOCK_SIZE, KEYS, MASKED=False, SOFTCAP=SOFTCAP, WINDOWED=False,
    )  # fmt: skip
    acc, top, total = attend_keys(
        acc, top, total, query, position, k_head, v_head, table, stride_block, stride_slot,
        whole, end, end, scale, softcap, window,
        HEAD_DIM, DIMS, BLOCK_SIZE, KEYS, MASKED=True, SOFTCAP=SOFTCAP, WINDOWED=False,
    )  # fmt: skip

    if SPLIT:
        row = (seq * (tl.num_programs(1) * GROUP) + heads) * tl.num_programs(0) + split
        tl.store(partial + row[:, None] * HEAD_DIM + dims[None, :], normalised(acc, total), mask=real)
        tl.store(lse + row, top + tl.log2(total), mask=rows < GROUP)
    else:
        if SINKS:
            pivot, sunk = with_sink(top, total, sinks, heads, rows < GROUP)
            acc, total = acc * tl.exp2(top - pivot)[:, None], sunk
        to = out + seq * out_stride_seq + heads[:, None] * out_stride_head + dims[None, :]
        tl.store(to, normalised(acc, total).to(out.dtype.element_ty), mask=real)


# Counts that change from step to step must not compile variants of their own.
@triton.jit(do_not_specialize=["num_splits", "window"])
def _merge_kernel(
    out, partial, lse, seq_lens, sinks,
    out_stride_seq, out_stride_head, num_splits, window,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """out = Σ_s 2^(lse_s − top) · partial_s / (Σ_s 2^(lse_s − top) + the sink's weight)."""
    head, seq = tl.program_id(0), tl.program_id(1).to(tl.int64)
    seq_len = tl.load(seq_lens + seq)
    first, split_len = _visible(seq_len, window, MIN_SPLIT, MAX_SPLITS)
    live_splits = tl.cdiv(seq_len - first, split_len)

    splits, dims = tl.arange(0, MAX_SPLITS), tl.arange(0, DIMS)
    live, real_dim = splits < live_splits, dims < HEAD_DIM
    row = (seq * tl.num_programs(0) + head) * num_splits + splits
    lses = tl.load(lse + row, mask=live, other=float("-inf"))
    top = tl.max(lses, axis=0)
    pivot = tl.where(top == float("-inf"), 0.0, top)
    if SINKS:
        pivot, sink_weight = with_sink(pivot, 0.0, sinks, head, True)
    weights = tl.exp2(lses - pivot)
    total = tl.sum(weights, axis=0)
    if SINKS:
        total += sink_weight
    parts = tl.load(
        partial + row[:, None] * HEAD_DIM + dims[None, :], mask=live[:, None] & real_dim[None, :], other=0.0
    )
    merged = tl.sum(parts * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    to = out + seq * out_stride_seq + head * out_stride_head + dims
    tl.store(to, merged.to(out.dtype.element_ty), mask=real_dim)
