"""What a row of the KV cache holds: K or V of one token and head.

    float32, bfloat16, float16    [ head_dim numbers ]
    int8                          [ head_dim numbers | their scale, a float32 ]         x ≈ number · scale

A scale for each token and head needs no calibration, and no token changes what was written for another. It lies in the
row, so whoever copies blocks, or keeps them elsewhere, takes it along.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.config import KV_SCALE_BYTES

LARGEST = 127
# Rows without a larger number count as zeros: what they would be multiplied by is no float32.
LEAST = 1e-30


def row_width(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of a row."""
    return head_dim + KV_SCALE_BYTES if dtype is torch.int8 else head_dim


def head_dim_of(kv_cache: Tensor) -> int:
    """Numbers of a row of a cache ``[…, row width]``."""
    return kv_cache.shape[-1] - (KV_SCALE_BYTES if kv_cache.dtype is torch.int8 else 0)


def quantize(x: Tensor) -> Tensor:
    """Rows of int8 ``[…, head_dim + 4]`` of numbers ``[…, head_dim]``; all NaN where one is NaN or infinite."""
    finite = x.isfinite().all(-1, keepdim=True)
    wide = torch.where(finite, x.float(), 0.0)
    largest = wide.abs().amax(-1, keepdim=True)
    # Not LARGEST / largest, for which torch multiplies with a reciprocal: the kernels divide.
    inverse = torch.div(torch.tensor(LARGEST, dtype=torch.float32), largest)
    numbers = (wide * torch.where(largest > LEAST, inverse, 0.0)).round().to(torch.int8)
    scale = torch.where(finite, largest / LARGEST, torch.nan)
    return torch.cat((numbers, scale.view(torch.int8)), dim=-1)


def dequantize(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers ``[…, head_dim]`` of rows of int8."""
    numbers, scale = rows[..., :-KV_SCALE_BYTES], rows[..., -KV_SCALE_BYTES:].contiguous().view(torch.float32)
    return (numbers.float() * scale).to(dtype)
