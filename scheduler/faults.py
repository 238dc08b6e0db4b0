"""After a failed step: finding its culprit, so that only the culprit fails.

The step's sequences start over one at a time, each alone for one step. What they computed in earlier steps is still
cached. Who was in several failed steps of which nobody was the culprit fails as well, or a fault that only a full batch
shows would repeat for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from octavo.scheduler.admission import Admission
from octavo.scheduler.beams import Beams
from octavo.scheduler.decisions import PreemptionReason
from octavo.scheduler.history import EventKind
from octavo.scheduler.plan import Finished, Int32s
from octavo.scheduler.preemption import Preemption
from octavo.scheduler.request import FinishReason, Sequence, SequenceState, rows_needed
from octavo.scheduler.state import State
from octavo.scheduler.streams import stream_of

# A sequence that was part of so many failed steps is taken for their cause, even if it never failed alone.
_MAX_FAILURES = 3


class Suspects:
    """Sequences that were in a failed step; each runs one step alone, at the head of this queue until it is done."""

    def __init__(self, state: State, preemption: Preemption, admission: Admission, beams: Beams) -> None:
        self._state = state
        self._beams = beams
        self._preemption = preemption
        self._admission = admission
        self._queue: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._queue

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def remove(self, sequence: Sequence) -> None:
        """Takes out a sequence that ends."""
        self._queue.remove(sequence)

    def start_next(self, budget: int) -> tuple[Int32s, Int32s]:
        """Starts the next suspect for a step of its own; returns its row and chunk."""
        suspect = self._queue[0]
        match, short = self._admission.look_up(suspect, keep_free=0)
        while short or self._state.rows.available < rows_needed(suspect.request):
            self._make_room(suspect)
            match, short = self._admission.look_up(suspect, keep_free=0)
        row, chunk = self._admission.start(suspect, match, budget)
        return np.array([row], dtype=np.int32), np.array([chunk], dtype=np.int32)

    def _make_room(self, suspect: Sequence) -> None:
        state = self._state
        yields = state.manager.quota.yields_to(suspect.request.tenant.index)
        if len(state.running):
            running = list(state.running)
            victim = next((s for s in reversed(running) if yields[s.request.tenant.index]), running[-1])
            self._preemption.preempt(victim, PreemptionReason.ISOLATION, suspect)
            return
        pins = state.manager.pins.listed()
        assert pins, f"nothing runs, nothing is pinned, and sequence {suspect.order} does not fit"
        state.manager.unpin(next((pin for pin in pins if yields[pin.tenant]), pins[0]))
        state.counters.pins_dropped += 1

    def step_done(self) -> None:
        """The suspect that ran alone has done so without failing."""
        if self._queue and self._queue[0].state is SequenceState.RUNNING:
            self._queue.popleft()

    def take_failure(self, members: list[Sequence], error: str) -> tuple[list[Sequence], list[Finished]]:
        """Sorts a failed step's members into suspects and culprits.

        Returns:
            The sequences that fail, siblings of the culprits included, and what to tell the outside.
        """
        if self._queue and self._queue[0] in members:
            self._queue.popleft()
        failed: list[Sequence] = []
        told = []
        for sequence in members:
            if sequence in failed:  # a sibling's failure took it along
                continue
            sequence.failures += 1
            if len(members) > 1 and sequence.failures < _MAX_FAILURES:
                continue
            # Only the first n are known outside where outputs are chosen among more.
            told.append(Finished(stream_of(sequence.request.key, 0), FinishReason.ERROR, error=error))
            failed += sequence.request.sequences
        for sequence in members:
            if sequence not in failed and sequence.state is SequenceState.RUNNING:
                self._beams.leave_row(sequence)
                sequence.become(SequenceState.PREEMPTED)
                sequence.queued = self._state.clock()
                sequence.request.history.add(sequence.queued, EventKind.FAILED, sequence.index)
                self._queue.append(sequence)
        return failed, told

    def exonerate(self) -> None:
        """The culprit is found: what the others failed with it is not held against them."""
        for request in self._state.requests.values():
            for sequence in request.sequences:
                sequence.failures = 0
