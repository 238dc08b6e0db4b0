"""The GPU backend: Triton kernels for decode rows and prefill rows, launched apart."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.kernels.triton import cache_ops
from octavo.kernels.triton.decode import decode
from octavo.kernels.triton.prefill import prefill


class TritonBackend:
    """Kernels for CUDA, or for Triton's interpreter on a CPU (``TRITON_INTERPRET=1`` before triton is imported)."""

    name = "triton"
    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32})
    reads_int8 = False

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        cache_ops.write_kv(k, v, kv_cache, slot_mapping)

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
        how = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
        if decodes:
            decode(
                out[:decodes], q[:decodes], kv_cache, batch.block_tables[:decodes], batch.seq_lens[:decodes],
                max_seq_len=batch.max_seq_len, **how,
            )  # fmt: skip
        # Separate launches: one kernel that branches between the two shapes would hold the registers of both.
        if decodes < batch.num_seqs:
            prefill(
                out, q, kv_cache, batch.block_tables[decodes:], batch.seq_lens[decodes:],
                batch.cu_query_lens[decodes:], max_query_len=batch.max_query_len, **how,
            )  # fmt: skip
        return out

    def copy_blocks(self, kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        cache_ops.copy_blocks(kv_cache, src, dst)
