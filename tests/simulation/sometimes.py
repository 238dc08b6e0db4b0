"""Paths that are rare and have to be taken by some seed, or the simulation proves less than it seems to."""

from __future__ import annotations

from collections import Counter

from simulation.faults import PASSED, TIMED

SCHEDULER = (
    "chunked prefill",
    "mixed batch",
    "prefix hit",
    "hit in the same step",
    "deduplication",
    "eviction",
    "fork",
    "copy on write",
    "preemption",
    "recomputed because it costs less",
    "swapped out because it costs less",
    "swapped in",
    "urgent request took blocks",
    "sank to host memory",
    "sank to disk",
    "hit in host memory",
    "hit on disk",
    "tier found not worth its copies",
    "room below ran out",
    "waited for a guarantee",
    "waited at a tenant's ceiling",
    "pin",
    "pin expired",
    "invalidation",
    "failed step survived",
    "culprit found",
    "abort of an unknown request",
)
CLIENTS = (
    "stop string",
    "stop token",
    "length",
    "one of several stopped by its text",
    "one of several ended by its reader",
    "refused: too long for the window",
    "refused: too long for the pool",
    "refused: the queue is full",
    "refused: the engine is away",
    "refused inside the stream",
    "refused, tried again, answered",
    "engine died before the first token",
    "engine died in mid-stream",
    "failed before the first token",
    "failed in mid-stream",
    "left before the first token",
    "left in mid-stream",
    "left while waiting for the whole",
    "aborted before the first token",
    "aborted in mid-stream",
    "aborted while its client waits for the whole",
    "slow reader finished",
    "slow reader given up",
    "several tokens in one event",
    "heartbeat in a stream",
    "body parsed off the loop",
    "stopped with streams open",
    "drained",
)
ENGINES = ("silent engine came back", "silent engine was replaced", "stalled engine", "engine replaced twice")

RARE = (*SCHEDULER, *CLIENTS, *ENGINES, *PASSED, *TIMED)
_LISTED = frozenset(RARE)


class Sometimes(Counter[str]):
    """How often each of the rare paths was taken."""

    def note(self, path: str, times: float = 1) -> None:
        """Counts a path that was taken; no times are fine."""
        assert path in _LISTED, f"{path!r} is not listed"
        self[path] += int(times > 0)
