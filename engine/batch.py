"""A plan as tensors: persistent input buffers, filled with array operations over the scheduler's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.block_manager.manager import BlockManager
from octavo.kernels.attention import PagedBatch
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.rows import Rows


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What one forward needs.

    Attributes:
        input_ids, positions: int64 ``[num_tokens]``.
        paged: Where K/V are written and read, per group of layers.
        last_tokens: int64 ``[num_samples]``, tokens whose hidden state is sampled from.
    """

    input_ids: Tensor
    positions: Tensor
    paged: tuple[PagedBatch, ...]
    last_tokens: Tensor


class _Buffer:
    """A host array, and its copy on the device; on a CPU they are the same memory."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._host = torch.zeros(size, dtype=dtype, pin_memory=pinned)
        self._device = self._host if device.type == "cpu" else torch.zeros(size, dtype=dtype, device=device)
        self.array: npt.NDArray[Any] = self._host.numpy()

    def send(self, length: int) -> Tensor:
        """The first ``length`` elements, on the device."""
        if self._device is not self._host:
            self._device[:length].copy_(self._host[:length], non_blocking=True)
        return self._device[:length]


class InputBuffers:
    """Turns plans into `ModelInput`.

    The tensors of one step are overwritten by the next.

    Args:
        rows: The scheduler's running sequences. manager: has their block tables.
        max_num_tokens, max_num_seqs: The largest step.
        device: Where the model runs.
    """

    def __init__(
        self,
        rows: Rows,
        manager: BlockManager,
        *,
        max_num_tokens: int,
        max_num_seqs: int,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._manager = manager
        self._block_size = manager.block_size
        self._ids = _Buffer(max_num_tokens, torch.int64, device)
        self._positions = _Buffer(max_num_tokens, torch.int64, device)
        groups, num_columns = range(manager.blocks_per_column), manager.tables.ids.shape[1]
        self._slots = [_Buffer(max_num_tokens, torch.int64, device) for _ in groups]
        self._seq_lens = _Buffer(max_num_seqs, torch.int32, device)
        self._cu_query_lens = _Buffer(max_num_seqs + 1, torch.int32, device)
        self._last_tokens = _Buffer(max_num_seqs, torch.int64, device)
        self._block_tables = [_Buffer(max_num_seqs * num_columns, torch.int32, device) for _ in groups]
        self._entries = np.zeros(max_num_tokens, dtype=np.int32)  # of the block tables, where each token belongs

    def build(self, plan: StepPlan) -> ModelInput:
        """Fills the buffers for one step."""
        num_seqs, num_tokens = len(plan.rows), plan.num_tokens
        ends = plan.starts + plan.query_lens
        cu_query_lens = self._cu_query_lens.array
        np.cumsum(plan.query_lens, out=cu_query_lens[1 : num_seqs + 1])
        self._seq_lens.array[:num_seqs] = ends
        self._fill_tokens(plan, cu_query_lens)
        num_samples = len(plan.sample_from)
        self._last_tokens.array[:num_samples] = cu_query_lens[1:][plan.sample_from] - 1
        seq_lens, starts = self._seq_lens.send(num_seqs), self._cu_query_lens.send(num_seqs + 1)
        longest = int(ends.max())
        paged = tuple(
            PagedBatch(
                block_tables=self._gather_tables(group, plan, -(-longest // self._block_size)),
                seq_lens=seq_lens,
                cu_query_lens=starts,
                slot_mapping=self._find_slots(group, num_tokens),
                num_decodes=plan.num_decodes,
                max_query_len=int(plan.query_lens.max()),
                max_seq_len=longest,
            )
            for group in range(len(self._slots))
        )
        return ModelInput(
            self._ids.send(num_tokens), self._positions.send(num_tokens), paged, self._last_tokens.send(num_samples)
        )

    def _fill_tokens(self, plan: StepPlan, cu_query_lens: npt.NDArray[np.int32]) -> None:
        """Ids, positions and table entries: all one-token sequences at once, then the chunks one by one."""
        decodes = slice(0, plan.num_decodes)
        self._fill(decodes, plan.rows[decodes], plan.starts[decodes])
        for i in range(plan.num_decodes, len(plan.rows)):
            start = int(plan.starts[i])
            chunk = slice(int(cu_query_lens[i]), int(cu_query_lens[i + 1]))
            self._fill(chunk, int(plan.rows[i]), np.arange(start, start + int(plan.query_lens[i])))

    def _fill(self, where: slice, rows: Any, positions: npt.NDArray[Any]) -> None:
        self._ids.array[where] = self._rows.token_ids[rows, positions]
        self._positions.array[where] = positions
        self._entries[where] = self._manager.tables.ids[rows, positions // self._block_size]

    def _find_slots(self, group: int, num_tokens: int) -> Tensor:
        """Where the layers of a group write the step's tokens: int64 ``[num_tokens]``."""
        slots, size = self._slots[group], self._block_size
        offsets = self._positions.array[:num_tokens] % size
        slots.array[:num_tokens] = self._manager.blocks_of(group, self._entries[:num_tokens])
        slots.array[:num_tokens] *= size
        slots.array[:num_tokens] += offsets
        return slots.send(num_tokens)

    def _gather_tables(self, group: int, plan: StepPlan, num_columns: int) -> Tensor:
        """The step's block tables, as wide as its longest sequence: int32 ``[num_seqs, num_columns]``."""
        buffer, size = self._block_tables[group], len(plan.rows) * num_columns
        entries = np.take(self._manager.tables.ids[:, :num_columns], plan.rows, axis=0)
        buffer.array[:size] = self._manager.blocks_of(group, entries).ravel()
        return buffer.send(size).view(len(plan.rows), num_columns)
