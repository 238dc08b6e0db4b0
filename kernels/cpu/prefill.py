"""Prefill on a CPU: gather a sequence's context once, then torch's fused attention over it.

The fused kernel also returns the log-sum-exp of each row, and that is all the rest needs: a chunk over earlier
context is one unmasked call over the past and one causal call over the chunk itself, merged by lse, so no
[query, context] mask is ever built; an attention sink is a factor ``sigmoid(lse − sink)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.kv_rows import dequantize
from octavo.kernels.reference import attend_dense

# Queries that share one dense score matrix on the paths that need one (windows and soft caps).
TILE = 128


def gather_context(kv_cache: Tensor, block_table: Tensor, seq_len: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One sequence's K and V out of its blocks, each [num_kv_heads, seq_len, head_dim] of ``dtype``."""
    block_size = kv_cache.shape[3]
    blocks = block_table[: -(-seq_len // block_size)]
    # index_select copies whole rows of a block; indexing with brackets takes three to six times as long here.
    context = torch.index_select(kv_cache.permute(1, 2, 0, 3, 4), 2, blocks)
    k, v = context.flatten(2, 3)[:, :, :seq_len].unbind(0)
    return (dequantize(k, dtype), dequantize(v, dtype)) if kv_cache.dtype is torch.int8 else (k, v)


def attend_sequence(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Causal attention of one sequence whose queries are the last positions of its context.

    Args:
        q: [query_len, num_q_heads, head_dim].
        k: [num_kv_heads, seq_len, head_dim].
        v: As k.
        scale: Factor on the scores.
        window: Keys that a query sees, itself included; 0 means all.
        softcap: Bound on the scores' magnitude; 0 means none.
        sinks: [num_q_heads] extra logits, or None.

    Returns:
        [query_len, num_q_heads, head_dim].
    """
    if softcap or 0 < window < k.shape[1]:
        return _attend_tiled(q, k, v, scale=scale, window=window, softcap=softcap, sinks=sinks)
    grouped = q.unflatten(1, (k.shape[0], -1)).permute(1, 2, 0, 3)  # [kv head, group, query, head_dim]
    out, lse = _attend_causal(grouped, k, v, scale)
    if sinks is not None:
        out = out * torch.sigmoid(lse - sinks.float().view(k.shape[0], -1, 1)).unsqueeze(-1)
    return out.permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)


def _attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    past = k.shape[1] - q.shape[2]
    own, own_lse = _fused(q, k[:, past:], v[:, past:], scale, causal=True)
    if past == 0:
        return own, own_lse
    earlier, earlier_lse = _fused(q, k[:, :past], v[:, :past], scale, causal=False)
    share = torch.sigmoid(own_lse - earlier_lse).unsqueeze(-1)
    return torch.lerp(earlier.float(), own.float(), share), torch.logaddexp(own_lse, earlier_lse)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    # KV heads take the batch dimension, so that the query heads of a group share K and V through a stride of 0.
    k, v = (x.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for x in (k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _attend_tiled(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Tile by tile over the queries, each over the keys that any of its queries sees."""
    past = k.shape[1] - q.shape[0]
    tiles = []
    for start in range(0, q.shape[0], TILE):
        tile = q[start : start + TILE]
        end = past + start + tile.shape[0]
        keys = slice(max(past + start + 1 - window, 0) if window else 0, end)
        k_seen, v_seen = k[:, keys].transpose(0, 1), v[:, keys].transpose(0, 1)
        tiles.append(attend_dense(tile, k_seen, v_seen, scale=scale, window=window, softcap=softcap, sinks=sinks))
    return torch.cat(tiles)
