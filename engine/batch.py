"""A plan as tensors: persistent input buffers, filled with array operations over the scheduler's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.block_manager.table import BlockTables
from octavo.kernels.attention import PagedBatch
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.rows import Rows


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What one forward needs.

    Attributes:
        input_ids, positions: int64 ``[num_tokens]``.
        paged: Where K/V are written and read.
        last_tokens: int64 ``[num_samples]``, tokens whose hidden state is sampled from.
    """

    input_ids: Tensor
    positions: Tensor
    paged: PagedBatch
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
        rows: The scheduler's running sequences. tables: their block tables.
        block_size: Tokens in a block.
        max_num_tokens, max_num_seqs: The largest step.
        device: Where the model runs.
    """

    def __init__(
        self,
        rows: Rows,
        tables: BlockTables,
        *,
        block_size: int,
        max_num_tokens: int,
        max_num_seqs: int,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._tables = tables
        self._block_size = block_size
        self._ids = _Buffer(max_num_tokens, torch.int64, device)
        self._positions = _Buffer(max_num_tokens, torch.int64, device)
        self._slots = _Buffer(max_num_tokens, torch.int64, device)
        self._seq_lens = _Buffer(max_num_seqs, torch.int32, device)
        self._cu_query_lens = _Buffer(max_num_seqs + 1, torch.int32, device)
        self._last_tokens = _Buffer(max_num_seqs, torch.int64, device)
        self._block_tables = _Buffer(max_num_seqs * tables.ids.shape[1], torch.int32, device)

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
        paged = PagedBatch(
            block_tables=self._gather_tables(plan, -(-int(ends.max()) // self._block_size)),
            seq_lens=self._seq_lens.send(num_seqs),
            cu_query_lens=self._cu_query_lens.send(num_seqs + 1),
            slot_mapping=self._slots.send(num_tokens),
            num_decodes=plan.num_decodes,
            max_query_len=int(plan.query_lens.max()),
            max_seq_len=int(ends.max()),
        )
        return ModelInput(
            self._ids.send(num_tokens), self._positions.send(num_tokens), paged, self._last_tokens.send(num_samples)
        )

    def _fill_tokens(self, plan: StepPlan, cu_query_lens: npt.NDArray[np.int32]) -> None:
        """Ids, positions and slots: all one-token sequences at once, then the chunks one by one."""
        decodes = slice(0, plan.num_decodes)
        self._fill(decodes, plan.rows[decodes], plan.starts[decodes])
        for i in range(plan.num_decodes, len(plan.rows)):
            start = int(plan.starts[i])
            chunk = slice(int(cu_query_lens[i]), int(cu_query_lens[i + 1]))
            self._fill(chunk, int(plan.rows[i]), np.arange(start, start + int(plan.query_lens[i])))

    def _fill(self, where: slice, rows: Any, positions: npt.NDArray[Any]) -> None:
        size = self._block_size
        self._ids.array[where] = self._rows.token_ids[rows, positions]
        self._positions.array[where] = positions
        self._slots.array[where] = self._tables.ids[rows, positions // size].astype(np.int64) * size + positions % size

    def _gather_tables(self, plan: StepPlan, num_columns: int) -> Tensor:
        """The step's block tables, as wide as its longest sequence: int32 ``[num_seqs, num_columns]``."""
        size = len(plan.rows) * num_columns
        flat = self._block_tables.array[:size].reshape(len(plan.rows), num_columns)
        np.take(self._tables.ids[:, :num_columns], plan.rows, axis=0, out=flat)
        return self._block_tables.send(size).view(len(plan.rows), num_columns)
