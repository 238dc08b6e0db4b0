"""The KV tensors, and the copies that the block manager plans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.manager import BlockCopy
from octavo.block_manager.tiers import Transfer, TransferOutcome, TransferTiming
from octavo.engine.disk_store import DiskStore
from octavo.engine.transfers import TierTransfers
from octavo.kernels.attention import Backend
from octavo.kernels.kv_rows import row_width


class KVCache:
    """A tensor for each layer: ``[num_blocks + 1, 2 (K, V), num_kv_heads, block_size, row width]``.

    Layers of different groups share tensors, since no block belongs to two groups at the same time. Index 0 is the null
    block: padding reads it and nobody owns it.

    Args:
        groups: Which layers share a block.
        num_blocks: Blocks that can be owned.
        dtype: Of K and V; with head_dim it says how wide rows are, see `octavo.kernels.kv_rows`.
        backend: Runs the copies within the device.
        num_host_blocks: Blocks of the host tier; 0 for none.
        disk: The disk tier, if there is one; its blocks have `block_bytes`.

    Attributes:
        layers: Each layer's tensor. group_of_layer: the group whose block tables lead into it.
        block_bytes: K and V of one block in all layers of a group.
    """

    def __init__(
        self,
        *,
        groups: LayerGroups,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        num_host_blocks: int = 0,
        disk: DiskStore | None = None,
    ) -> None:
        shape = (groups.layers_per_block, num_blocks + 1, 2, num_kv_heads, block_size, row_width(head_dim, dtype))
        # One allocation, so that a block of all layers is one strided copy away from the other tiers. Not zeroed: the
        # pages of blocks that were never used cost no memory, and kernels read no unwritten slot. What they read of the
        # null block, for keys behind a window, they weigh with 0; but 0 times NaN would be NaN.
        kv = torch.empty(shape, dtype=dtype, device=device)
        kv[:, 0].zero_()
        self._kv = kv
        placed = [groups.group_of(layer) for layer in range(sum(map(len, groups.members)))]
        self.layers: list[Tensor] = [kv[member] for _, member in placed]
        self.group_of_layer = [group for group, _ in placed]
        self.block_size = block_size
        self.block_bytes = kv[:, 0].numel() * kv.element_size()
        self._backend = backend
        self._device = device
        self._tiers = TierTransfers(kv, num_host_blocks, disk)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks in every layer, before anything is written in this step."""
        if not copies:
            return
        pairs = torch.tensor(copies, dtype=torch.int64, device=self._device)
        for layer in self._kv.unbind():
            self._backend.copy_blocks(layer, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())

    def transfer(self, transfers: Sequence[Transfer]) -> TransferOutcome:
        """Copies blocks between tiers, as if one after another in the given order; see `TierTransfers.run`."""
        return self._tiers.run(transfers)

    def measure_transfers(self) -> tuple[TransferTiming, ...]:
        """Times a few copies in each direction, before anybody owns a block; see `TierTransfers.measure`."""
        return self._tiers.measure()
