"""Plain torch: the oracle that every kernel is compared with. Clear over fast."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.kernels.kv_rows import dequantize, quantize


class ReferenceBackend:
    """Gathers each sequence's context and attends in float32, or in float64 when given that; any device."""

    name = "reference"
    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    reads_int8 = True

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        written = slot_mapping >= 0
        slots = slot_mapping[written]
        block_size = kv_cache.shape[3]
        blocks, offsets = slots // block_size, slots % block_size
        for part, x in enumerate((k, v)):
            rows = quantize(x) if kv_cache.dtype is torch.int8 else x
            kv_cache[blocks, part, :, offsets] = rows[written]

    def attend(
        self,
        q: Tensor,
        kv_cache: Tensor,
        batch: PagedBatch,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        out = torch.zeros_like(q) if out is None else out
        starts, seq_lens = batch.cu_query_lens.tolist(), batch.seq_lens.tolist()
        for i, seq_len in enumerate(seq_lens):
            queries = slice(starts[i], starts[i + 1])
            k, v = gather_context(kv_cache, batch.block_tables[i], seq_len)
            out[queries] = attend_dense(q[queries], k, v, scale=scale, window=window, softcap=softcap, sinks=sinks)
        return out

    def copy_blocks(self, kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        kv_cache[dst] = kv_cache[src]


def gather_context(kv_cache: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """One sequence's K and V, out of its blocks.

    Args:
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, row width].
        block_table: int32 [max_blocks].
        seq_len: Tokens in the context.

    Returns:
        K and V, each [seq_len, num_kv_heads, head_dim]; of float32 where the cache is int8.
    """
    positions = torch.arange(seq_len, device=kv_cache.device)
    block_size = kv_cache.shape[3]
    blocks, offsets = block_table[positions // block_size].long(), positions % block_size
    k, v = kv_cache[blocks, 0, :, offsets], kv_cache[blocks, 1, :, offsets]
    return (dequantize(k, torch.float32), dequantize(v, torch.float32)) if kv_cache.dtype is torch.int8 else (k, v)


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of one sequence whose queries are the last positions of its context.

    Args:
        q: [query_len, num_q_heads, head_dim].
        k: [seq_len, num_kv_heads, head_dim].
        v: As k.
        scale: Factor on the scores.
        window: Keys that a query sees, itself included; 0 means all.
        softcap: Bound on the scores' magnitude; 0 means none.
        sinks: [num_q_heads] extra logits, or None.

    Returns:
        [query_len, num_q_heads, head_dim] of q's dtype; zeros for a query that sees no key.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.to(dtype), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible_keys(q.shape[0], k.shape[0], window, q.device), -torch.inf)
    if sinks is not None:
        extra = sinks.to(dtype)[:, None, None].expand(-1, q.shape[0], 1)
        scores = torch.cat([scores, extra], dim=-1)
    # A query without keys has a row of −inf only, whose softmax is NaN by definition and zeros by our contract.
    sees_nothing = (scores == -torch.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores, dim=-1).masked_fill(sees_nothing, 0.0)
    return torch.einsum("hqk,khd->qhd", weights[..., : k.shape[0]], v).to(q.dtype)


def visible_keys(query_len: int, seq_len: int, window: int, device: torch.device) -> Tensor:
    """bool [query_len, seq_len]: which keys each query sees (causal, bottom-right aligned, windowed)."""
    query = torch.arange(seq_len - query_len, seq_len, device=device)[:, None]
    key = torch.arange(seq_len, device=device)[None, :]
    seen = key <= query
    return seen & (key > query - window) if window else seen
