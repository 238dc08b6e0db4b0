"""Paged attention: one checked entry point in front of three backends.

The KV cache of one layer is a pool of blocks, and a sequence's context is whatever blocks its row of the block
table names, in order:

    kv_cache [num_blocks, 2, num_kv_heads, block_size, row width]      index 1: 0 = K, 1 = V

A row has head_dim numbers of q's type, or is int8 with a scale; see `octavo.kernels.kv_rows`.

    block_tables[i] = [ 7, 2, 9, 0, 0 ]      seq_lens[i] = 2 * block_size + 3
                        │  │  │  └──┴─ null block: padding, never read
                        │  │  └─ its first three slots are live, the rest is garbage
                        │  └─ position block_size … 2 * block_size − 1
                        └─ position 0 … block_size − 1

Queries of all sequences lie one after the other (`PagedBatch.cu_query_lens`). Query j of sequence i sits at
position ``seq_lens[i] − query_len[i] + j`` and sees the keys up to itself, its own included; hence K and V of a
step are written before the step attends.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels.checks import check_attention
from octavo.kernels.kv_rows import row_width

BACKENDS = ("auto", "triton", "cpu", "reference")


@dataclass(frozen=True)
class PagedBatch:
    """The sequences of one step, as every layer's attention sees them.

    A sequence may have no query (``query_len`` 0), and a padded row of a captured graph has ``seq_len`` 0; its
    output is zeros.

    Attributes:
        block_tables: int32 [num_seqs, max_blocks], block ids by position; rows may be strided.
        seq_lens: int32 [num_seqs], tokens in the KV cache, this step's own included.
        cu_query_lens: int32 [num_seqs + 1], where each sequence's queries begin; the last entry is their number.
        slot_mapping: int64 [num_tokens], ``block * block_size + offset`` of every query token; a negative slot
            is padding and is not written.
        num_decodes: The first so many sequences have exactly one query token each.
        max_query_len: The most query tokens of any sequence.
        max_seq_len: The longest context of any sequence, in tokens.
    """

    block_tables: Tensor
    seq_lens: Tensor
    cu_query_lens: Tensor
    slot_mapping: Tensor
    num_decodes: int
    max_query_len: int
    max_seq_len: int

    @property
    def num_seqs(self) -> int:
        return self.block_tables.shape[0]


class Backend(Protocol):
    """What a set of paged-attention kernels can do.

    Methods trust their arguments: check them once, with `octavo.kernels.checks`, not in every layer.
    """

    name: str
    dtypes: frozenset[torch.dtype]
    reads_int8: bool
    """Whether the KV cache may be in int8, whatever type q has."""

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        """Writes k and v [num_tokens, num_kv_heads, head_dim] to their slots, in place."""

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
        """Attends from q [num_tokens, num_q_heads, head_dim]; arguments as for `paged_attention`."""

    def copy_blocks(self, kv_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        """Copies whole blocks src → dst (int64 [n] block ids), for copy-on-write; the two must be disjoint."""


def select_backend(device: torch.device, override: str = "auto") -> Backend:
    """The kernels to use on a device.

    Args:
        device: Where the KV cache is.
        override: ``auto`` (triton on a GPU, else cpu), ``triton``, ``cpu`` or ``reference``.

    Raises:
        ConfigError: The override is unknown, or cannot run on the device.
    """
    if override not in BACKENDS:
        raise ConfigError(f"attention backend must be one of {', '.join(BACKENDS)}, not {override!r}")
    name = override if override != "auto" else "triton" if device.type == "cuda" else "cpu"
    if name == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"the triton attention backend needs a CUDA device, not {device}; use cpu or reference here, "
            "or set TRITON_INTERPRET=1 to run its kernels in Triton's (slow) interpreter"
        )
    if name == "cpu" and device.type != "cpu":
        raise ConfigError(f"the cpu attention backend reads host memory, not {device}; use triton or reference")
    return _load_backend(name)


@cache
def _load_backend(name: str) -> Backend:
    # Imported on demand: triton exists only on Linux, and numba costs half a second that a GPU server need not pay.
    if name == "triton":
        from octavo.kernels.triton.backend import TritonBackend

        return TritonBackend()
    if name == "cpu":
        from octavo.kernels.cpu.backend import CpuBackend

        return CpuBackend()
    from octavo.kernels.reference import ReferenceBackend

    return ReferenceBackend()


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_query_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    num_decodes: int | None = None,
    max_query_len: int | None = None,
    max_seq_len: int | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention over K and V that are scattered in blocks.

    ``out = softmax(softcap · tanh(scale · q Kᵀ / softcap)) V`` per head, over each query's visible keys; without
    ``softcap`` the scores are just ``scale · q Kᵀ``.

    Args:
        q: [num_tokens, num_q_heads, head_dim], sequence after sequence.
        kv_cache: [num_blocks, 2, num_kv_heads, block_size, row width] of q's dtype or int8.
        block_tables: int32 [num_seqs, max_blocks].
        seq_lens: int32 [num_seqs], tokens in the cache, the queries' own included.
        cu_query_lens: int32 [num_seqs + 1], where each sequence's queries begin.
        scale: Factor on the scores, usually ``head_dim ** -0.5``.
        window: A query at position p sees keys ``p − window + 1 … p``; 0 means all up to p.
        softcap: Bound on the scores' magnitude (Gemma 2, arXiv:2408.00118); 0 means none.
        sinks: [num_q_heads] logits that join each softmax but carry no value (gpt-oss; StreamingLLM,
            arXiv:2309.17453), or None.
        num_decodes: The first so many sequences have one query each; counted when None.
        max_query_len: The most queries of one sequence; read from the tensors when None.
        max_seq_len: The longest context; read from the tensors when None. Reading any of these three waits for
            the GPU.
        backend: ``auto``, ``triton``, ``cpu`` or ``reference``.
        out: Where to write, shaped like q; allocated when None.

    Returns:
        [num_tokens, num_q_heads, head_dim]. A query that sees no key yields zeros. Rows of q that belong to no
        sequence yield zeros, or are left alone in a given ``out``.

    Raises:
        ValueError: A shape, device, stride or number is not as above.
        TypeError: A dtype is not as above.
        ConfigError: The backend does not exist or cannot run on q's device.
    """
    kernels = select_backend(q.device, backend)
    check_attention(
        kernels, q, kv_cache, block_tables, seq_lens, cu_query_lens,
        scale=scale, window=window, softcap=softcap, sinks=sinks, out=out,
    )  # fmt: skip
    query_lens = cu_query_lens.diff()
    batch = PagedBatch(
        block_tables=block_tables,
        seq_lens=seq_lens,
        cu_query_lens=cu_query_lens,
        slot_mapping=torch.empty(0, dtype=torch.int64, device=q.device),  # nothing is written here
        num_decodes=_leading_ones(query_lens) if num_decodes is None else num_decodes,
        max_query_len=_largest(query_lens) if max_query_len is None else max_query_len,
        max_seq_len=_largest(seq_lens) if max_seq_len is None else max_seq_len,
    )
    return kernels.attend(q, kv_cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks, out=out)


