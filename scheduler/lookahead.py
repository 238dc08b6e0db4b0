"""How many steps admission looks ahead, so that nobody has to give way within them.

A sequence that is let in k steps before somebody has to give way gains k tokens by it. Giving way costs c seconds, in
which R running sequences, one step every s seconds, would have gained c · R / s tokens between them. So it pays to let
it in if k is larger than that, and waiting is better if it is not. Where swapping is fast, that is a step or two;
where everything has to be computed again, a few dozen. ``--lookahead`` is the most.
"""

from __future__ import annotations

import math

from octavo.scheduler.state import State


class LookAhead:
    """The number of steps, from what things cost now."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def steps(self) -> int:
        """Steps to look ahead now; ``--lookahead`` as long as costs are not known."""
        state = self._state
        most, rows = state.config.lookahead, state.running.rows
        if not most or not len(rows):
            return most
        step = state.costs.decode_seconds(len(rows))
        cost = self._cost_of_giving_way(int(state.rows.num_tokens[rows].mean()))
        if step is None or cost is None:
            return most
        return min(most, math.ceil(cost * len(rows) / step))

    def _cost_of_giving_way(self, tokens: int) -> float | None:
        """Seconds that a sequence of so many tokens costs when it has to give way; None if not known."""
        state, costs = self._state, self._state.costs
        recompute = costs.compute_seconds(tokens)
        tier = state.swap_tier
        if tier is None or state.config.preemption == "recompute":
            return recompute
        round_trip = costs.round_trip_seconds(tier)
        swap = None if round_trip is None else state.manager.columns_for(tokens) * round_trip
        if state.config.preemption == "swap":
            return swap
        return None if swap is None or recompute is None else min(swap, recompute)
