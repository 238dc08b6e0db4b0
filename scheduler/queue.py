"""The waiting queue: first come, first served, with O(1) removal from anywhere."""

from __future__ import annotations

import heapq

from octavo.scheduler.request import Sequence


class WaitingQueue:
    """Sequences that wait, in order of arrival.

    A preempted sequence goes back to the place of its arrival, so it is never overtaken by those that came after
    it. Removed entries stay in the heap until they surface.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._members: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._members

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at its place."""
        assert sequence not in self._members, f"sequence {sequence.order} waits already"
        self._members.add(sequence)
        heapq.heappush(self._heap, (sequence.order, sequence))

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is; None if nobody waits."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        self._members.remove(sequence)
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
