"""The host tier's memory."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import MemoryTooSmallError


class HostTier:
    """Blocks in host memory, each contiguous.

    Index 0 is unused, so that ids start at 1 in every tier.

    Args:
        num_blocks: Blocks that can be held.
        kv: The device's KV tensor, ``[num_layers, …, 2, num_kv_heads, block_size, row width]``.

    Attributes:
        blocks: ``[num_blocks + 1, num_layers, 2, num_kv_heads, block_size, row width]``; pinned if ``kv`` is on a GPU.
        layer_bytes: uint8 ``[num_blocks + 1, num_layers, bytes per layer]``, the same memory.
    """

    def __init__(self, num_blocks: int, kv: Tensor) -> None:
        self.num_blocks = num_blocks
        # Not zeroed: on a CPU, the pages of blocks that were never used cost no memory.
        self.blocks = torch.empty((num_blocks + 1, kv.shape[0], *kv.shape[2:]), dtype=kv.dtype)
        if kv.is_cuda and num_blocks:
            _pin(self.blocks)
        self.layer_bytes = as_bytes(self.blocks)

    def bytes_of(self, block: int) -> memoryview:
        """One block's memory, flat."""
        return memoryview(self.layer_bytes[block].reshape(-1))


def as_bytes(kv: Tensor) -> npt.NDArray[np.uint8]:
    """A KV tensor in host memory as uint8 ``[*its first two dimensions, bytes]``; shares memory."""
    return kv.flatten(2).view(torch.uint8).numpy()


def _pin(tensor: Tensor) -> None:
    """Page-locks a tensor where it lies: torch's own pinned allocations are rounded up to a power of two."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    if status:
        raise MemoryTooSmallError(
            f"CUDA cannot pin {tensor.nbytes:,} bytes of host memory (error {status}); lower --swap-space"
        )
    weakref.finalize(tensor, runtime.cudaHostUnregister, tensor.data_ptr())
