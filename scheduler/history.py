"""What has happened to each request, for whoever asks why: events at arrivals, waits, preemptions and ends.

Nothing here decides anything, and a steady decode step adds nothing. Memory is bounded: a request keeps its first
events, and the latest requests to end are kept.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from octavo.scheduler.decisions import LookUp, PreemptionRecord, Wait, WaitReason

# Events of one request, and how many of them may tell of waits: reasons may alternate for as long as one waits.
MOST_EVENTS = 256
MOST_WAITS = 64
# Requests that have ended.
MOST_ENDED = 1024

_NO_DATA: Mapping[str, Any] = {}


class EventKind(enum.StrEnum):
    """What happened; `octavo.engine.views.StoryEvent` says what is known of each."""

    QUEUED = "queued"
    WAITING = "waiting"
    ADMITTED = "admitted"
    PROMPT_DONE = "prompt_done"
    FORKED = "forked"
    PREEMPTED = "preempted"
    FAILED = "failed"
    FINISHED = "finished"


class Event(NamedTuple):
    """Something that happened to a sequence.

    Attributes:
        time: Seconds on the scheduler's clock. sequence: which of the request's.
        data: A preemption's record goes on changing until its victim has caught up.
    """

    time: float
    kind: EventKind
    sequence: int
    data: Mapping[str, Any] | LookUp | PreemptionRecord | Wait


@dataclass(eq=False, slots=True)
class History:
    """What has happened to one request.

    Attributes:
        key, tenant, num_prompt: The request's.
        arrival, ended: Seconds on the scheduler's clock; the latter None while it lives.
        events: The first ones. left_out: how many there were beyond those.
        cached_tokens: What its first admission found; None before.
    """

    key: int
    tenant: str
    num_prompt: int
    arrival: float
    events: list[Event] = field(default_factory=list)
    left_out: int = 0
    ended: float | None = None
    cached_tokens: int | None = None
    _waits: int = 0
    _reasons: dict[int, WaitReason] = field(default_factory=dict)

    def add(
        self, time: float, kind: EventKind, index: int, data: Mapping[str, Any] | LookUp | PreemptionRecord = _NO_DATA
    ) -> None:
        """Notes an event; an end is kept in any case."""
        if self._reasons:
            self._reasons.pop(index, None)
        if len(self.events) < MOST_EVENTS or kind is EventKind.FINISHED:
            self.events.append(Event(time, kind, index, data))
        else:
            self.left_out += 1

    def wait(self, time: float, index: int, wait: Wait) -> None:
        """Notes why a sequence waits, if that is another reason than before."""
        if self._reasons.get(index) is wait.reason:
            return
        self._reasons[index] = wait.reason
        if self._waits < MOST_WAITS and len(self.events) < MOST_EVENTS:
            self._waits += 1
            self.events.append(Event(time, EventKind.WAITING, index, wait))
        else:
            self.left_out += 1


class Histories:
    """Those of all live requests, and of the latest that have ended."""

    def __init__(self) -> None:
        self._by_key: dict[int, History] = {}
        self._ended: deque[History] = deque()

    def begin(self, history: History) -> None:
        """Notes a request that has arrived. A key may come again once its request has ended."""
        self._by_key[history.key] = history

    def end(self, history: History, time: float) -> None:
        """Notes that a request has ended."""
        history.ended = time
        self._ended.append(history)
        if len(self._ended) > MOST_ENDED:
            oldest = self._ended.popleft()
            if self._by_key.get(oldest.key) is oldest:
                del self._by_key[oldest.key]

    def of(self, key: int) -> History | None:
        """A request's history; None if it was never heard of, or is forgotten."""
        return self._by_key.get(key)
