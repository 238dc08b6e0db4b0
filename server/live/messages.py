"""What viewers of the live map are sent.

Everybody gets server-sent events whose data is one JSON object (`LiveMessage`):

    kind      "all": everything there is; it replaces what was told before
              "changes": what is different since the last message; lists of sequences come whole, they are short
              "status": the engine gives no answer now; ``status`` says why
    columns   in "all" only: what the rows of ``tiers``, ``running``, ``waiting`` and ``preemptions`` hold, in order
    tiers     rows of `octavo.engine.views.TierCells`. Arrays are base64 of little-endian bytes; ``cells`` is int32 and
              empty in "all", where the arrays are those of all cells
    running, waiting, preemptions
              rows of `octavo.engine.views`. Preemptions are the latest ones in "all", and new or changed ones after it
    names     request's key → its id: all that are spoken of in "all", and those not told before in "changes"
    totals    counters since the engine's start, for rates
"""

from __future__ import annotations

from typing import Final

import msgspec

from octavo.engine.messages import EngineStats
from octavo.engine.views import PreemptionView, RunningView, TierCells, WaitingView

COLUMNS: Final = {
    "tiers": TierCells.__struct_fields__,
    "running": RunningView.__struct_fields__,
    "waiting": WaitingView.__struct_fields__,
    "preemptions": PreemptionView.__struct_fields__,
}


class Totals(msgspec.Struct, frozen=True):
    """Counters since the engine's start, of `octavo.engine.messages.EngineStats`; looked_up and found in tokens."""

    prompt_tokens: int
    generated_tokens: int
    steps: int
    step_seconds: float
    preemptions: int
    looked_up: int
    found: int
    evictions: int
    shared: int
    saved: int
    finished: int


class LiveMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event's data; the module says what is in it.

    Attributes:
        engine: Engines before this one. steps: of this one.
        seconds: On the hub's clock, which is steady and begins anywhere. interval: until the next message, about.
        num_running, num_waiting: All of them; the lists hold the first so many.
    """

    kind: str
    status: str
    engine: int
    seconds: float
    interval: float = 0.0
    steps: int = 0
    columns: dict[str, tuple[str, ...]] | None = None
    tiers: list[TierCells] = []
    running: list[RunningView] = []
    num_running: int = 0
    waiting: list[WaitingView] = []
    num_waiting: int = 0
    preemptions: list[PreemptionView] = []
    names: dict[int, str] = {}
    totals: Totals | None = None


class Frame(msgspec.Struct, frozen=True):
    """An event as it goes out; all viewers share its bytes."""

    data: bytes


def totals_of(stats: EngineStats) -> Totals:
    """The counters that the page draws."""
    return Totals(
        prompt_tokens=stats.prompt_tokens,
        generated_tokens=stats.generated_tokens,
        steps=stats.steps,
        step_seconds=stats.step_seconds,
        preemptions=stats.num_preemptions,
        looked_up=stats.prefix_queries,
        found=sum(stats.prefix_hits.values()),
        evictions=stats.evictions,
        shared=stats.blocks_shared,
        saved=stats.blocks_saved,
        finished=sum(stats.finished.values()),
    )
