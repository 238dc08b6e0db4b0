"""The continuous-batching scheduler.

There are no phases. Every running sequence has ``num_computed`` tokens in the KV cache and ``num_tokens`` known
ones, and each step lets the first chase the second within the token budget. Decode (one token missing), chunked
prefill (many missing), prefix hits (fewer missing) and resumption after a preemption (many missing again) are
one case.

A step goes through the running sequences first, so that nobody who waits takes from those who run:

1. Sequences that compute one token get a block if they cross into one, or a copy if they share theirs. When no
   block is left, the sequence that arrived last gives way: its blocks are released and it waits again.
2. Sequences with more to compute get a chunk each, in order of arrival. Their blocks are reserved already.
3. If nobody had to give way, waiting sequences are admitted in order, each with its cached prefix.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import Counter, deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from octavo.block_manager.manager import BlockCopy, BlockManager, PrefixMatch
from octavo.config import SchedulerConfig
from octavo.errors import QueueFullError
from octavo.scheduler.plan import Finished, Int32s, StepPlan, StepResult
from octavo.scheduler.queue import WaitingQueue
from octavo.scheduler.request import FinishReason, Request, Sequence, SequenceState, Tokens
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.validation import check_length, check_prompt

# A sequence that was part of so many failed steps is taken for their cause, even if it never failed alone.
_MAX_FAILURES = 3

# A waiting sequence that lacked blocks looks its prefix up again when enough blocks have become available, and
# otherwise once in so many steps, since others may have computed its prefix meanwhile.
_RETRY_STEPS = 16


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since the start.

    Attributes:
        prompt_tokens: Prompt tokens computed: without prefix hits, and once more when computed once more.
        generated_tokens: Tokens sampled.
        recomputed_tokens: Tokens that preempted sequences had to compute again, prompt and output.
    """

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    forks: int = 0
    unknown_aborts: int = 0


@dataclass(slots=True)
class _Blocked:
    """The waiting sequence that lacked blocks, and when looking again makes sense."""

    sequence: Sequence
    available: int
    step: int


