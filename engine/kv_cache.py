"""The KV tensors, and the copies that the block manager plans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.block_manager.manager import BlockCopy
from octavo.kernels.attention import Backend


class KVCache:
    """One tensor per layer: ``[num_blocks + 1, 2 (K, V), num_kv_heads, block_size, head_dim]``.

    Index 0 is the null block: padding reads it and nobody owns it.

    Args:
        num_layers: Tensors to allocate.
        num_blocks: Blocks that can be owned.
        backend: Runs the copies.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
    ) -> None:
        shape = (num_blocks + 1, 2, num_kv_heads, block_size, head_dim)
        # Not zeroed: the pages of blocks that were never used cost no memory, and kernels read no unwritten slot.
        self.layers: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.block_size = block_size
        self._backend = backend
        self._device = device

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks in every layer, before anything is written in this step."""
        if not copies:
            return
        pairs = torch.tensor(copies, dtype=torch.int64, device=self._device)
        for layer in self.layers:
            self._backend.copy_blocks(layer, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
