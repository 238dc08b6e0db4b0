"""What the kernels take for granted, checked. Shapes, dtypes, devices and strides only: nothing waits for a GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo.config import KV_SCALE_BYTES
from octavo.kernels.kv_rows import head_dim_of

if TYPE_CHECKING:
    from octavo.kernels.attention import Backend


def check_attention(
    backend: Backend,
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
    out: Tensor | None = None,
) -> None:
    """Checks the arguments of `Backend.attend`; they are described at `octavo.kernels.attention.paged_attention`.

    Raises:
        ValueError: A shape, device, stride or number is wrong.
        TypeError: A dtype is wrong.
    """
    _check_cache(backend, kv_cache)
    num_kv_heads, head_dim = kv_cache.shape[2], head_dim_of(kv_cache)
    num_seqs = block_tables.shape[0] if block_tables.dim() else 0

    _check_heads("q", q, backend, kv_cache)
    num_q_heads = q.shape[1]
    if q.shape[2] != head_dim:
        raise ValueError(f"q has head_dim {q.shape[2]}, but kv_cache has {head_dim}")
    if num_q_heads == 0 or num_q_heads % num_kv_heads:
        raise ValueError(f"q has {num_q_heads} heads; it must be a multiple of kv_cache's {num_kv_heads}")

    _check_indices("block_tables", block_tables, torch.int32, (num_seqs, None), q)
    _check_indices("seq_lens", seq_lens, torch.int32, (num_seqs,), q)
    _check_indices("cu_query_lens", cu_query_lens, torch.int32, (num_seqs + 1,), q)

    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    if window < 0:
        raise ValueError(f"window must be 0 (none) or a number of keys, not {window}")
    if not (softcap >= 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap must be 0 (none) or positive, not {softcap}")
    if sinks is not None:
        _check_shape("sinks", sinks, (num_q_heads,))
        _check_device("sinks", sinks, q)
        if not sinks.is_floating_point():
            raise TypeError(f"sinks must be floating-point, not {sinks.dtype}")
    if out is not None:
        _check_shape("out", out, tuple(q.shape))
        _check_heads("out", out, backend, kv_cache, q.dtype)


def check_write(backend: Backend, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Checks the arguments of `Backend.write_kv`.

    Raises:
        ValueError: A shape, device or stride is wrong.
        TypeError: A dtype is wrong.
    """
    _check_cache(backend, kv_cache)
    for name, x in (("k", k), ("v", v)):
        _check_heads(name, x, backend, kv_cache, k.dtype)
        _check_shape(name, x, (k.shape[0], kv_cache.shape[2], head_dim_of(kv_cache)))
    _check_indices("slot_mapping", slot_mapping, torch.int64, (k.shape[0],), k)


def _check_cache(backend: Backend, kv_cache: Tensor) -> None:
    accepted_dtypes = backend.dtypes | ({torch.int8} if backend.reads_int8 else set())
    if kv_cache.dtype not in accepted_dtypes:
        accepted = ", ".join(sorted(str(dtype) for dtype in accepted_dtypes))
        raise TypeError(f"kv_cache has dtype {kv_cache.dtype}; the {backend.name} backend takes {accepted}")
    if kv_cache.dim() != 5 or kv_cache.shape[1] != 2 or 0 in kv_cache.shape or head_dim_of(kv_cache) < 1:
        width = "head_dim" if kv_cache.dtype is not torch.int8 else f"head_dim + {KV_SCALE_BYTES}"
        raise ValueError(
            f"kv_cache must be [num_blocks, 2, num_kv_heads, block_size, {width}], none of them 0, "
            f"not {list(kv_cache.shape)}"
        )
    _check_rows("kv_cache", kv_cache)


def _check_heads(name: str, x: Tensor, backend: Backend, kv_cache: Tensor, dtype: torch.dtype | None = None) -> None:
    if x.dim() != 3:
        raise ValueError(f"{name} must be [num_tokens, heads, head_dim], not {list(x.shape)}")
    if kv_cache.dtype is not torch.int8:
        if x.dtype != kv_cache.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}, but kv_cache has {kv_cache.dtype}; they must be the same")
    elif x.dtype not in backend.dtypes or x.dtype != (dtype or x.dtype):
        accepted = str(dtype) if dtype else ", ".join(sorted(map(str, backend.dtypes)))
        raise TypeError(f"{name} has dtype {x.dtype}; beside an int8 kv_cache it must be {accepted}")
    _check_device(name, x, kv_cache)
    _check_rows(name, x)


def _check_indices(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], other: Tensor) -> None:
    if x.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, not {x.dtype}")
    _check_shape(name, x, shape)
    _check_device(name, x, other)
    _check_rows(name, x)


def _check_shape(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = x.dim() == len(shape) and all(want in (None, have) for have, want in zip(x.shape, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be [{wanted}], not {list(x.shape)}")


def _check_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}; it must be on {other.device} like the rest")


def _check_rows(name: str, x: Tensor) -> None:
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}'s last dimension must be contiguous, but its stride is {x.stride(-1)}")
