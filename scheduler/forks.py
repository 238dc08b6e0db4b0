"""A request's n sequences start as one; the others are forked off when its prompt is complete.

Siblings share all blocks, a last partial one included, and sample from the same logits. Those that find no row, or
no spare block for the copy that they will soon need, wait like any new sequence and hit the cache.
"""

from __future__ import annotations

import numpy as np

from octavo.scheduler.history import EventKind
from octavo.scheduler.plan import Int32s
from octavo.scheduler.request import Sequence
from octavo.scheduler.state import State


class Forks:
    """The forks of the step that is being planned. Changes waiting, running and blocks."""

    def __init__(self, state: State, watermark: int) -> None:
        self._state = state
        self._watermark = watermark
        self._planned: dict[int, list[Sequence]] = {}  # row -> siblings to fork off when this step is done

    def plan(self, rows: Int32s, sample_from: Int32s) -> tuple[Int32s, Int32s]:
        """Lets the siblings of sequences whose prompt is complete sample from the same logits.

        Args:
            rows: The step's rows. sample_from: indices of those that sample.

        Returns:
            ``sample_from`` and ``sample_rows`` with the siblings added.
        """
        if not self._state.rows.unforked[rows[sample_from]].any():
            return sample_from, rows[sample_from]
        sources, targets = [], []
        for source in sample_from.tolist():
            row = int(rows[source])
            siblings = self._new_siblings(row) if self._state.rows.unforked[row] else []
            for target in (row, *(sibling.row for sibling in siblings)):
                sources.append(source)
                targets.append(target)
        return np.array(sources, dtype=np.int32), np.array(targets, dtype=np.int32)

    def carry_out(self) -> None:
        """After the step: lets the planned siblings share their blocks."""
        state = self._state
        for row, siblings in self._planned.items():
            state.forked.add(row)
            for sibling in siblings:
                state.manager.fork(row, sibling.row)
                state.run(sibling)
                self._tell(state.owner(row), sibling)
                state.forked.add(sibling.row)
                state.counters.forks += 1
        self._planned.clear()

    def _tell(self, first: Sequence, sibling: Sequence) -> None:
        sibling.admitted = first.admitted
        now = self._state.clock()
        sibling.request.history.add(now, EventKind.FORKED, sibling.index, {"of": first.index})

    def cancel(self, rows: set[int] | None = None) -> set[int]:
        """The step was not executed, for these rows or at all: their siblings wait. Returns the siblings' rows."""
        cancelled = set()
        for row in [row for row in self._planned if rows is None or row in rows]:
            for sibling in self._planned.pop(row):
                cancelled.add(sibling.row)
                self._state.rows.vacate(sibling)
                self._state.waiting.push(sibling)
        return cancelled

    def _new_siblings(self, row: int) -> list[Sequence]:
        """Rows for the siblings to fork off this row; those without room wait like any new sequence."""
        state = self._state
        first = state.owner(row)
        request = first.request
        state.rows.unforked[row] = False
        spare = state.manager.room(request.tenant.index) - self._watermark
        room = min(request.unforked, state.rows.available, spare // state.manager.blocks_per_column)
        siblings = []
        for index in range(1, request.unforked + 1):
            sibling = state.new_sequence(request, index)
            if index > room:
                state.waiting.push(sibling)
                continue
            sibling.cached_tokens = first.cached_tokens
            state.rows.occupy(sibling, num_computed=len(request.prompt))
            siblings.append(sibling)
        request.unforked = 0
        if siblings:
            self._planned[row] = siblings
        return siblings
