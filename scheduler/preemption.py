"""Preemption: who gives way, and whether its KV is swapped out or computed again.

Who may be chosen at all:

- Nobody who gave way ``max_preemptions`` times. Such a sequence was let in again only when it and all others like it
  fit to their very ends (`Admission`), so there is always somebody else; only a failed step can break this.
- Not the first in the policy's order, so that somebody always gets on.

Both together are why no two sequences can trade places for ever: each trade uses up one of a bounded number.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import SwappedBlocks
from octavo.block_manager.tiers import Tier
from octavo.scheduler.beams import Beams
from octavo.scheduler.decisions import Method, PreemptionReason, PreemptionRecord
from octavo.scheduler.history import EventKind
from octavo.scheduler.request import Sequence, SequenceState
from octavo.scheduler.state import State

# What a recomputed token is taken to cost before anything was measured; only ratios matter then.
_GUESSED_SECONDS_PER_TOKEN = 1e-3


class Preemption:
    """Chooses victims and carries preemptions out. Changes running, waiting and blocks."""

    def __init__(self, state: State, beams: Beams) -> None:
        self._state = state
        self._beams = beams

    def may_give_way(self, sequence: Sequence) -> bool:
        """Whether a sequence has not given way as often as it may."""
        return sequence.preemptions < self._state.config.max_preemptions

    def choose(self, eligible: Iterable[Sequence], short: int) -> Sequence | None:
        """The one whose giving way costs least for what it wins; None if nobody is left.

        Of those least urgent under the policy, the smallest

            cheaper of swap and recompute, in seconds · (1 + times it gave way) · age / blocks won

        where age falls from 2 for the first in the policy's order to 1 for the last, and no more blocks count as won
        than are ``short``.
        """
        candidates = [sequence for sequence in eligible if self.may_give_way(sequence)]
        if not candidates:
            return None
        rank = self._state.waiting.rank
        if self._state.config.policy == "priority":
            candidates = [s for s in candidates if rank(s) == rank(candidates[-1])]
        rows = np.array([sequence.row for sequence in candidates], dtype=np.int32)
        won = self._state.manager.exclusive_blocks(rows)
        age = np.linspace(2.0, 1.0, len(candidates))
        times = np.array([1 + sequence.preemptions for sequence in candidates])
        with np.errstate(divide="ignore"):
            score = self._seconds(rows, won) * times * age / np.minimum(won, max(1, short))
        return candidates[len(score) - 1 - int(np.argmin(score[::-1]))]  # of equals the last

    def preempt(self, victim: Sequence, reason: PreemptionReason, beneficiary: Sequence | None) -> None:
        """Takes a running sequence's blocks and lets it wait for its turn again."""
        state, row = self._state, victim.row
        tokens = int(state.rows.num_computed[row])
        won = int(state.manager.exclusive_blocks(np.array([row]))[0])
        swap, recompute = self.predict(row)
        swapped = self._swap_out(row, tokens, swap, recompute)
        method = Method.RECOMPUTE if swapped is None else Method.SWAP
        victim.record = PreemptionRecord(
            step=state.counters.steps,
            time=state.clock(),
            reason=reason,
            method=method,
            victim=victim.stream,
            beneficiary=None if beneficiary is None else beneficiary.stream,
            blocks=won,
            tokens=tokens,
            predicted_swap=swap,
            predicted_recompute=recompute,
        )
        state.decisions.add_preemption(victim.record)
        victim.request.history.add(victim.record.time, EventKind.PREEMPTED, victim.index, victim.record)
        victim.queued = victim.record.time
        state.preempted.append(victim.stream)
        state.counters.preemptions += 1
        if reason is not PreemptionReason.ISOLATION:
            victim.preemptions += 1
        self._beams.leave_row(victim)
        state.gave_way.add(victim)
        victim.swapped = swapped
        if swapped is not None:
            state.moves += [(victim.record, (Tier.DEVICE, place.tier)) for place in swapped.held]
        victim.become(SequenceState.PREEMPTED if swapped is None else SequenceState.SWAPPED)
        state.waiting.push(victim)

    def predict(self, row: int) -> tuple[float | None, float | None]:
        """Predicted seconds that swapping a row out and in, and computing it again, would take; None if not known.

        Blocks that others use are lost in neither case. Where sinking is worth it, blocks with a content name come
        back from below even if nobody swaps them out, and only the rest has to be computed.
        """
        state, size = self._state, self._state.manager.block_size
        tokens = int(state.rows.num_computed[row])
        blocks = state.manager.columns_for(tokens)
        kept = blocks - min(blocks, int(state.manager.sole_columns(np.array([row]))[0]))
        tier = state.swap_tier
        # Where all are full it is still known what a swap would cost.
        copied_to = next(iter(state.manager.tiers.existing), None) if tier is None else tier
        round_trip = state.costs.round_trip_seconds(copied_to) if copied_to is not None else None
        swap = None if round_trip is None else (blocks - kept) * round_trip
        known = kept * size
        sinks = 0
        if tier in state.manager.tiers.worthwhile and state.manager.prefix_caching:
            sinks = tokens // size - kept
            known = max(known, tokens // size * size)
        computed = state.costs.compute_seconds(max(0, tokens - known), min(known, tokens))
        if computed is None:
            return swap, None
        return swap, computed + max(0, sinks) * (round_trip or 0.0)

    def _swap_out(self, row: int, tokens: int, swap: float | None, recompute: float | None) -> SwappedBlocks | None:
        """Plans the copies if swapping is the method; None if it is not, or there is no room below."""
        state = self._state
        wanted = state.config.preemption
        if not state.manager.tiers or not tokens or wanted == "recompute" or state.rows.beam_width[row]:
            return None
        if wanted == "auto" and (swap is None or recompute is None or recompute < swap):
            return None
        swapped = state.manager.swap_out(row, tokens)
        state.decisions.swap_full += swapped is None
        return swapped

    def _seconds(self, rows: npt.NDArray[np.int32], won: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Per row, roughly what its giving way costs by the cheaper method."""
        state, size = self._state, self._state.manager.block_size
        columns = state.manager.sole_columns(rows)
        lost = np.minimum(columns * size, state.rows.num_computed[rows]).astype(np.float64)
        per_token = state.costs.compute_seconds(1)
        seconds: npt.NDArray[np.float64] = lost * (per_token or _GUESSED_SECONDS_PER_TOKEN)
        tier = state.swap_tier
        round_trip = state.costs.round_trip_seconds(tier) if tier is not None else None
        if round_trip is not None and state.config.preemption != "recompute":
            seconds = np.minimum(seconds, columns * round_trip)
        return np.where(won > 0, seconds, np.inf)
