"""The CPU backend: numba where the blocks are walked in place, torch's fused attention for prefill."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.kernels.cpu import cache_ops
from octavo.kernels.cpu.bits import STORAGE, stored
from octavo.kernels.cpu.decode import decode_kernel
from octavo.kernels.cpu.prefill import attend_sequence

_NO_SINKS = np.empty(0, np.float32)


class CpuBackend:
    """Kernels for host memory; one thread may call them at a time."""

    name = "cpu"
    dtypes = frozenset(STORAGE)

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        cache_ops.write_kv(_array(k), _array(v), *_flat(kv_cache), kv_cache.shape[3], slot_mapping.numpy())

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
        decodes = batch.num_decodes
        if decodes:
            _decode(out[:decodes], q[:decodes], kv_cache, batch, scale, window, softcap, sinks)
        if decodes < batch.num_seqs:
            starts, seq_lens = batch.cu_query_lens.tolist(), batch.seq_lens.tolist()
            for i in range(decodes, batch.num_seqs):
                queries = slice(starts[i], starts[i + 1])
                if seq_lens[i] and queries.start < queries.stop:
                    k, v = gather_context(kv_cache, batch.block_tables[i], seq_lens[i])
                    out[queries] = attend_sequence(
                        q[queries], k, v, scale=scale, window=window, softcap=softcap, sinks=sinks
                    )
        return out

    def copy_blocks(self, kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        kv_cache[dst] = kv_cache[src]


def gather_context(kv_cache: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """One sequence's K and V, each [num_kv_heads, seq_len, head_dim]."""
    block_size = kv_cache.shape[3]
    blocks = kv_cache[block_table[: -(-seq_len // block_size)].long()]
    k, v = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :seq_len].unbind(0)
    return k, v


def _decode(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> None:
    num_seqs, num_q_heads, head_dim = q.shape
    num_kv_heads = kv_cache.shape[2]
    decode_kernel(head_dim, num_q_heads // num_kv_heads)(
        _array(out),
        _array(q),
        *_flat(kv_cache),
        kv_cache.shape[3],
        num_kv_heads,
        batch.block_tables[:num_seqs].numpy(),
        batch.seq_lens[:num_seqs].numpy(),
        np.float32(scale),
        window,
        np.float32(softcap),
        _NO_SINKS if sinks is None else sinks.float().numpy(),
        torch.get_num_threads(),
    )


def _array(x: Tensor) -> np.ndarray:
    return stored(x).numpy()


def _flat(kv_cache: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """The memory that the cache spans, as one row, and the strides that find a token's head in it."""
    strides = kv_cache.stride()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(kv_cache.shape, strides, strict=True))
    return _array(kv_cache.as_strided((extent,), (1,))), strides[:4]
