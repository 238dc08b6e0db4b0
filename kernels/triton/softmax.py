"""The inner loop that decode and prefill share: online softmax over the keys of a block table.

Scores live in units of log 2, so that the exponential is the hardware's exp2 (arXiv:2205.14135 gives the
recurrence). Unused slots of a block may hold anything, NaN included: keys past the end are masked when loaded,
because a weight of 0 does not silence a NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_keys(
    acc, top, total,
    q, row_position,
    k_head, v_head, table, stride_block, stride_slot,
    begin, end, limit,
    scale, softcap, window,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Folds the keys at positions begin … end − 1, KEYS at a time, into (acc, top, total).

    acc [rows, DIMS] is the weighted sum of V relative to the maximum score top [rows], total [rows] the sum of
    weights. A row at row_position sees keys up to its own position and, WINDOWED, the last ``window`` of them.
    Unless MASKED, every row sees every key of the range, which is a multiple of KEYS long; no key at or past
    ``limit`` is read.
    """
    dims = tl.arange(0, DIMS)
    real_dim = dims < HEAD_DIM
    for first in range(begin, end, KEYS):
        keys = first + tl.arange(0, KEYS)
        live = keys < limit if MASKED else tl.full([KEYS], True, tl.int1)
        # int64: block · stride passes 2^31 in pools of a few GiB.
        block = tl.load(table + keys // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
        slot = block * stride_block + (keys % BLOCK_SIZE) * stride_slot

        k = tl.load(k_head + slot[None, :] + dims[:, None], mask=live[None, :] & real_dim[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            scores = softcapped(scores, softcap)
        scores *= LOG2E
        if MASKED:
            seen = keys[None, :] <= row_position[:, None]
            if WINDOWED:
                seen = seen & (keys[None, :] > row_position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A row that has seen no key yet stays at −inf; subtracting 0 from it avoids −inf − −inf.
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - pivot[:, None])
        decay = tl.exp2(top - pivot)
        total = total * decay + tl.sum(weights, axis=1)
        top = new_top

        v = tl.load(v_head + slot[:, None] + dims[None, :], mask=live[:, None] & real_dim[None, :], other=0.0)
        acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return acc, top, total


@triton.jit
def softcapped(scores, softcap):
    """softcap · tanh(scores / softcap); in this form an overflowing exponential still gives ±softcap."""
    return softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E) / softcap) + 1.0))


@triton.jit
def with_sink(top, total, sinks, head, mask):
    """The new maximum, and the sum of weights relative to it, once the heads' sinks have joined the softmax."""
    sink = tl.load(sinks + head, mask=mask, other=float("-inf")).to(tl.float32) * LOG2E
    new_top = tl.maximum(top, sink)
    pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
    return pivot, total * tl.exp2(top - pivot) + tl.exp2(sink - pivot)


@triton.jit
def normalised(acc, total):
    """acc / total per row; zeros for a row that saw no key."""
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
