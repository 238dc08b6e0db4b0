"""The continuous-batching scheduler.

There are no phases. Every running sequence has ``num_computed`` tokens in the KV cache and ``num_tokens`` known
ones, and each step lets the first chase the second within the token budget. Decode (one token missing), chunked
prefill (many missing), prefix hits (fewer missing), swapping in, and resumption after a preemption (many missing
again) are one case.

A step goes through the running sequences first, so that nobody who waits takes from those who run:

1. Sequences that compute one token get a block if they cross into one, or a copy if they share theirs. When no
   block is left, somebody gives way (`Growth`, `Preemption`).
2. Sequences with more to compute get a chunk each, in the policy's order. Their blocks are reserved already.
3. If nobody had to give way, waiting sequences are let in, each with its cached prefix (`Admission`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from octavo.block_manager.manager import BlockCopy, BlockManager
from octavo.block_manager.pins import Pin
from octavo.block_manager.tiers import Place, Tier, Transfer, TransferTiming
from octavo.config import SchedulerConfig
from octavo.errors import ClientError, InvalidRequestError, PinBudgetError, QueueFullError
from octavo.scheduler.admission import Admission
from octavo.scheduler.beams import Beams
from octavo.scheduler.choice import give_out, joined
from octavo.scheduler.decisions import Wait, WaitReason
from octavo.scheduler.faults import Suspects
from octavo.scheduler.forks import Forks
from octavo.scheduler.growth import Growth
from octavo.scheduler.history import Event, EventKind, History
from octavo.scheduler.lookahead import LookAhead
from octavo.scheduler.pinning import Pinning
from octavo.scheduler.plan import Finished, Float32s, Int32s, Sampled, Started, StepPlan, StepResult
from octavo.scheduler.preemption import Preemption
from octavo.scheduler.queue import make_queue
from octavo.scheduler.request import Candidate, FinishReason, Request, Sequence, SequenceState, Tokens
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.state import Running, SchedulerCounters, State
from octavo.scheduler.streams import stream_of
from octavo.scheduler.tenants import Tenant, Tenants
from octavo.scheduler.validation import check_length, check_prompt, check_tokens, largest_search

# Prefill tokens that a step may always compute: however slow decodes are, prompts get on.
_LEAST_PREFILL = 32

# Steps between two looks at whether lower tiers are worth coming back from.
_JUDGE_TIERS_STEPS = 16


def _with(rows: Int32s, lens: Int32s, admitted: list[tuple[int, int]]) -> tuple[Int32s, Int32s]:
    """Rows and tokens for each, with those that were let in behind them."""
    both = np.empty((2, len(rows) + len(admitted)), dtype=np.int32)
    both[0, : len(rows)] = rows
    both[1, : len(rows)] = lens
    for place, (row, chunk) in enumerate(admitted, len(rows)):
        both[0, place] = row
        both[1, place] = chunk
    return both[0], both[1]


class Scheduler:
    """Decides what each step computes.

    Args:
        config: Limits on sequences, tokens and waiting requests, and the policies.
        manager: The block manager, with ``config.max_num_seqs`` rows.
        max_model_len: The longest sequence, prompt and output.
        vocab_size: Token ids lie in ``[0, vocab_size)``.
        eos_token_ids: The model's end-of-sequence tokens.
        seed: For requests without a seed of their own.
        clock: Seconds, monotonic.

    Attributes:
        state: What its parts share; `costs` and `decisions` are there to be read.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.manager = manager
        self.max_model_len = max_model_len
        self.rows = Rows(config.max_num_seqs, max_model_len)
        waiting = make_queue(config.policy)
        running = Running(waiting.order)
        self.state = State(config, manager, self.rows, running, waiting, Tenants(config.tenants), clock)
        self.pinning = Pinning(self.state)
        self._eos = np.zeros(vocab_size, dtype=np.bool_)
        eos_token_ids = list(eos_token_ids)
        self._eos[eos_token_ids] = True
        # Of each tenant, for one sequence. The last sampled token is returned and never computed, so it needs no slot.
        most = (manager.max_tokens(tenant.index) + 1 for tenant in self.state.tenants)
        self._longest = [min(max_model_len, tokens) for tokens in most]
        self._random = random.Random(seed)
        self._arrivals = 0
        self._beams = Beams(self.state, frozenset(eos_token_ids))
        self._preemption = Preemption(self.state, self._beams)
        look_ahead = LookAhead(self.state)
        self._growth = Growth(self.state, self._preemption, look_ahead)
        self._admission = Admission(self.state, self._preemption, self._beams, look_ahead)
        self._forks = Forks(self.state, self._admission.watermark)
        self._suspects = Suspects(self.state, self._preemption, self._admission, self._beams)
        self._returning: dict[int, Sequence] = {}  # row -> a preempted sequence that catches up

    # ── what the outside asks for ─────────────────────────────────────────────────────────────────────────

    @property
    def counters(self) -> SchedulerCounters:
        """Totals since the start."""
        return self.state.counters

    @property
    def num_running(self) -> int:
        """Sequences that have a row."""
        return len(self.state.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, preempted and swapped-out ones included."""
        return len(self.state.waiting) + len(self._suspects)

    @property
    def num_swapped(self) -> int:
        """Waiting sequences whose KV lies in a lower tier."""
        return sum(sequence.swapped is not None for sequence in self.waiting_sequences())

    @property
    def has_work(self) -> bool:
        """Whether `schedule` has anything to plan."""
        return bool(self.num_running or self.num_waiting)

    def largest_request(self, tenant: str = "") -> int:
        """The most tokens (prompt + output) that a request may ask for: the window, or what its tenant may hold."""
        return self._largest(1, SamplingParams(), self.state.tenants.named(tenant))

    def add(
        self,
        key: int,
        prompt: Many[int] | Tokens,
        sampling: SamplingParams,
        salt: str = "",
        *,
        tenant: str = "",
        priority: int = 0,
        pin_ttl: float | None = None,
    ) -> None:
        """Queues a request.

        Args:
            key: A number that is unique among live requests.
            prompt: At least one token id.
            salt: Requests with different salts never share blocks; nor do those of different tenants.
            tenant: Whose request it is; "" is the default tenant.
            priority: Smaller is more urgent, under that policy.
            pin_ttl: Seconds for which to pin the prompt's full blocks once they are computed, if pins may take so much.

        Raises:
            InvalidRequestError: The prompt is empty or holds an id outside the vocabulary, there is no such tenant, or
                ``pin_ttl`` is no positive number.
            NeverFitsError: No amount of waiting would make room for it.
            QueueFullError: Too many wait already.
        """
        owner = self.state.tenants.named(tenant)
        tokens = check_prompt(prompt, sampling, vocab_size=len(self._eos))
        limit = check_length(len(tokens), sampling, largest=self._largest(len(tokens), sampling, owner))
        if pin_ttl is not None:
            self.pinning.check_ttl(pin_ttl)
        ahead = self.num_waiting
        if ahead >= self.config.max_waiting:
            raise QueueFullError(f"{ahead} sequences are waiting already, the most this server allows")
        assert key not in self.state.requests, f"request {key} exists already"
        now = self.state.clock()
        queued = Event(now, EventKind.QUEUED, 0, {"prompt_tokens": len(tokens), "ahead": ahead})
        history = History(key, owner.name, len(tokens), now, [queued])
        request = Request(
            key=key,
            number=self._arrivals,
            prompt=tokens,
            sampling=sampling,
            limit=limit,
            seed=sampling.seed if sampling.seed is not None else self._random.getrandbits(63),
            tenant=owner,
            salt=salt,
            priority=priority,
            arrival=now,
            pin_ttl=pin_ttl,
            unforked=0 if sampling.beam_width else sampling.num_sequences - 1,
            history=history,
        )
        self.state.histories.begin(history)
        self._arrivals += 1
        self.state.requests[key] = request
        self.state.waiting.push(self.state.new_sequence(request, 0))

    def _largest(self, num_prompt: int, sampling: SamplingParams, tenant: Tenant) -> int:
        """The most tokens that a request with this prompt may come to."""
        largest, width = self._longest[tenant.index], sampling.beam_width
        if width < 2:
            return largest
        if width > self.config.max_num_seqs:
            raise InvalidRequestError(
                f"beam_width {width} needs as many running sequences, and this server runs {self.config.max_num_seqs}",
                param="beam_width",
            )
        blocks = self.manager.quota.capacity(tenant.index)
        capacity = blocks // self.manager.blocks_per_column
        search = largest_search(num_prompt, width, block_size=self.manager.block_size, capacity=capacity)
        return min(largest, search)

    def abort(self, key: int) -> bool:
        """Ends a request and frees its blocks; False (and counted) if there is no such request.

        Not between `schedule` and `update`; nor is `end_sequence`.
        """
        request = self.state.requests.get(key)
        if request is None:
            self.counters.unknown_aborts += 1
            return False
        for sequence in list(request.sequences):
            self._finish(sequence, FinishReason.ABORT)
        return True

    def give_up(self, key: int, error: str) -> Finished:
        """Ends a request that cannot go on, and frees its blocks; not between `schedule` and `update`."""
        for sequence in list(self.state.requests[key].sequences):
            self._finish(sequence, FinishReason.ERROR)
        return Finished(stream_of(key, 0), FinishReason.ERROR, error=error)

    def end_sequence(self, key: int, index: int) -> None:
        """Ends one sequence as "stop": whoever reads its text has seen enough. Unknown ones are ignored."""
        request = self.state.requests.get(key)
        for sequence in list(request.sequences) if request is not None else ():
            if sequence.index == index:
                self._finish(sequence, FinishReason.STOP)

    def pin(self, tokens: Many[int] | Tokens, ttl: float, *, tenant: str = "", salt: str = "") -> Pin | None:
        """Keeps the full blocks of some tokens for ``ttl`` seconds, if they are cached.

        Returns:
            The pin; None if the tokens are not all cached: `add` them with ``pin_ttl`` then.

        Raises:
            InvalidRequestError: The tokens fill no block, ``ttl`` is no positive number, or there is no such tenant.
            NeverFitsError: More blocks than may ever be pinned.
            PinBudgetError: Other pins leave too little of the budget.
        """
        owner = self.state.tenants.named(tenant)
        ids = check_tokens(tokens, vocab_size=len(self._eos))
        return self.pinning.pin(ids, ttl, owner, salt)

    def invalidate(self, *, tenant: str = "", salt: str | None = None, tokens: Many[int] | None = None) -> int:
        """Forgets what is cached for a tenant, for one of its salts, or from a prefix on; returns how many blocks.

        Not between `schedule` and `update`.

        Args:
            salt: Only this one; None for all of the tenant's.
            tokens: Only the last full block of these tokens and all that follows it.

        Raises:
            InvalidRequestError: There is no such tenant, or a token id is outside the vocabulary.
        """
        index = self.state.tenants.named(tenant).index
        if tokens is None:
            return self.manager.invalidate_namespaces(index, salt)
        ids = check_tokens(tokens, vocab_size=len(self._eos))
        return self.manager.invalidate_prefix(ids, salt or "", index)

    def explain_waits(self) -> dict[int, Wait]:
        """Stream → why it waits, for every waiting sequence; those that no step has looked at are behind others."""
        return {sequence.stream: wait for sequence, wait in self.explained_waits()}

    def explained_waits(self) -> Iterator[tuple[Sequence, Wait]]:
        """The same, sequence by sequence, in the policy's order."""
        seen: set[int] = set()
        first: int | None = None
        for sequence in self.state.waiting.in_turn():
            wait, first = sequence.wait, sequence.stream if first is None else first
            if wait.reason is WaitReason.NEW and first != sequence.stream:
                wait = Wait(WaitReason.BEHIND, behind=first, step=self.counters.steps)
            elif wait.behind is not None and wait.behind not in seen:
                wait = replace(wait, behind=None)  # it has gone since
            seen.add(sequence.stream)
            yield sequence, wait
        for suspect in self._suspects:
            if suspect.state is not SequenceState.RUNNING:
                yield suspect, Wait(WaitReason.ISOLATION, step=self.counters.steps)

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────────

    def schedule(self) -> StepPlan | None:
        """Plans the next step; None if no sequence can run.

        Every plan is followed by exactly one call of `update` or `fail`, possibly after one of `lose`.
        """
        self.pinning.expire()
        self._judge_tiers()
        self._admission.started.clear()
        self.state.gave_way.clear()
        self.state.moves.clear()
        if len(self._suspects):
            return self._plan(*self._suspects.start_next(self.config.max_num_batched_tokens), [])
        self.manager.slide(self.state.running.rows, self.rows.num_computed[self.state.running.rows])
        # Before any copy is planned: a victim's blocks must be complete to be swapped out.
        self._admission.claim()
        preemptions = self.counters.preemptions
        copies = self._growth.prepare()
        nobody_gave_way = self.counters.preemptions == preemptions
        rows, lens, budget = self._split_budget()
        self._publish(rows, lens)
        if nobody_gave_way:
            if admitted := self._admission.admit(budget):
                rows, lens = _with(rows, lens, admitted)
        else:
            self._admission.note(WaitReason.PREEMPTION)
        return self._plan(rows, lens, copies)

    def lose(self, plan: StepPlan, lost: Many[Transfer]) -> StepPlan | None:
        """Takes in that some of the plan's transfers did not arrive, before anything was computed.

        Whoever was let in with this step starts over, without what was lost; nobody else can have read it.

        Returns:
            What is left of the plan; None if nothing is.
        """
        self.manager.tiers.lost += len(lost)
        ends = {Place(*end) for transfer in lost for end in (transfer[:2], transfer[2:])}
        places = {place for place in ends if place.tier is not Tier.DEVICE}
        for place in places:
            self.manager.tiers.forget(place)
        for sequence in self.waiting_sequences():
            if sequence.swapped is not None and not places.isdisjoint(sequence.swapped.held):
                self.state.drop_swapped(sequence)
                sequence.become(SequenceState.PREEMPTED)
        if all(transfer.target is not Tier.DEVICE for transfer in lost):
            return plan
        started = set(self._admission.started)
        gone = started | self._forks.cancel(started)
        for row, on_device in reversed(self._admission.started.items()):
            sequence = self.state.owner(row)
            self.manager.retract(row, on_device)
            self._beams.leave_row(sequence)
            sequence.become(SequenceState.PREEMPTED)
            self._put_back(sequence)
        left = plan.without(gone)
        return left if len(left.rows) else None

    def update(self, plan: StepPlan, sampled: Sampled) -> StepResult:
        """Takes in what a step computed.

        Args:
            plan: The plan that was executed.
            sampled: A token for each of ``plan.sample_rows``.
        """
        rows, gained = self.rows, plan.sample_rows
        self.counters.prompt_tokens += int(np.clip(rows.prompt_len[plan.rows] - plan.starts, 0, plan.query_lens).sum())
        self.counters.generated_tokens += len(sampled.tokens)
        rows.num_computed[plan.rows] += plan.query_lens
        for row in self.manager.rows_with_duplicates:
            self.manager.merge_duplicates(row, rows.token_ids[row], int(rows.num_computed[row]))
        self._suspects.step_done()
        self._forks.carry_out()

        self.state.tenants.charge_output(rows.tenant[gained])
        started, pinned = self._started(gained[rows.num_tokens[gained] == rows.prompt_len[gained]])
        preempted = tuple(self.state.preempted)
        self.state.preempted.clear()
        if sampled.beam_tokens is None:
            result = self._append(gained, sampled.tokens, sampled.logprobs)
            told = preempted, pinned, sampled.scores, sampled.embeddings
            return StepResult(result.streams, result.tokens, started, result.finished, *told)
        sampling = rows.beam_width[gained] == 0
        logprobs = None if sampled.logprobs is None else sampled.logprobs[sampling]
        chosen = self._advance_beams(gained[~sampling], sampled)
        result = self._append(gained[sampling], sampled.tokens[sampling], logprobs)
        known = StepResult(
            started=started,
            preempted=preempted,
            pinned=pinned,
            scores=sampled.scores,
            embeddings=sampled.embeddings,
        )
        return joined([known, result, *chosen])

    def _started(self, rows: Int32s) -> tuple[tuple[Started, ...], tuple[tuple[int, int], ...]]:
        """What to tell of sequences whose prompt is complete: how they came to it, and the pins asked for."""
        started, pinned = [], []
        for row in rows.tolist():
            sequence = self.state.owner(row)
            if sequence.index < sequence.request.sampling.n:
                started.append(self._start_of(sequence))
            if sequence.request.pin_ttl is not None and (pin := self._pin_prompt(sequence)) is not None:
                pinned.append(pin)
        return tuple(started), tuple(pinned)

    def _start_of(self, sequence: Sequence) -> Started:
        assert sequence.admitted is not None, f"sequence {sequence.order} was not let in"
        now = self.state.clock()
        seconds = now - sequence.admitted
        if not sequence.index:
            sequence.request.history.add(now, EventKind.PROMPT_DONE, 0, {"seconds": seconds})
        return Started(sequence.stream, sequence.cached_tokens, sequence.admitted - sequence.request.arrival, seconds)

    def _append(self, gained: Int32s, tokens: Int32s, logprobs: Float32s | None) -> StepResult:
        """Gives each of these rows its next token, and ends those that have come to their end."""
        rows = self.rows
        lengths = rows.num_tokens[gained]
        rows.token_ids[gained, lengths] = tokens
        rows.num_tokens[gained] = lengths + 1
        streams = rows.stream[gained]
        told = ~rows.withheld[gained]
        if told.all():
            return StepResult(streams, tokens, finished=tuple(self._finish_ended(gained, lengths + 1, tokens)))
        assert logprobs is not None, "outputs cannot be chosen without log-probabilities"
        for row, logprob in zip(gained[~told].tolist(), logprobs[~told].tolist(), strict=True):
            self.state.owner(row).logprob += logprob
        requests = {self.state.owner(row).request.key: self.state.owner(row).request for row in gained[~told].tolist()}
        finished = self._finish_ended(gained, lengths + 1, tokens)
        complete = [give_out(request) for key, request in requests.items() if key not in self.state.requests]
        return joined([StepResult(streams[told], tokens[told], finished=tuple(finished)), *complete])

    def _advance_beams(self, gained: Int32s, sampled: Sampled) -> list[StepResult]:
        """Carries every beam search one step on; returns what comes of those that are done."""
        assert sampled.beam_tokens is not None
        assert sampled.beam_logprobs is not None
        searches: dict[int, list[int]] = {}  # request -> its places in ``gained``
        for place, row in enumerate(gained.tolist()):
            searches.setdefault(self.state.owner(row).request.key, []).append(place)
        done = []
        for key, places in searches.items():
            request, beams = self.state.requests[key], [self.state.owner(gained[place]) for place in places]
            width = 2 * request.sampling.beam_width
            tokens, logprobs = sampled.beam_tokens[places, :width], sampled.beam_logprobs[places, :width]
            if self._beams.advance(beams, tokens, logprobs):
                self._beams.end(request)
                self.state.finished.update(output.reason for output in request.outputs[: request.sampling.n])
                done.append(give_out(request))
        return done

    def fail(self, plan: StepPlan, error: str) -> StepResult:
        """Takes in that a step could not be executed; see `octavo.scheduler.faults`."""
        self._forks.cancel()
        members = [self.state.owner(row) for row in plan.rows.tolist()]
        for sequence in members:
            self.manager.retract(sequence.row, int(self.rows.num_computed[sequence.row]))
        self.manager.retract_orphans(plan.rows.tolist())
        failed, told = self._suspects.take_failure(members, error)
        for sequence in failed:
            self._finish(sequence, FinishReason.ERROR)
        if len(members) == 1 and failed:
            self._suspects.exonerate()
        return StepResult(finished=tuple(told))

    def observe(self, plan: StepPlan, seconds: float, timings: Iterable[TransferTiming] = ()) -> None:
        """Takes in how long a step took, before its `update`: what things cost is predicted from it.

        Args:
            seconds: Of the computation. timings: of the transfers.
        """
        costs = self.state.costs
        costs.observe_step(plan, seconds)
        per_block = {}
        for timing in timings:
            costs.observe_transfer(timing)
            per_block[timing.source, timing.target] = timing.seconds / timing.num_blocks
        for record, direction in self.state.moves:
            # A GPU's copies are timed when they are done, some steps later; till then the mean has to do.
            record.actual += per_block.get(direction, costs.block_seconds(*direction) or 0.0)
        self._charge_returns(plan, seconds)

    # ── the parts of a step ───────────────────────────────────────────────────────────────────────────────

    def _judge_tiers(self) -> None:
        """Finds out from which lower tiers a block comes back sooner than it could be computed anew."""
        tiers, costs = self.manager.tiers, self.state.costs
        if not tiers or self.counters.steps % _JUDGE_TIERS_STEPS:
            return
        compute = costs.compute_seconds(self.manager.block_size)
        round_trips = {tier: costs.round_trip_seconds(tier) for tier in tiers.existing}
        tiers.worthwhile = frozenset(
            tier for tier, seconds in round_trips.items() if compute is None or seconds is None or seconds < compute
        )

    def _split_budget(self) -> tuple[Int32s, Int32s, int]:
        """Rows to compute and tokens for each: one-token sequences first, then chunks in the policy's order.

        Returns:
            Rows, tokens, and how many tokens are left for sequences that are let in.
        """
        rows = self.state.running.rows
        missing = self.rows.num_tokens[rows] - self.rows.num_computed[rows]
        single = missing == 1
        if single.all():
            return rows, missing, self._prefill_budget(len(rows), 0)
        behind = rows[~single]
        budget = self._prefill_budget(int(single.sum()), int(self.rows.num_computed[behind[0]]))
        # What is left for each one after those before it took theirs.
        spent_before = np.cumsum(missing[~single]) - missing[~single]
        chunks = np.clip(budget - spent_before, 0, missing[~single]).astype(np.int32)
        served = chunks > 0
        left = budget - int(chunks.sum())
        return np.concatenate((rows[single], behind[served])), np.concatenate((missing[single], chunks[served])), left

    def _prefill_budget(self, decodes: int, start: int) -> int:
        """Tokens that may be computed beside so many decodes, the first of them from position ``start`` on.

        What is predicted takes some time to find out: only where there are prompts to be computed.
        """
        most, seconds, some = self.config.max_num_batched_tokens - decodes, self.config.max_step_time, _LEAST_PREFILL
        to_come = len(self.state.running) > decodes or (len(self.state.waiting) and self.rows.available)
        if not decodes or not to_come or not seconds or most <= some:
            return most
        return max(some, self.state.costs.tokens_within(seconds, decodes, start, most))

    def _publish(self, rows: Int32s, lens: Int32s) -> None:
        """Prepares the blocks that this step writes to, and publishes those that it fills."""
        before = self.rows.num_computed[rows]
        after = before + lens
        self.manager.cover(rows, after)
        fills = after // self.manager.block_size > before // self.manager.block_size
        if fills.any():
            self.manager.publish_all(rows[fills], self.rows.token_ids, after[fills])

    def _plan(self, rows: Int32s, lens: Int32s, copies: Many[BlockCopy]) -> StepPlan | None:
        if not len(rows):
            return None
        chunks = lens > 1
        num_decodes = len(rows) - int(np.count_nonzero(chunks))
        if chunks[:num_decodes].any():  # a chunk of one token is a decode to the kernels
            order = np.argsort(chunks, kind="stable")
            rows, lens = rows[order], lens[order]
        starts = self.rows.num_computed[rows]
        sample_from = np.flatnonzero(starts + lens == self.rows.num_tokens[rows]).astype(np.int32)
        sample_from, sample_rows = self._forks.plan(rows, sample_from)
        number = self.counters.steps
        self.counters.steps += 1
        return StepPlan(
            number=number,
            rows=rows,
            starts=starts,
            query_lens=lens,
            num_decodes=num_decodes,
            sample_from=sample_from,
            sample_rows=sample_rows,
            copies=tuple(copies),
            transfers=self.manager.take_transfers(),
        )

    def _finish_ended(self, gained: Int32s, lengths: Int32s, sampled: Int32s) -> list[Finished]:
        rows = self.rows
        stops = self._eos[sampled] & rows.stops_at_eos[gained]
        for i in np.flatnonzero(rows.has_stop_ids[gained]).tolist():
            stops[i] |= int(sampled[i]) in self.state.owner(gained[i]).request.sampling.stop_token_ids
        stops &= lengths > rows.min_len[gained]
        ended = []
        for i in np.flatnonzero(stops | (lengths >= rows.limit[gained])).tolist():
            sequence = self.state.owner(gained[i])
            reason = FinishReason.STOP if stops[i] else FinishReason.LENGTH
            stop = int(sampled[i]) if stops[i] else None
            if sequence.request.sampling.chooses:
                output = self.rows.tokens(sequence.row)[len(sequence.request.prompt) :]
                sequence.request.outputs.append(Candidate(tuple(output.tolist()), sequence.logprob, reason, stop))
            else:
                ended.append(Finished(sequence.stream, reason, stop))
            self._finish(sequence, reason)
        return ended

    def _pin_prompt(self, sequence: Sequence) -> tuple[int, int] | None:
        """Pins a prompt that is complete, if that was wished for: (stream, pin number)."""
        request = sequence.request
        if request.pin_ttl is None or sequence.index:
            return None
        try:
            pin = self.pinning.pin(request.prompt, request.pin_ttl, request.tenant, request.salt)
        except (ClientError, PinBudgetError):
            pin = None
        request.pin_ttl = None  # a search that starts over completes its prompt once more
        return sequence.stream, pin.number if pin is not None else 0

    def _charge_returns(self, plan: StepPlan, seconds: float) -> None:
        """Adds this step's share to the cost of preemptions whose victims catch up in it."""
        for row in self._admission.started:
            sequence = self.rows.owner[row]
            if sequence is not None and sequence.record is not None:
                self._returning[row] = sequence
        if not self._returning:
            return
        lens = dict(zip(plan.rows.tolist(), plan.query_lens.tolist(), strict=True))
        for row, sequence in list(self._returning.items()):
            record = sequence.record
            if sequence.row != row or record is None:
                del self._returning[row]
                continue
            again = min(lens.get(row, 0), max(0, record.tokens - int(self.rows.num_computed[row])))
            record.recomputed_tokens += again
            record.actual += seconds * again / plan.num_tokens
            if int(self.rows.num_computed[row]) + lens.get(row, 0) >= record.tokens:
                sequence.record = None
                del self._returning[row]

    # ── a sequence's comings and goings ───────────────────────────────────────────────────────────────────

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence in whatever state it is."""
        if sequence in self.state.waiting:
            self.state.waiting.remove(sequence)
        elif sequence in self._suspects and sequence.state is not SequenceState.RUNNING:
            self._suspects.remove(sequence)
        self.state.finish(sequence, reason)

    def _put_back(self, sequence: Sequence) -> None:
        """Lets a sequence wait again that could not start."""
        if sequence not in self._suspects:
            self.state.waiting.push(sequence)

    def waiting_sequences(self) -> list[Sequence]:
        """All that wait, suspects last."""
        return [*self.state.waiting.in_turn(), *(s for s in self._suspects if s.state is not SequenceState.RUNNING)]

    def check_integrity(self) -> list[str]:
        """Every invariant of scheduler and blocks that does not hold, in words. O(num_blocks)."""
        state = self.state
        problems = self.manager.check_integrity(s.swapped for s in self.waiting_sequences() if s.swapped is not None)
        for sequence in state.running:
            covered = int(self.manager.tables.lengths[sequence.row]) * self.manager.block_size
            if self.rows.num_computed[sequence.row] > covered:
                problems.append(f"sequence {sequence.order} has computed more tokens than its blocks hold")
        running = {sequence.row for sequence in state.running}
        for row in range(len(self.rows.owner)):
            if row not in running and self.manager.tables.lengths[row]:
                problems.append(f"row {row} holds blocks and belongs to no running sequence")
        if running != {row for row, owner in enumerate(self.rows.owner) if owner is not None}:
            problems.append("rows and running sequences disagree")
        return problems
