"""Admission: which waiting sequences are let in, and why the others are not.

One is let in when there are a row, tokens in the step's budget, and all blocks of its known length, with enough left
over: the watermark, or what the running sequences and itself will take within the steps that are looked ahead
(`LookAhead`), whichever is more. Letting somebody in who pushes another out a few steps later would only cost time.

Who lacks blocks may be overtaken by those behind who fit and are of equal rank to the policy, a bounded number of
times; then everybody waits until it fits, so that nobody starves. A sequence that was preempted is not overtaken at
all. One that has given way as often as it may is let in only when it and all running ones like it fit to their very
ends: it never needs to give way again.

Looking a prefix up costs time, so a sequence that lacked blocks is looked at again only when as many are available as
were missing, and otherwise once in a while, since others may have computed its prefix meanwhile.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np

from octavo.block_manager.manager import PrefixMatch
from octavo.block_manager.misses import NOT_READ
from octavo.block_manager.tiers import Tier
from octavo.scheduler.beams import Beams
from octavo.scheduler.decisions import LookUp, PreemptionReason, Wait, WaitReason
from octavo.scheduler.history import EventKind
from octavo.scheduler.lookahead import LookAhead
from octavo.scheduler.preemption import Preemption
from octavo.scheduler.request import Sequence, SequenceState, rows_needed
from octavo.scheduler.state import State
from octavo.scheduler.tenants import Tenant
from octavo.scheduler.validation import blocks_at_the_end

# Waiting sequences that are considered in one step, whose turn it is first.
_WINDOW = 8

# Sequences that may be let in before one that lacks blocks.
MAX_OVERTAKEN = 16

_RETRY_STEPS = 16

Fitting = tuple[Sequence, PrefixMatch]
Room = tuple[PrefixMatch, int]
"""A look-up, and the blocks that are missing."""


class Admission:
    """Lets waiting sequences in. Changes waiting, running and blocks."""

    def __init__(self, state: State, preemption: Preemption, beams: Beams, look_ahead: LookAhead) -> None:
        self._state = state
        self._look_ahead = look_ahead
        self._preemption = preemption
        self._beams = beams
        self._watermark = int(np.ceil(state.config.watermark_ratio * state.manager.pool.num_blocks))
        # Let in by the step that is being planned: row, and how many of its tokens lay on the device already.
        self.started: dict[int, int] = {}
        self._steps = 0  # that are looked ahead
        self._ahead: int | None = None  # blocks that the running sequences take within the look-ahead, once known

    @property
    def watermark(self) -> int:
        """Blocks that admission leaves free while anybody runs."""
        return self._watermark

    # ── the step's admissions ─────────────────────────────────────────────────────────────────────────────

    def admit(self, budget: int) -> list[tuple[int, int]]:
        """Lets sequences in while there are rows, blocks and tokens; returns their rows and the tokens of each."""
        state, admitted = self._state, []
        self._ahead = None
        while budget > 0 and state.rows.available and (candidate := self._next()) is not None:
            sequence, match = candidate
            state.waiting.remove(sequence)
            row, chunk = self.start(sequence, match, budget)
            admitted.append((row, chunk))
            budget -= chunk
        if len(state.waiting) and not (budget > 0 and state.rows.available):
            self.note(WaitReason.TOKEN_BUDGET if budget <= 0 else WaitReason.MAX_NUM_SEQS)
        return admitted

    def note(self, reason: WaitReason) -> None:
        """Records why nobody more is let in."""
        for sequence in islice(self._state.waiting.in_turn(), _WINDOW):
            self._state.note_wait(sequence, Wait(reason, step=self._state.counters.steps))

    def claim(self) -> None:
        """Under ``--policy priority``: has less urgent running sequences give way to the most urgent waiting one.

        Either enough of them do, or nobody does.
        """
        state, may_give_way = self._state, self._preemption.may_give_way
        head = next(state.waiting.in_turn(), None)
        if state.config.policy != "priority" or head is None or not may_give_way(head):
            return
        less_urgent = [sequence for sequence in state.running if sequence.request.priority > head.request.priority]
        victims = list(filter(may_give_way, less_urgent))
        if not victims or self._short_without(victims, head)[0]:
            return
        chosen: list[Sequence] = []
        while True:
            short, yields = self._short_without(chosen, head)
            rows_won = {victim.request.key: victim.request.held_rows for victim in chosen}
            if not short and state.rows.available + len(chosen) + sum(rows_won.values()) >= rows_needed(head.request):
                break
            victim = self._preemption.choose([v for v in victims if yields[v.request.tenant.index]], short)
            if victim is None:
                return
            chosen.append(victim)
            victims.remove(victim)
        for victim in chosen:
            if victim.state is SequenceState.RUNNING:  # beams go together
                self._preemption.preempt(victim, PreemptionReason.PRIORITY, head)
        head.retry_at = 0

    def _short_without(self, victims: list[Sequence], head: Sequence) -> tuple[int, list[bool]]:
        """Blocks that a waiting sequence would lack if these gave way, and which tenants' sequences could mend that."""
        state, manager, tenant = self._state, self._state.manager, head.request.tenant.index
        rows, freed = np.array([victim.row for victim in victims], dtype=np.int32), Counter[int]()
        for victim, blocks in zip(victims, manager.exclusive_blocks(rows).tolist(), strict=True):
            freed[victim.request.tenant.index] += blocks
        others = np.setdiff1d(state.running.rows, rows)
        self._steps = self._look_ahead.steps
        ahead = state.blocks_to_come(others, self._steps)
        # Those who go on get this step's blocks before anybody is let in.
        least = max(self._watermark + state.blocks_to_come(others, 0), self._own_growth(head) + ahead)
        own = state.blocks_to_come(others[state.rows.tenant[others] == tenant], 0)
        match, _ = self.look_up(head, 0)
        needed = manager.needed(match, len(head.tokens))
        # What it shares with a victim is won and needed again.
        needed += manager.won_by_release(match) if victims else 0
        available = manager.pool.available - (least - own if len(others) else 0)
        freed[tenant] -= own
        needs = {other: -blocks for other, blocks in freed.items()} | {tenant: needed - freed[tenant]}
        return manager.quota.missing(tenant, needed, available, freed), manager.quota.yields_to(tenant, needs)

    def _next(self) -> Fitting | None:
        """The sequence to let in now."""
        overtaken: list[Sequence] = []
        fitting: Fitting | None = None
        full: set[Tenant] = set()  # whoever passes their sequences takes nothing that these wait for
        for sequence in self._state.waiting.in_turn():
            if sequence.request.tenant in full:
                continue
            if len(overtaken) == _WINDOW:
                break
            if overtaken and self._state.waiting.rank(sequence) != self._state.waiting.rank(overtaken[0]):
                continue
            if sequence in self._state.gave_way:
                break
            match = self._room_for(sequence, overtaken[0] if overtaken else None, alone=fitting is None)
            if match is not None and (fitting is None or match.num_tokens > fitting[1].num_tokens):
                fitting = sequence, match
            if match is not None and not self._state.config.prefer_cached:
                break
            if match is None and sequence.wait.reason is WaitReason.TENANT_CEILING:
                full.add(sequence.request.tenant)
                continue
            if not self._may_be_overtaken(sequence):
                break
            overtaken.append(sequence)
        if fitting is not None:
            for sequence in overtaken:
                sequence.overtaken += sequence is not fitting[0] and self._comes_before(sequence, fitting[0])
        return fitting

    def _comes_before(self, sequence: Sequence, other: Sequence) -> bool:
        order = self._state.waiting.order
        return order(sequence) < order(other)

    def _may_be_overtaken(self, sequence: Sequence) -> bool:
        return sequence.state is SequenceState.WAITING and sequence.overtaken < MAX_OVERTAKEN

    # ── room ──────────────────────────────────────────────────────────────────────────────────────────────

    def _room_for(self, sequence: Sequence, behind: Sequence | None, *, alone: bool) -> PrefixMatch | None:
        """The sequence's prefix if it can be let in now, else None; records why not.

        Args:
            behind: Who comes before it and lacks blocks. alone: nobody before it fits.
        """
        state, tenant = self._state, sequence.request.tenant.index
        if (
            state.counters.steps < sequence.retry_step
            and len(state.running)  # with nobody running, nothing will ever change and the look-ahead does not apply
            and state.manager.room(tenant) < sequence.retry_at
        ):
            state.note_wait(sequence, sequence.lack)
            return None
        stream = None if behind is None else behind.stream
        if state.rows.available < rows_needed(sequence.request):
            state.note_wait(sequence, Wait(WaitReason.MAX_NUM_SEQS, 0, stream, state.counters.steps))
            return None
        if not self._preemption.may_give_way(sequence) and (missing := self._missing_for_guarantee(sequence)) > 0:
            state.note_wait(sequence, Wait(WaitReason.GUARANTEE, missing, stream, state.counters.steps))
            return None
        match, short = self._look_up(sequence)
        if not short:
            return match
        yields = state.manager.quota.yields_to(tenant, {tenant: state.manager.needed(match, len(sequence.tokens))})
        if alone and behind is None and not any(yields[other.request.tenant.index] for other in state.running):
            match, short = self._drop_pins_for(sequence)
            if not short:
                return match
        sequence.retry_at = state.manager.room(tenant) + short
        sequence.retry_step = state.counters.steps + _RETRY_STEPS
        full = state.manager.quota.at_ceiling(tenant, state.manager.needed(match, len(sequence.tokens)))
        reason = WaitReason.TENANT_CEILING if full else WaitReason.BLOCKS
        sequence.lack = Wait(reason, short, stream, state.counters.steps)
        state.note_wait(sequence, sequence.lack)
        return None

    def look_up(self, sequence: Sequence, keep_free: int) -> Room:
        """The sequence's prefix, and the blocks that it lacks to start now and leave so many free."""
        manager, request = self._state.manager, sequence.request
        if request.sampling.reads_cache:
            match = manager.match_prefix(sequence.tokens, request.salt, request.tenant.index, sequence.swapped)
        else:
            match = manager.match_nothing(request.salt, request.tenant.index)
        return match, manager.shortfall(match, len(sequence.tokens), keep_free, request.tenant.index)

    def _look_up(self, sequence: Sequence) -> Room:
        match, short = self.look_up(sequence, self._most_to_keep_free)
        if short:  # else there is enough whatever is to be kept free, which takes longer to find out
            manager, tenant = self._state.manager, sequence.request.tenant.index
            short = manager.shortfall(match, len(sequence.tokens), self._keep_free(sequence), tenant)
        return match, short

    @property
    def _most_to_keep_free(self) -> int:
        """No less than `_keep_free` of any sequence."""
        state, manager, running = self._state, self._state.manager, len(self._state.running)
        if not running:
            return 0
        # One is still to be taken for the next token, and the look-ahead may end just inside another.
        blocks = (state.config.lookahead // manager.block_size + 2) * manager.blocks_per_column
        return max(self._watermark, (running + 1) * blocks)

    def _keep_free(self, sequence: Sequence) -> int:
        """Blocks to leave free while anybody runs: the watermark, or what all take on top within the look-ahead."""
        state = self._state
        if not len(state.running):
            return 0
        if self._ahead is None:
            self._steps = self._look_ahead.steps
            self._ahead = state.blocks_to_come(state.running.rows, self._steps)
        return max(self._watermark, self._own_growth(sequence) + self._ahead)

    def _own_growth(self, sequence: Sequence) -> int:
        """Blocks that a waiting sequence will take within the look-ahead, beyond those it starts with."""
        manager, length = self._state.manager, len(sequence.tokens)
        # The last token is given out and never computed.
        ahead = min(length + self._steps, sequence.request.limit - 1)
        return max(0, int(manager.blocks_at(ahead)) - int(manager.blocks_at(length)))

    def _missing_for_guarantee(self, sequence: Sequence) -> int:
        """For a sequence that may give way no more, blocks by which all like it would exceed the pool at their ends."""
        manager = self._state.manager
        protected = [other for other in self._state.running if not self._preemption.may_give_way(other)]
        worst = Counter[int]()
        # All beams of a search stand for the same blocks.
        distinct = {(s.request.key, 0 if s.request.sampling.beam_width else s.index): s for s in (*protected, sequence)}
        for other in distinct.values():
            worst[other.request.tenant.index] += blocks_at_the_end(other.request, manager)
        tenant = sequence.request.tenant.index
        capacity = manager.quota.capacity(tenant)
        if not protected:
            return 0  # alone it fits, or it would have been refused
        free_of_floors = manager.pool.num_blocks - sum(
            max(0, floor - worst[index]) for index, floor in enumerate(manager.quota.floors)
        )
        return max(0, worst[tenant] - capacity, sum(worst.values()) - free_of_floors)

    def _drop_pins_for(self, sequence: Sequence) -> Room:
        """Nobody runs, so only pins can be in the way: they give way one by one, those that expire first."""
        state = self._state
        tenant, quota = sequence.request.tenant.index, state.manager.quota
        match, short = self._look_up(sequence)
        while short:
            yields = quota.yields_to(tenant, {tenant: state.manager.needed(match, len(sequence.tokens))})
            pin = next((pin for pin in state.manager.pins.listed() if yields[pin.tenant]), None)
            if pin is None:
                break
            state.manager.unpin(pin)
            state.counters.pins_dropped += 1
            match, short = self._look_up(sequence)
        return match, short

    # ── a sequence starts ─────────────────────────────────────────────────────────────────────────────────

    def start(self, sequence: Sequence, match: PrefixMatch, budget: int) -> tuple[int, int]:
        """Gives a sequence its row and blocks, and publishes those that this step fills.

        Args:
            sequence: The caller has taken it out of its queue.
            match: Its prefix; nothing is lacking.
            budget: The most tokens that it may compute in this step.

        Returns:
            The row, and the tokens that it computes.
        """
        state, request, length = self._state, sequence.request, len(sequence.tokens)
        self._record_look_up(sequence, match)
        if sequence.state is SequenceState.WAITING:
            sequence.cached_tokens = match.num_tokens
            state.tenants.charge_prompt(request.tenant, len(request.prompt) - match.num_tokens)
        else:
            self._record_return(sequence, match)
        row = state.rows.occupy(sequence, match.num_tokens)
        state.manager.reserve(row, match, sequence.tokens, request.tenant.index)
        if sequence.swapped is not None:
            state.drop_swapped(sequence)
        sequence.retry_at = 0
        if request.sampling.beam_width:
            self._beams.hold(request)
        state.run(sequence)
        if self._ahead is not None:
            self._ahead += self._own_growth(sequence)
        self.started[row] = len(match.blocks) * state.manager.block_size
        end = min(match.num_tokens + budget, length)
        state.manager.cover_row(row, end)
        state.manager.publish(row, sequence.tokens, end)
        return row, end - match.num_tokens

    def _record_look_up(self, sequence: Sequence, match: PrefixMatch) -> None:
        state, tokens, history = self._state, sequence.tokens, sequence.request.history
        reads = sequence.request.sampling.reads_cache
        miss = state.manager.explain_miss(tokens, match) if reads else NOT_READ
        now, hits = state.clock(), state.manager.hits(match)
        if sequence.admitted is None:
            sequence.admitted = now
        if history.cached_tokens is None:
            history.cached_tokens = match.num_tokens
        waited = now - sequence.queued
        look_up = LookUp(state.counters.steps, sequence.stream, len(tokens), match.num_tokens, hits, miss, waited)
        history.add(now, EventKind.ADMITTED, sequence.index, look_up)
        state.decisions.add_look_up(look_up)

    def _record_return(self, sequence: Sequence, match: PrefixMatch) -> None:
        counters, size = self._state.counters, self._state.manager.block_size
        counters.recomputed_tokens += max(0, sequence.computed - match.num_tokens)
        counters.swapped_tokens += match.num_tokens - len(match.blocks) * size
        if (record := sequence.record) is not None:
            record.waited = self._state.clock() - record.time
            record.kept_tokens = match.num_tokens
            self._state.moves += [(record, (place.tier, Tier.DEVICE)) for place in match.below]
