"""Writes to the KV cache on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Slots of one block that one program copies.
SLOTS = 16


def write_kv(k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Scatters k and v [num_tokens, num_kv_heads, head_dim] to their slots; negative slots are skipped."""
    num_tokens, num_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    _write_kernel[(num_tokens,)](
        k, v, kv_cache, slot_mapping,
        *k.stride()[:2], *v.stride()[:2], *kv_cache.stride()[:4],
        NUM_HEADS=num_heads, HEADS=triton.next_power_of_2(num_heads),
        HEAD_DIM=head_dim, DIMS=triton.next_power_of_2(head_dim), BLOCK_SIZE=kv_cache.shape[3],
    )  # fmt: skip


def copy_blocks(kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copies whole blocks src → dst (int64 [n] block ids); no block may be in both."""
    if src.shape[0] == 0:
        return
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    _copy_kernel[(src.shape[0], 2 * num_kv_heads, triton.cdiv(block_size, SLOTS))](
        kv_cache, src, dst, *kv_cache.stride()[:4],
        HEAD_DIM=head_dim, DIMS=triton.next_power_of_2(head_dim), BLOCK_SIZE=block_size, SLOTS=SLOTS,
    )  # fmt: skip


@triton.jit
def _write_kernel(
    k, v, kv, slot_mapping,
    k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    stride_block, stride_kv, stride_head, stride_slot,
    NUM_HEADS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)  # int64, and so is every product below
    if slot < 0:
        return
    heads, dims = tl.arange(0, HEADS)[:, None], tl.arange(0, DIMS)[None, :]
    real = (heads < NUM_HEADS) & (dims < HEAD_DIM)
    to = kv + slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * stride_slot + heads * stride_head + dims
    tl.store(to, tl.load(k + token * k_stride_token + heads * k_stride_head + dims, mask=real), mask=real)
    tl.store(to + stride_kv, tl.load(v + token * v_stride_token + heads * v_stride_head + dims, mask=real), mask=real)


@triton.jit
def _copy_kernel(
    kv, src, dst, stride_block, stride_kv, stride_head, stride_slot,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    pair, plane = tl.program_id(0), tl.program_id(1)
    slots = (tl.program_id(2) * SLOTS + tl.arange(0, SLOTS))[:, None]
    dims = tl.arange(0, DIMS)[None, :]
    real = (slots < BLOCK_SIZE) & (dims < HEAD_DIM)
    within = plane % 2 * stride_kv + plane // 2 * stride_head + slots * stride_slot + dims
    from_block, to_block = tl.load(src + pair), tl.load(dst + pair)  # int64, and so are the products below
    tl.store(
        kv + to_block * stride_block + within, tl.load(kv + from_block * stride_block + within, mask=real), mask=real
    )
