"""Requests and their sequences, with the states they may go through."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.scheduler.sampling import MAX_N, SamplingParams

Tokens = npt.NDArray[np.int32]

NO_ROW = -1


class SequenceState(enum.Enum):
    """Where a sequence stands.

    WAITING ──► RUNNING ──► FINISHED
       │          │ ▲           ▲
       │          ▼ │           │
       │       PREEMPTED ───────┤
       └────────────────────────┘
    """

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


_LEGAL = {
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.RUNNING: {SequenceState.PREEMPTED, SequenceState.FINISHED},
    SequenceState.PREEMPTED: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.FINISHED: set(),
}


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(eq=False, slots=True)
class Request:
    """One prompt and what to make of it.

    Attributes:
        key: The caller's number for this request, unique while it lives.
        number: Order of arrival.
        prompt: int32 ``[num_prompt_tokens]``.
        limit: Tokens at which a sequence is cut off, prompt included.
        seed: Of the first sequence; the others' are derived from it.
        salt: Prefix-cache namespace.
        unforked: Sequences that still share the first one's future; they are forked when the prompt is computed.
        sequences: The live ones.
    """

    key: int
    number: int
    prompt: Tokens
    sampling: SamplingParams
    limit: int
    seed: int
    salt: str
    unforked: int
    sequences: list[Sequence] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Sequence:
    """One of a request's n outputs.

    While it runs, its tokens and counters live in `Rows` under ``row``; otherwise ``tokens`` holds them.

    Attributes:
        index: Which of the n, from 0.
        tokens: Prompt and output so far; stale while running.
        cached_tokens: Prefix hit of its first admission, in tokens.
        preemptions: Times it was put back. failures: steps that failed with it inside.
    """

    request: Request
    index: int
    tokens: Tokens
    row: int = NO_ROW
    cached_tokens: int = 0
    preemptions: int = 0
    failures: int = 0
    _state: SequenceState = SequenceState.WAITING

    @property
    def state(self) -> SequenceState:
        """Its state; `become` changes it."""
        return self._state

    def become(self, state: SequenceState) -> None:
        """Moves to another state; an illegal move is a bug of ours."""
        assert state in _LEGAL[self._state], f"illegal move {self._state.name} -> {state.name}"
        self._state = state

    @property
    def stream(self) -> int:
        """A number for (request, index), as the token messages carry it."""
        return stream_of(self.request.key, self.index)

    @property
    def order(self) -> tuple[int, int]:
        """First come, first served; siblings in the order of their index."""
        return (self.request.number, self.index)


def stream_of(key: int, index: int) -> int:
    """Packs a request's key and a sequence's index into one integer."""
    return key * MAX_N + index


def split_stream(stream: int) -> tuple[int, int]:
    """The inverse of `stream_of`: (key, index)."""
    return divmod(stream, MAX_N)