def warm_up(
    backend: Backend,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
) -> None:
    """Compiles, or loads from the compilers' caches on disk, the kernels that a model will use.

    Without it the first requests wait for the compiler: seconds for numba and for each Triton kernel.

    Args:
        backend: The kernels.
        num_q_heads: Query heads per layer.
        num_kv_heads: KV heads per layer.
        head_dim: Elements of one head.
        block_size: Tokens in a block.
        dtype: Of q. kv_dtype: of the KV cache.
        device: Where they will be.
        window: As the model's layers use it; 0 if they do not.
        softcap: As the model's layers use it; 0 if they do not.
        sinks: Whether the model has attention sinks.
    """
    # One decode over enough context to be split, one prefill chunk; all of it in block 1.
    context, chunk = 1024, 64
    with device:
        kv_cache = torch.zeros(2, 2, num_kv_heads, block_size, row_width(head_dim, kv_dtype), dtype=kv_dtype)
        q = torch.zeros(1 + chunk, num_q_heads, head_dim, dtype=dtype)
        kv = torch.zeros(1 + chunk, num_kv_heads, head_dim, dtype=dtype)
        batch = PagedBatch(
            block_tables=torch.ones(2, -(-context // block_size), dtype=torch.int32),
            seq_lens=torch.tensor([context, chunk], dtype=torch.int32),
            cu_query_lens=torch.tensor([0, 1, 1 + chunk], dtype=torch.int32),
            slot_mapping=torch.full((1 + chunk,), block_size),
            num_decodes=1,
            max_query_len=chunk,
            max_seq_len=context,
        )
        logits = torch.zeros(num_q_heads) if sinks else None
        null_block, block = torch.tensor([0]), torch.tensor([1])
    backend.write_kv(kv, kv, kv_cache, batch.slot_mapping)
    backend.attend(q, kv_cache, batch, scale=1.0, window=window, softcap=softcap, sinks=logits)
    backend.copy_blocks(kv_cache, null_block, block)


def _leading_ones(query_lens: Tensor) -> int:
    return int((query_lens == 1).long().cumprod(0).sum())


def _largest(lengths: Tensor) -> int:
    return int(lengths.max()) if lengths.numel() else 0
