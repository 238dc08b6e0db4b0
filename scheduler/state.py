"""What the scheduler's parts share: who runs, who waits, and how a sequence moves from one to the other."""

from __future__ import annotations

import bisect
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from octavo.block_manager.manager import BlockManager
from octavo.block_manager.tiers import Tier
from octavo.config import SchedulerConfig
from octavo.scheduler.costs import CostModel
from octavo.scheduler.decisions import Decisions, PreemptionRecord, Wait
from octavo.scheduler.history import EventKind, Histories
from octavo.scheduler.plan import Int32s
from octavo.scheduler.queue import Order, WaitingQueue
from octavo.scheduler.request import FinishReason, Request, Sequence, SequenceState
from octavo.scheduler.rows import Rows
from octavo.scheduler.tenants import Tenants


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since the start.

    Attributes:
        prompt_tokens: Prompt tokens computed: without prefix hits, and once more when computed once more.
        generated_tokens: Tokens sampled.
        recomputed_tokens: Tokens that preempted sequences had to compute again, prompt and output.
        swapped_tokens: Tokens whose KV preempted sequences got back from a lower tier.
    """

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    swapped_tokens: int = 0
    forks: int = 0
    unknown_aborts: int = 0
    pins_expired: int = 0
    pins_dropped: int = 0


class Running:
    """The running sequences, in the policy's order.

    Attributes:
        order: That order.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._sequences: list[Sequence] = []
        self._numbers = array("i")  # their rows
        self._rows: Int32s | None = None  # the same, once asked for

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def rows(self) -> Int32s:
        """Their rows, in order; copied anew when somebody came or went, so that those of before stay as they were."""
        if self._rows is None:
            self._rows = np.array(self._numbers, dtype=np.int32)
        return self._rows

    def enter(self, sequence: Sequence) -> None:
        """Adds a sequence that has a row."""
        place = bisect.bisect_left(self._sequences, self.order(sequence), key=self.order)
        self._sequences.insert(place, sequence)
        self._numbers.insert(place, sequence.row)
        self._rows = None

    def leave(self, sequence: Sequence) -> None:
        """Takes a sequence out."""
        place = bisect.bisect_left(self._sequences, self.order(sequence), key=self.order)
        del self._sequences[place], self._numbers[place]
        self._rows = None


@dataclass(slots=True)
class State:
    """Shared by `Scheduler` and its parts; each part says what it changes.

    Attributes:
        requests: Live requests by key.
        forked: Rows that may share the block they write to next.
        finished: Ended sequences by reason.
        gave_way: Sequences preempted in the step that is being planned.
        preempted: Streams of those that gave way, until the outside is told.
        histories: What has happened to requests.
        moves: Blocks that this step copies for the sake of a preemption, and in which direction.
        clock: Seconds, monotonic.
    """

    config: SchedulerConfig
    manager: BlockManager
    rows: Rows
    running: Running
    waiting: WaitingQueue
    tenants: Tenants
    clock: Callable[[], float]
    costs: CostModel = field(default_factory=CostModel)
    decisions: Decisions = field(default_factory=Decisions)
    counters: SchedulerCounters = field(default_factory=SchedulerCounters)
    requests: dict[int, Request] = field(default_factory=dict)
    forked: set[int] = field(default_factory=set)
    gave_way: set[Sequence] = field(default_factory=set)
    preempted: list[int] = field(default_factory=list)
    histories: Histories = field(default_factory=Histories)
    moves: list[tuple[PreemptionRecord, tuple[Tier, Tier]]] = field(default_factory=list)
    finished: Counter[FinishReason] = field(default_factory=Counter)

    def owner(self, row: int) -> Sequence:
        """The sequence in a row."""
        sequence = self.rows.owner[row]
        assert sequence is not None, f"row {row} is empty"
        return sequence

    @property
    def swap_tier(self) -> Tier | None:
        """The tier that takes the next swapped-out blocks; None if there is none or all are full."""
        tiers = self.manager.tiers
        return next((tier for tier in tiers.existing if tiers.counts(tier).used < tiers.counts(tier).total), None)

    def new_sequence(self, request: Request, index: int) -> Sequence:
        """One more sequence of a request, which waits from now on."""
        sequence = Sequence(request, index, request.prompt, queued=self.clock())
        request.sequences.append(sequence)
        return sequence

    def note_wait(self, sequence: Sequence, wait: Wait) -> None:
        """Notes why a sequence waits."""
        sequence.request.history.wait(self.clock(), sequence.index, wait)
        sequence.wait = wait

    def run(self, sequence: Sequence) -> None:
        """Makes a sequence that has got its row one of the running ones."""
        sequence.become(SequenceState.RUNNING)
        self.running.enter(sequence)

    def leave_row(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks and row."""
        self.manager.release(sequence.row)
        self.forked.discard(sequence.row)
        self.running.leave(sequence)
        sequence.computed = int(self.rows.num_computed[sequence.row])
        self.rows.vacate(sequence)

    def drop_swapped(self, sequence: Sequence) -> None:
        """Gives a sequence's copies in lower tiers up."""
        if sequence.swapped is not None:
            self.manager.drop_swapped(sequence.swapped)
            sequence.swapped = None

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence that runs, or that the caller has taken out of its queue."""
        if sequence.state is SequenceState.RUNNING:
            self.leave_row(sequence)
        self.drop_swapped(sequence)
        sequence.become(SequenceState.FINISHED)
        self.finished[reason] += 1
        request, now = sequence.request, self.clock()
        told = {"reason": str(reason), "output_tokens": len(sequence.tokens) - len(request.prompt)}
        request.history.add(now, EventKind.FINISHED, sequence.index, told)
        request.sequences.remove(sequence)
        if not request.sequences:
            self.rows.hold(-request.held_rows)
            self.forget(request)

    def forget(self, request: Request) -> None:
        """Lets go of a request whose last sequence has ended."""
        del self.requests[request.key]
        self.histories.end(request.history, self.clock())

    def blocks_to_come(self, rows: Int32s, tokens: int) -> int:
        """Blocks that these running rows will take on top while each gains so many tokens."""
        tokens = min(tokens, self.rows.token_ids.shape[1])  # nobody gains more, and int32 holds it
        ahead = np.minimum(self.rows.num_tokens[rows] + tokens, self.rows.limit[rows] - 1)
        blocks = self.manager.blocks_at(ahead) - self.manager.blocks_held(rows)
        return int(np.maximum(blocks, 0).sum())
