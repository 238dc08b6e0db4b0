"""One vector of a prompt's hidden states: the last token's, or the mean over all of them.

The mean's sum is carried from chunk to chunk. Nothing of it comes from the prefix cache, so whoever has to compute a
prompt again, after a preemption or a failed step, begins at its first token, and with it the sum anew: no token counts
twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from octavo.scheduler.plan import Embedding, StepPlan
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import POOLINGS

_MEAN = POOLINGS.index("mean")


class Pooler:
    """Makes the vectors of requests that ask for them.

    Args:
        rows: The scheduler's running sequences.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._sums: dict[int, Tensor] = {}  # row -> float64 [hidden], of the tokens computed so far

    def is_asked(self, plan: StepPlan) -> bool:
        """Whether anybody in this step wants a vector."""
        return bool(self._rows.pooling[plan.rows].any())

    def take(self, plan: StepPlan, hidden: Tensor) -> tuple[Embedding, ...]:
        """The vectors of prompts that a step completed.

        Args:
            hidden: ``[num_tokens, hidden]``, of all the step's tokens.
        """
        wanted = np.flatnonzero(self._rows.pooling[plan.rows])
        return tuple(self._pool(plan, hidden, wanted.tolist())) if len(wanted) else ()

    def _pool(self, plan: StepPlan, hidden: Tensor, wanted: list[int]) -> Iterator[Embedding]:
        rows, ends = self._rows, np.cumsum(plan.query_lens)
        for i in wanted:
            row, start, length = int(plan.rows[i]), int(plan.starts[i]), int(plan.query_lens[i])
            computed = hidden[ends[i] - length : ends[i]]
            if rows.pooling[row] == _MEAN:
                self._add(row, start, computed)
            if start + length == rows.prompt_len[row]:
                vector = self._sums.pop(row) / (start + length) if rows.pooling[row] == _MEAN else computed[-1]
                yield Embedding(int(rows.stream[row]), vector.to(torch.float32).cpu().numpy().copy())

    def _add(self, row: int, start: int, computed: Tensor) -> None:
        total = computed.sum(dim=0, dtype=torch.float64)
        self._sums[row] = total if start == 0 else self._sums[row] + total
