"""Requests and their sequences, with the states they may go through."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import SwappedBlocks
from octavo.scheduler.decisions import PreemptionRecord, Wait, WaitReason
from octavo.scheduler.history import History
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import stream_of
from octavo.scheduler.tenants import Tenant

Tokens = npt.NDArray[np.int32]

NO_ROW = -1
_NEW = Wait(WaitReason.NEW)


class SequenceState(enum.Enum):
    """Where a sequence stands.

    WAITING ──► RUNNING ──► FINISHED
       │        │ ▲ │ ▲         ▲
       │        ▼ │ │ │         │
       │  PREEMPTED │ │ ────────┤      computes its KV again
       │        ▲   ▼ │         │
       │        SWAPPED ────────┤      has copies of its KV in lower tiers; PREEMPTED if they are lost
       └────────────────────────┘
    """

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    SWAPPED = "swapped"
    FINISHED = "finished"

    __hash__ = object.__hash__  # that of an enumeration is computed in Python


_LEGAL = {
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.RUNNING: {SequenceState.PREEMPTED, SequenceState.SWAPPED, SequenceState.FINISHED},
    SequenceState.PREEMPTED: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.SWAPPED: {SequenceState.RUNNING, SequenceState.PREEMPTED, SequenceState.FINISHED},
    SequenceState.FINISHED: set(),
}


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Candidate(NamedTuple):
    """An output that may be chosen.

    Attributes:
        tokens: The output, a stop token included. logprob: of all of them together.
    """

    tokens: tuple[int, ...]
    logprob: float
    reason: FinishReason
    stop_token_id: int | None = None

    def score(self, length_penalty: float) -> float:
        """Log-probability by length: ``logprob / length ** length_penalty``."""
        return self.logprob / float(len(self.tokens) ** length_penalty)


@dataclass(eq=False, slots=True)
class Request:
    """One prompt and what to make of it.

    Attributes:
        key: The caller's number for this request, unique while it lives.
        number: Order of arrival.
        prompt: int32 ``[num_prompt_tokens]``.
        limit: Tokens at which a sequence is cut off, prompt included.
        seed: Of the first sequence; the others' are derived from it.
        tenant: Whose it is. salt: prefix-cache namespace among the tenant's.
        priority: Smaller is more urgent, under that policy.
        arrival: Seconds on the scheduler's clock.
        pin_ttl: Seconds for which to pin the prompt once it is computed; None for not at all.
        history: What has happened to it.
        unforked: Sequences that still share the first one's future; they are forked when the prompt is computed.
        sequences: The live ones.
        outputs: Ended ones among which is chosen, where that is asked for (`SamplingParams.chooses`).
        held_rows: Rows kept for beams to come.
    """

    key: int
    number: int
    prompt: Tokens
    sampling: SamplingParams
    limit: int
    seed: int
    tenant: Tenant
    salt: str
    priority: int
    arrival: float
    pin_ttl: float | None
    unforked: int
    history: History
    sequences: list[Sequence] = field(default_factory=list)
    outputs: list[Candidate] = field(default_factory=list)
    held_rows: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One of a request's outputs.

    While it runs, its tokens and counters live in `Rows` under ``row``; otherwise ``tokens`` holds them.

    Attributes:
        index: Which of the request's, from 0.
        stream: A number for (request, index), as the token messages carry it.
        order: First come, first served; siblings in the order of their index.
        tokens: Prompt and output so far; stale while running.
        cached_tokens: Prefix hit of its first admission, in tokens.
        queued: When it last began to wait, on the scheduler's clock. admitted: when it was first let in; None before.
        logprob: Of its output so far, where outputs are chosen.
        computed: Tokens whose KV it had when it left its row.
        swapped: Its KV in lower tiers, while it is swapped out.
        preemptions: Times it had to give way. failures: steps that failed with it inside.
        overtaken: Later sequences that were let in before it for want of blocks.
        wait: Why it waits. lack, retry_at, retry_step: see `octavo.scheduler.admission`.
        record: Its latest preemption, until that has been made good.
    """

    request: Request
    index: int
    tokens: Tokens
    row: int = NO_ROW
    cached_tokens: int = 0
    queued: float = 0.0
    admitted: float | None = None
    logprob: float = 0.0
    computed: int = 0
    swapped: SwappedBlocks | None = None
    preemptions: int = 0
    failures: int = 0
    overtaken: int = 0
    wait: Wait = _NEW
    lack: Wait = _NEW
    retry_at: int = 0
    retry_step: int = 0
    record: PreemptionRecord | None = None
    stream: int = field(init=False)
    order: tuple[int, int] = field(init=False)
    _state: SequenceState = SequenceState.WAITING

    def __post_init__(self) -> None:
        self.renumber(self.index)

    def renumber(self, index: int) -> None:
        """Makes it another of its request's; not while it runs or waits, since its order is its place there."""
        self.index = index
        self.stream = stream_of(self.request.key, index)
        self.order = (self.request.number, index)

    @property
    def state(self) -> SequenceState:
        """Its state; `become` changes it."""
        return self._state

    def become(self, state: SequenceState) -> None:
        """Moves to another state; an illegal move is a bug of ours."""
        assert state in _LEGAL[self._state], f"illegal move {self._state.name} -> {state.name}"
        self._state = state


def rows_needed(request: Request) -> int:
    """Rows that have to be available for a request's first sequence to start."""
    return max(1, request.sampling.beam_width)