class Scheduler:
    """Decides what each step computes.

    Args:
        config: Limits on sequences, tokens and waiting requests.
        manager: The block manager, with ``config.max_num_seqs`` rows.
        max_model_len: The longest sequence, prompt and output.
        vocab_size: Token ids lie in ``[0, vocab_size)``.
        eos_token_ids: The model's end-of-sequence tokens.
        seed: For requests without a seed of their own.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        manager: BlockManager,
        *,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
        seed: int = 0,
    ) -> None:
        self.config = config
        self.manager = manager
        self.max_model_len = max_model_len
        self.rows = Rows(config.max_num_seqs, max_model_len)
        self.waiting = WaitingQueue()
        self.counters = SchedulerCounters()
        self.finished: Counter[str] = Counter()
        self._eos = np.zeros(vocab_size, dtype=np.bool_)
        self._eos[list(eos_token_ids)] = True
        self._random = random.Random(seed)
        self._requests: dict[int, Request] = {}
        self._arrivals = 0
        self._running: list[Sequence] = []  # in order of arrival
        self._running_rows: Int32s | None = None  # their rows; None: to be rebuilt
        self._forked: set[int] = set()  # rows that may share the block they write to next
        # Were in a failed step; each runs one step alone, at the head of this queue until that step is done.
        self._suspects: deque[Sequence] = deque()
        self._forks: dict[int, list[Sequence]] = {}  # row -> siblings to fork off when this step is done
        self._blocked: _Blocked | None = None
        self._watermark = math.ceil(config.watermark_ratio * manager.pool.num_blocks)

    # ── what the outside asks for ─────────────────────────────────────────────────────────────────────────

    @property
    def num_running(self) -> int:
        """Sequences that have a row."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self.waiting) + len(self._suspects)

    @property
    def has_work(self) -> bool:
        """Whether `schedule` has anything to plan."""
        return bool(self._running or self.num_waiting)

    def largest_request(self) -> int:
        """The most tokens (prompt + output) that a request may ask for: the window, or what the pool can hold."""
        # The last sampled token is returned and never computed, so it needs no slot.
        return min(self.max_model_len, self.manager.max_tokens + 1)

    def add(self, key: int, prompt: Many[int] | Tokens, sampling: SamplingParams, salt: str = "") -> None:
        """Queues a request.

        Args:
            key: A number that is unique among live requests.
            prompt: At least one token id.

        Raises:
            InvalidRequestError: The prompt is empty or holds an id outside the vocabulary.
            NeverFitsError: No amount of waiting would make room for it.
            QueueFullError: Too many wait already.
        """
        tokens = check_prompt(prompt, sampling, vocab_size=len(self._eos))
        limit = check_length(len(tokens), sampling, largest=self.largest_request())
        if self.num_waiting >= self.config.max_waiting:
            raise QueueFullError(f"{self.num_waiting} sequences are waiting already, the most this server allows")
        assert key not in self._requests, f"request {key} exists already"
        seed = sampling.seed if sampling.seed is not None else self._random.getrandbits(63)
        request = Request(key, self._arrivals, tokens, sampling, limit, seed, salt, unforked=sampling.n - 1)
        self._arrivals += 1
        self._requests[key] = request
        self.waiting.push(self._new_sequence(request, 0))

    def abort(self, key: int) -> bool:
        """Ends a request and frees its blocks; False (and counted) if there is no such request.

        Not between `schedule` and `update`; nor is `end_sequence`.
        """
        request = self._requests.get(key)
        if request is None:
            self.counters.unknown_aborts += 1
            return False
        for sequence in list(request.sequences):
            self._finish(sequence, FinishReason.ABORT)
        return True

    def end_sequence(self, key: int, index: int) -> None:
        """Ends one sequence as "stop": whoever reads its text has seen enough. Unknown ones are ignored."""
        request = self._requests.get(key)
        for sequence in list(request.sequences) if request is not None else ():
            if sequence.index == index:
                self._finish(sequence, FinishReason.STOP)

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────────

    def schedule(self) -> StepPlan | None:
        """Plans the next step; None if no sequence can run.

        Every plan is followed by exactly one call of `update` or `fail`.
        """
        if self._suspects:
            return self._plan_alone(self._suspects[0])
        preemptions = self.counters.preemptions
        copies = self._prepare_decodes()
        rows, lens = self._split_budget()
        self._publish(rows, lens)
        if self.counters.preemptions == preemptions:
            admitted, chunks = self._admit(self.config.max_num_batched_tokens - int(lens.sum()))
            rows, lens = np.concatenate((rows, admitted)), np.concatenate((lens, chunks))
        return self._plan(rows, lens, copies)

    def update(self, plan: StepPlan, sampled: Int32s) -> StepResult:
        """Takes in what a step computed.

        Args:
            plan: The plan that was executed.
            sampled: int32 ``[num_samples]``, a token for each of ``plan.sample_rows``.
        """
        rows, gained = self.rows, plan.sample_rows
        self.counters.prompt_tokens += int(np.clip(rows.prompt_len[plan.rows] - plan.starts, 0, plan.query_lens).sum())
        self.counters.generated_tokens += len(sampled)
        rows.num_computed[plan.rows] += plan.query_lens
        for row in self.manager.rows_with_duplicates:
            self.manager.merge_duplicates(row, rows.token_ids[row], int(rows.num_computed[row]))
        if self._suspects and self._suspects[0].state is SequenceState.RUNNING:
            self._suspects.popleft()
        self._fork_siblings()

        lengths = rows.num_tokens[gained]
        first = np.flatnonzero(lengths == rows.prompt_len[gained]).tolist()
        started = [(int(rows.stream[gained[i]]), self._owner(gained[i]).cached_tokens) for i in first]
        rows.token_ids[gained, lengths] = sampled
        rows.num_tokens[gained] = lengths + 1
        streams = rows.stream[gained]
        return StepResult(streams, sampled, tuple(started), tuple(self._finish_ended(gained, lengths + 1, sampled)))

    def fail(self, plan: StepPlan, error: str) -> StepResult:
        """Takes in that a step could not be executed.

        A step of one sequence has found its culprit, and the whole request fails. Otherwise all sequences of the
        step start over, each alone for one step, so that only the culprit fails; what they computed in earlier
        steps is still cached. Who was in several failed steps of which nobody was the culprit fails as well, or a
        fault that only a full batch shows would repeat for ever.
        """
        self._unplan_forks()
        members = [self._owner(row) for row in plan.rows.tolist()]
        for sequence in members:
            self.manager.retract(sequence.row, int(self.rows.num_computed[sequence.row]))
        if self._suspects and self._suspects[0] in members:
            self._suspects.popleft()
        failed = []
        for sequence in members:
            if sequence.state is SequenceState.FINISHED:  # a sibling's failure took it along
                continue
            sequence.failures += 1
            if len(members) > 1 and sequence.failures < _MAX_FAILURES:
                self._leave_row(sequence)
                sequence.become(SequenceState.PREEMPTED)
                self._suspects.append(sequence)
            else:
                failed.append(Finished(sequence.stream, FinishReason.ERROR, error=error))
                for sibling in list(sequence.request.sequences):
                    self._finish(sibling, FinishReason.ERROR)
                if len(members) == 1:
                    self._exonerate()
        return StepResult(finished=tuple(failed))

    def _exonerate(self) -> None:
        """The culprit is found: what the others failed with it is not held against them."""
        for request in self._requests.values():
            for sequence in request.sequences:
                sequence.failures = 0

    # ── step 1: one-token sequences get their block ───────────────────────────────────────────────────────

    def _prepare_decodes(self) -> list[BlockCopy]:
        """Gives every one-token sequence a block of its own to write to; preempts until there are enough."""
        crossing, sharing = self._rows_that_write_elsewhere()
        while len(crossing) + self.manager.copies_needed(sharing) > self.manager.pool.available:
            self._preempt(self._running[-1])
            crossing, sharing = self._rows_that_write_elsewhere()
        # Nobody gives way from here on, so no block that is a copy's source or destination changes hands.
        for row in crossing:
            self.manager.grow(row)
        self._forked.clear()
        return [copy for row, position in sharing if (copy := self.manager.make_writable(row, position))]

    def _rows_that_write_elsewhere(self) -> tuple[list[int], list[tuple[int, int]]]:
        """One-token rows that cross into a new block, and (row, position) of those that may share theirs."""
        rows = self._rows_in_order()
        position = self.rows.num_computed[rows]
        single = self.rows.num_tokens[rows] - position == 1
        crosses = single & (position >= self.manager.tables.lengths[rows] * self.manager.block_size)
        crossing: list[int] = rows[crosses].tolist()
        shares = np.isin(rows, list(self._forked)) & single & ~crosses if self._forked else np.zeros_like(single)
        return crossing, list(zip(rows[shares].tolist(), position[shares].tolist(), strict=True))

    def _preempt(self, victim: Sequence) -> None:
        """Takes a running sequence's blocks and lets it wait for its turn again; what it has is recomputed."""
        victim.preemptions += 1
        self.counters.preemptions += 1
        self._leave_row(victim)
        victim.become(SequenceState.PREEMPTED)
        self.waiting.push(victim)

    # ── step 2: the budget ────────────────────────────────────────────────────────────────────────────────

    def _split_budget(self) -> tuple[Int32s, Int32s]:
        """Rows to compute and tokens for each: one-token sequences first, then chunks in order of arrival."""
        rows = self._rows_in_order()
        missing = self.rows.num_tokens[rows] - self.rows.num_computed[rows]
        single = missing == 1
        if single.all():
            return rows, missing
        behind = rows[~single]
        budget = self.config.max_num_batched_tokens - int(single.sum())
        # What is left for each one after those before it took theirs.
        spent_before = np.cumsum(missing[~single]) - missing[~single]
        chunks = np.clip(budget - spent_before, 0, missing[~single]).astype(np.int32)
        served = chunks > 0
        return np.concatenate((rows[single], behind[served])), np.concatenate((missing[single], chunks[served]))

    def _publish(self, rows: Int32s, lens: Int32s) -> None:
        """Publishes the blocks that this step fills."""
        before = self.rows.num_computed[rows]
        after = before + lens
        fills = after // self.manager.block_size > before // self.manager.block_size
        for row, end in zip(rows[fills].tolist(), after[fills].tolist(), strict=True):
            self.manager.publish(row, self.rows.token_ids[row], end)

    # ── step 3: admission ─────────────────────────────────────────────────────────────────────────────────

    def _admit(self, budget: int) -> tuple[Int32s, Int32s]:
        """Admits waiting sequences while there are rows, blocks and budget; returns their rows and chunks."""
        rows, chunks = [], []
        while budget > 0 and self.rows.available and (sequence := self.waiting.peek()):
            match = self._find_room(sequence)
            if match is None:
                break
            self.waiting.remove(sequence)
            row = self._start(sequence, match)
            chunk = self._first_chunk(row, budget)
            rows.append(row)
            chunks.append(chunk)
            budget -= chunk
        return np.array(rows, dtype=np.int32), np.array(chunks, dtype=np.int32)

    def _find_room(self, sequence: Sequence) -> PrefixMatch | None:
        """The sequence's cached prefix if its blocks can be had now, else None."""
        blocked, available = self._blocked, self.manager.pool.available
        if (
            self._running  # with nobody running, nothing will ever change and the watermark does not apply
            and blocked is not None
            and blocked.sequence is sequence
            and available < blocked.available
            and self.counters.steps < blocked.step
        ):
            return None
        match = self.manager.match_prefix(sequence.tokens, sequence.request.salt)
        short = self.manager.shortfall(match, len(sequence.tokens), self._watermark if self._running else 0)
        if short:
            self._blocked = _Blocked(sequence, available + short, self.counters.steps + _RETRY_STEPS)
            return None
        self._blocked = None
        return match

    def _start(self, sequence: Sequence, match: PrefixMatch) -> int:
        """Gives a sequence its row and blocks."""
        hit = len(match.blocks) * self.manager.block_size
        if sequence.state is SequenceState.WAITING:
            sequence.cached_tokens = hit
        else:
            self.counters.recomputed_tokens += len(sequence.tokens) - hit
        row = self.rows.occupy(sequence, hit)
        self.manager.reserve(row, match, len(sequence.tokens))
        sequence.become(SequenceState.RUNNING)
        self._insert_running(sequence)
        return row

    def _first_chunk(self, row: int, budget: int) -> int:
        """Tokens that a sequence just started computes in this step; publishes the blocks that they fill."""
        computed = int(self.rows.num_computed[row])
        chunk = min(budget, int(self.rows.num_tokens[row]) - computed)
        self.manager.publish(row, self.rows.token_ids[row], computed + chunk)
        return chunk

    def _plan_alone(self, suspect: Sequence) -> StepPlan:
        """A step of one sequence, to find out whether it is the one that makes steps fail."""
        match = self.manager.match_prefix(suspect.tokens, suspect.request.salt)
        while not self.rows.available or self.manager.shortfall(match, len(suspect.tokens)):
            self._preempt(self._running[-1])
            match = self.manager.match_prefix(suspect.tokens, suspect.request.salt)
        row = self._start(suspect, match)
        chunk = self._first_chunk(row, self.config.max_num_batched_tokens)
        plan = self._plan(np.array([row], dtype=np.int32), np.array([chunk], dtype=np.int32), [])
        assert plan is not None
        return plan

    # ── plan and result ───────────────────────────────────────────────────────────────────────────────────

    def _plan(self, rows: Int32s, lens: Int32s, copies: Many[BlockCopy]) -> StepPlan | None:
        if not len(rows):
            return None
        order = np.argsort(lens > 1, kind="stable")  # a chunk of one token is a decode to the kernels
        rows, lens = rows[order], lens[order]
        starts = self.rows.num_computed[rows]
        sample_from = np.flatnonzero(starts + lens == self.rows.num_tokens[rows]).astype(np.int32)
        sample_rows = rows[sample_from]
        if self.rows.unforked[sample_rows].any():
            sample_from, sample_rows = self._plan_forks(rows, sample_from)
        number = self.counters.steps
        self.counters.steps += 1
        num_decodes = int(np.count_nonzero(lens == 1))
        return StepPlan(number, rows, starts, lens, num_decodes, sample_from, sample_rows, tuple(copies))

    def _plan_forks(self, rows: Int32s, sample_from: Int32s) -> tuple[Int32s, Int32s]:
        """Lets the siblings of sequences whose prompt is complete sample from the same logits."""
        sources, targets = [], []
        for source in sample_from.tolist():
            row = int(rows[source])
            siblings = self._new_siblings(row) if self.rows.unforked[row] else []
            for target in (row, *(sibling.row for sibling in siblings)):
                sources.append(source)
                targets.append(target)
        return np.array(sources, dtype=np.int32), np.array(targets, dtype=np.int32)

    def _new_siblings(self, row: int) -> list[Sequence]:
        """Rows for the siblings to fork off this row; those without room wait like any new sequence."""
        first = self._owner(row)
        request = first.request
        self.rows.unforked[row] = False
        room = min(request.unforked, self.rows.available, self.manager.pool.available - self._watermark)
        siblings = []
        for index in range(1, request.unforked + 1):
            sibling = self._new_sequence(request, index)
            if index > room:
                self.waiting.push(sibling)
                continue
            sibling.cached_tokens = first.cached_tokens
            self.rows.occupy(sibling, num_computed=len(request.prompt))
            siblings.append(sibling)
        request.unforked = 0
        if siblings:
            self._forks[row] = siblings
        return siblings

    def _fork_siblings(self) -> None:
        for row, siblings in self._forks.items():
            self._forked.add(row)
            for sibling in siblings:
                self.manager.fork(row, sibling.row)
                sibling.become(SequenceState.RUNNING)
                self._insert_running(sibling)
                self._forked.add(sibling.row)
                self.counters.forks += 1
        self._forks.clear()

    def _unplan_forks(self) -> None:
        for sibling in (s for siblings in self._forks.values() for s in siblings):
            self.rows.vacate(sibling)
            self.waiting.push(sibling)
        self._forks.clear()

    def _finish_ended(self, gained: Int32s, lengths: Int32s, sampled: Int32s) -> list[Finished]:
        rows = self.rows
        stops = self._eos[sampled] & rows.stops_at_eos[gained]
        for i in np.flatnonzero(rows.has_stop_ids[gained]).tolist():
            stops[i] |= int(sampled[i]) in self._owner(gained[i]).request.sampling.stop_token_ids
        stops &= lengths > rows.min_len[gained]
        ended = []
        for i in np.flatnonzero(stops | (lengths >= rows.limit[gained])).tolist():
            sequence = self._owner(gained[i])
            reason = FinishReason.STOP if stops[i] else FinishReason.LENGTH
            ended.append(Finished(sequence.stream, reason, int(sampled[i]) if stops[i] else None))
            self._finish(sequence, reason)
        return ended

    # ── a sequence's comings and goings ───────────────────────────────────────────────────────────────────

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        sequence = Sequence(request, index, request.prompt)
        request.sequences.append(sequence)
        return sequence

    def _insert_running(self, sequence: Sequence) -> None:
        bisect.insort(self._running, sequence, key=lambda other: other.order)
        self._running_rows = None

    def _leave_row(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks and row."""
        self.manager.release(sequence.row)
        self._forked.discard(sequence.row)
        self.rows.vacate(sequence)
        self._running.remove(sequence)
        self._running_rows = None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence in whatever state it is."""
        if sequence.state is SequenceState.RUNNING:
            self._leave_row(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self._suspects.remove(sequence)
        if self._blocked is not None and self._blocked.sequence is sequence:
            self._blocked = None
        sequence.become(SequenceState.FINISHED)
        self.finished[reason] += 1
        request = sequence.request
        request.sequences.remove(sequence)
        if not request.sequences:
            del self._requests[request.key]

    def _owner(self, row: int) -> Sequence:
        sequence = self.rows.owner[row]
        assert sequence is not None, f"row {row} is empty"
        return sequence

    def _rows_in_order(self) -> Int32s:
        """The running sequences' rows in order of arrival; rebuilt only when somebody came or went."""
        if self._running_rows is None:
            self._running_rows = np.array([sequence.row for sequence in self._running], dtype=np.int32)
        return self._running_rows

    def check_integrity(self) -> list[str]:
        """Every invariant of scheduler and blocks that does not hold, in words. O(num_blocks)."""
        problems = self.manager.check_integrity()
        for sequence in self._running:
            covered = int(self.manager.tables.lengths[sequence.row]) * self.manager.block_size
            if self.rows.num_computed[sequence.row] > covered:
                problems.append(f"sequence {sequence.order} has computed more tokens than its blocks hold")
        running = {sequence.row for sequence in self._running}
        for row in range(len(self.rows.owner)):
            if row not in running and self.manager.tables.lengths[row]:
                problems.append(f"row {row} holds blocks and belongs to no running sequence")
        if running != {row for row, owner in enumerate(self.rows.owner) if owner is not None}:
            problems.append("rows and running sequences disagree")
        return problems
