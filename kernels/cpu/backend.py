"""The CPU backend: numba where the blocks are walked in place, torch's fused attention for prefill."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.kernels.cpu.bits import NUMBA_TYPES, STORAGE, stored
from octavo.kernels.cpu.cache_ops import write_kernel
from octavo.kernels.cpu.decode import decode_kernel
from octavo.kernels.cpu.prefill import attend_sequence, gather_context

# Waking a thread costs about as much as reading so much of K and V.
BYTES_PER_THREAD = 128 * 1024

_NO_SINKS = np.empty(0, np.float32)


class CpuBackend:
    """Kernels for host memory; one thread may call them at a time."""

    name = "cpu"
    dtypes = frozenset(STORAGE)
    reads_int8 = True

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        write_kernel(NUMBA_TYPES[k.dtype], _numba_type(kv_cache))(
            _array(k), _array(v), _array(kv_cache), slot_mapping.numpy()
        )

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
            # Layers alternate between numba's threads and torch's: neither pool runs while the other works.
            threads = _threads_for(kv_cache, decodes * batch.max_seq_len)
            numba.set_num_threads(threads)
            kernel = decode_kernel(
                NUMBA_TYPES[q.dtype], _numba_type(kv_cache), q.shape[1] // kv_cache.shape[2], q.shape[2]
            )
            kernel(
                _array(out)[:decodes], _array(q)[:decodes], _array(kv_cache),
                batch.block_tables.numpy(), batch.seq_lens.numpy(), scale, window, softcap,
                _NO_SINKS if sinks is None else sinks.float().numpy(), threads,
            )  # fmt: skip
        if decodes < batch.num_seqs:
            _prefill(out, q, kv_cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks)
        return out

    def copy_blocks(self, kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        kv_cache[dst] = kv_cache[src]


def _threads_for(kv_cache: Tensor, num_tokens: int) -> int:
    """As many as torch uses, unless K and V of so many tokens would keep fewer busy."""
    token_bytes = 2 * kv_cache.shape[2] * kv_cache.shape[4] * kv_cache.element_size()
    available = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    return max(1, min(available, num_tokens * token_bytes // BYTES_PER_THREAD))


def _prefill(
    out: Tensor,
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> None:
    starts, seq_lens = batch.cu_query_lens.tolist(), batch.seq_lens.tolist()
    for i in range(batch.num_decodes, batch.num_seqs):
        queries = slice(starts[i], starts[i + 1])
        if seq_lens[i] == 0:
            out[queries] = 0.0
        elif queries.start < queries.stop:
            k, v = gather_context(kv_cache, batch.block_tables[i], seq_lens[i], q.dtype)
            out[queries] = attend_sequence(q[queries], k, v, scale=scale, window=window, softcap=softcap, sinks=sinks)


def _array(x: Tensor) -> np.ndarray:
    return (x if x.dtype is torch.int8 else stored(x)).numpy()


def _numba_type(kv_cache: Tensor) -> types.Type:
    return types.int8 if kv_cache.dtype is torch.int8 else NUMBA_TYPES[kv_cache.dtype]
