"""Running sequences that compute one token get a block if they cross into one, or a copy if they share theirs."""

from __future__ import annotations

from collections import Counter

import numpy as np

from octavo.block_manager.manager import BlockCopy
from octavo.block_manager.quota import Shortage
from octavo.scheduler.decisions import PreemptionReason
from octavo.scheduler.lookahead import LookAhead
from octavo.scheduler.preemption import Preemption
from octavo.scheduler.request import Sequence
from octavo.scheduler.state import State

Writes = list[tuple[int, int]]


class Growth:
    """Lets running sequences grow, and has others give way when blocks run out. Changes blocks and who runs."""

    def __init__(self, state: State, preemption: Preemption, look_ahead: LookAhead) -> None:
        self._state = state
        self._preemption = preemption
        self._look_ahead = look_ahead

    def prepare(self) -> list[BlockCopy]:
        """Gives every one-token sequence a block of its own to write to."""
        state = self._state
        crossing, sharing = self._rows_that_write_elsewhere()
        while (shortage := self._shortage(crossing, sharing)) is not None:
            growing = crossing or [row for row, _ in sharing] or state.running.rows.tolist()
            self._make_room(shortage, state.owner(growing[0]))
            crossing, sharing = self._rows_that_write_elsewhere()
        # Nobody gives way from here on, so no block that is a copy's source or destination changes hands.
        if crossing:
            state.manager.grow(crossing)
        state.forked.clear()
        return [copy for row, position in sharing for copy in state.manager.make_writable(row, position)]

    def _rows_that_write_elsewhere(self) -> tuple[list[int], Writes]:
        """One-token rows that cross into a new block, and (row, position) of those that may share theirs."""
        state, rows = self._state, self._state.running.rows
        position = state.rows.num_computed[rows]
        single = state.rows.num_tokens[rows] - position == 1
        crosses = single & (position >= state.manager.tables.lengths[rows] * state.manager.block_size)
        crossing: list[int] = rows[crosses].tolist()
        if not state.forked:
            return crossing, []
        shares = np.isin(rows, list(state.forked)) & single & ~crosses
        return crossing, list(zip(rows[shares].tolist(), position[shares].tolist(), strict=True))

    def _shortage(self, crossing: list[int], sharing: Writes) -> Shortage | None:
        """What keeps these rows from growing; None if there are enough blocks for all."""
        manager = self._state.manager
        if not manager.quota.limited:
            growth, copies = len(crossing) * manager.blocks_per_column, manager.copies_needed(sharing) if sharing else 0
            short = growth + copies - manager.pool.available
            return Shortage(0, short, [True] * len(manager.quota.used)) if short > 0 else None
        tenant = self._state.rows.tenant
        needs = Counter[int]()
        for row in crossing:
            needs[int(tenant[row])] += manager.blocks_per_column
        for number in {int(tenant[row]) for row, _ in sharing}:
            needs[number] += manager.copies_needed(write for write in sharing if tenant[write[0]] == number)
        return manager.quota.shortage(needs, manager.pool.available)

    def _make_room(self, shortage: Shortage, beneficiary: Sequence) -> None:
        """Has one sequence give way; a pin only if there is nobody to choose from."""
        state, choose = self._state, self._preemption.choose
        yields = shortage.yields
        eligible = [sequence for sequence in state.running if yields[sequence.request.tenant.index]]
        ahead = shortage.blocks + state.blocks_to_come(state.running.rows, self._look_ahead.steps)
        first, *others = eligible
        if first.request.sampling.beam_width:
            others = [other for other in others if other.request is not first.request]
        # The first one gives way only if all others have done so as often as they may; never if there is nobody else.
        victim = choose(others, ahead) or (choose([first], ahead) if others else None)
        pin = next((pin for pin in state.manager.pins.listed() if yields[pin.tenant]), None)
        if victim is None and pin is not None:
            state.manager.unpin(pin)
            state.counters.pins_dropped += 1
            return
        # Only a failed step can bring it about that all have given way as often as they may and do not fit.
        victim = victim or (others[-1] if others else None)
        assert victim is not None, f"tenant {shortage.tenant} lacks {shortage.blocks} blocks and nobody can give way"
        self._preemption.preempt(victim, PreemptionReason.GROWTH, beneficiary if beneficiary is not victim else None)
