"""Decisions as data: why a request waits, what a preemption cost, why a prefix look-up found no more.

Nothing here decides anything. Memory is bounded: one `Wait` per waiting sequence, and the latest records of the rest.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.block_manager.misses import Miss, MissReason
from octavo.block_manager.tiers import Tier

_RECORDS = 1024


class WaitReason(enum.StrEnum):
    """Why a sequence does not run yet."""

    NEW = "new"  # no step has looked at it
    BLOCKS = "blocks"  # too few are available
    TENANT_CEILING = "tenant_ceiling"  # its tenant holds as many as it may
    MAX_NUM_SEQS = "max_num_seqs"
    TOKEN_BUDGET = "token_budget"  # running sequences use the step's tokens up
    PREEMPTION = "preemption"  # somebody had to give way in this step, so nobody was let in
    GUARANTEE = "guarantee"  # preempted as often as may be: waits until it never needs to be again
    BEHIND = "behind"  # others come first
    ISOLATION = "isolation"  # after a failed step its members run one by one


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a sequence waits.

    Attributes:
        short: Blocks that are missing, where blocks are what it waits for.
        behind: The stream of who comes before it, if anybody does.
        step: When this was found.
    """

    reason: WaitReason
    short: int = 0
    behind: int | None = None
    step: int = 0


class Method(enum.StrEnum):
    """What becomes of a victim's KV."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


class PreemptionReason(enum.StrEnum):
    """What the blocks were needed for."""

    GROWTH = "growth"  # running sequences cross into new blocks
    PRIORITY = "priority"  # a more urgent request waited
    ISOLATION = "isolation"  # a suspect has to run alone


@dataclass(slots=True)
class PreemptionRecord:
    """One sequence giving way to another.

    Attributes:
        step, time: When; seconds on the scheduler's clock.
        victim: Its stream. beneficiary: the stream of who gets the blocks, if it is one sequence.
        blocks: Blocks won. tokens: tokens whose KV the victim held.
        predicted_swap, predicted_recompute: Seconds; None if it could not be predicted.
        waited: Seconds until it ran again; None before.
        kept_tokens: Tokens of KV that it still had, or got back, when it ran again.
        recomputed_tokens: Tokens computed again so far.
        actual: Seconds spent so far on copying and on computing again.
    """

    step: int
    time: float
    reason: PreemptionReason
    method: Method
    victim: int
    beneficiary: int | None
    blocks: int
    tokens: int
    predicted_swap: float | None
    predicted_recompute: float | None
    waited: float | None = None
    kept_tokens: int = 0
    recomputed_tokens: int = 0
    actual: float = 0.0


class LookUp(NamedTuple):
    """One prefix look-up, of a sequence that was let in.

    Attributes:
        tokens: Tokens looked up. found: how many of them were. hits: the same, by tier.
        miss: Why the next block was not found.
        waited: Seconds that the sequence had waited.
    """

    step: int
    stream: int
    tokens: int
    found: int
    hits: dict[Tier, int]
    miss: Miss
    waited: float


@dataclass(slots=True)
class Decisions:
    """The latest decisions, oldest first.

    Attributes:
        misses: Look-ups by the reason why they ended.
        preemptions_by: (method, reason) → preemptions.
        swap_full: Victims that were to be swapped out and found no room below.
    """

    preemptions: deque[PreemptionRecord] = field(default_factory=lambda: deque(maxlen=_RECORDS))
    look_ups: deque[LookUp] = field(default_factory=lambda: deque(maxlen=_RECORDS))
    misses: Counter[MissReason] = field(default_factory=Counter)
    preemptions_by: Counter[tuple[Method, PreemptionReason]] = field(default_factory=Counter)
    swap_full: int = 0

    def add_preemption(self, record: PreemptionRecord) -> None:
        """Notes a preemption."""
        self.preemptions.append(record)
        self.preemptions_by[record.method, record.reason] += 1

    def add_look_up(self, look_up: LookUp) -> None:
        """Notes a prefix look-up."""
        self.look_ups.append(look_up)
        self.misses[look_up.miss.reason] += 1
