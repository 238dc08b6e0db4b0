"""Weights of linear layers, the way products of tiles read them: `octavo.kernels.cpu.products`.

A step's linear layers are bound by how fast the weights come from memory when few rows are computed, and by arithmetic
when many are. One layout serves both, so the weights are kept once. They are cut into groups of 32 outputs, each of
which is read from its first byte to its last. In it, pairs of inputs lie side by side:

    group g    inputs 0 … 31 × outputs 32g … 32g + 15:        [ k, k+1 of output 32g ] … [ … of 32g + 15 ]   64 bytes
                                                              [ k+2, k+3 …                               ]   × 16
               inputs 0 … 31 × outputs 32g + 16 … 32g + 31:   another such tile of 1 KiB
               inputs 32 … 63 …

Other types are widened number by number, or not at all, so there each input's 16 outputs lie beside each other:

    float16, float32    [ k of output 32g ] … [ … of 32g + 15 ]  [ k+1 of output 32g ] … [ … of 32g + 15 ]      × 16

    product    rows of x (≤ 16 × 32)  ·  tile of weights (32 × 16)  →  float32 sums (≤ 16 × 16), held over all inputs
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from llvmlite import binding
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.tiles import BLOCK

OUTPUTS = 16  # of a tile of weights
PANELS = 2  # tiles of weights that lie side by side
GROUP = PANELS * OUTPUTS


@njit(**EXACT)
def groups_of(num_outputs):
    """Groups that so many outputs take."""
    return (num_outputs + GROUP - 1) // GROUP


def fits(weight: Tensor) -> bool:
    """Whether `pack` takes a weight [out, in]."""
    return weight.device.type == "cpu" and is_known(weight.dtype) and weight.shape[1] % BLOCK == 0


def is_known(dtype: torch.dtype) -> bool:
    """Whether there are products of weights in this type here."""
    # Without an instruction that widens float16, LLVM would call a function for each number.
    return dtype in (torch.bfloat16, torch.float32) or (dtype is torch.float16 and _has_float16())


@cache
def _has_float16() -> bool:
    return platform.machine() == "aarch64" or bool(binding.get_host_cpu_features().get("f16c"))


def pack(weight: Tensor) -> Tensor:
    """A weight in groups.

    Args:
        weight: [out, in]; ``in`` is a multiple of 32.

    Returns:
        [groups, in / 32, 2, 16, 16, 2], where the last but one counts outputs in bfloat16, and else the last but two;
        there are as many groups as cover ``out``.
    """
    num_outputs, num_inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -num_outputs % GROUP))
    parts = padded.view(-1, PANELS, OUTPUTS, num_inputs // BLOCK, BLOCK // 2, 2)
    return parts.permute(0, 3, 1, 4, *((2, 5) if weight.dtype is torch.bfloat16 else (5, 2))).contiguous()
