"""A fake engine whose blocks a test paints; it tells changes as `octavo.engine.live.LiveReader` does."""

from __future__ import annotations

import asyncio

import numpy as np
from fake_engine import FakeEngine

from octavo.engine.views import NOBODY, USED, LiveView, PreemptionView, RunningView, TierCells, WaitingView
from octavo.errors import EngineUnavailableError


class PaintedTier:
    """The cells of one tier, and those that nobody was told of yet."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.states = np.zeros(size, np.uint8)
        self.owners = np.zeros(size, np.int32)
        self.fills = np.zeros(size, np.uint8)
        self.counts = np.zeros(size, np.uint8)
        self.changed: set[int] = set()

    def told(self, fresh: bool) -> TierCells:
        """What is new, or all of it."""
        cells = np.arange(self.size, dtype=np.int32) if fresh else np.array(sorted(self.changed), dtype=np.int32)
        self.changed.clear()
        parts = [part[cells].tobytes() for part in (self.states, self.owners, self.fills, self.counts)]
        return TierCells(self.name, self.size, 1, cells.tobytes(), *parts)


class LiveEngine(FakeEngine):
    """An engine that shows what a test paints.

    Attributes:
        asked: ``fresh`` of each question. cost: what each answer claims to have cost.
        failure: Raised instead of an answer. gate: answers wait for it.
        ids: key → request id. running, waiting, preemptions: what is told; the latter once.
    """

    def __init__(self, **tiers: int) -> None:
        super().__init__()
        self.tiers = {name: PaintedTier(name, size) for name, size in tiers.items()}
        self.asked: list[bool] = []
        self.cost = 0.0
        self.live_failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.ids: dict[int, str] = {}
        self.running: list[RunningView] = []
        self.waiting: list[WaitingView] = []
        self.preemptions: list[PreemptionView] = []
        self._knows_nothing = True

    def paint(
        self, tier: str, cell: int, *, state: int = USED, owner: int = NOBODY, fill: int = 255, count: int = 1
    ) -> None:
        """Changes a cell."""
        painted = self.tiers[tier]
        painted.states[cell], painted.owners[cell] = state, owner
        painted.fills[cell], painted.counts[cell] = fill, count
        painted.changed.add(cell)

    def replace(self) -> None:
        """Another engine takes over, which has told nothing yet."""
        self.restarts += 1
        self._knows_nothing = True

    async def live(self, *, fresh: bool, most_cells: int) -> LiveView:
        self.asked.append(fresh)
        await self.gate.wait()
        if self.live_failure is not None:
            raise self.live_failure
        if self.status != "ready":
            raise EngineUnavailableError(f"the engine is {self.status}")
        whole, self._knows_nothing = fresh or self._knows_nothing, False
        preemptions, self.preemptions = self.preemptions, []
        return LiveView(
            ticket=0,
            steps=len(self.asked),
            cost=self.cost,
            tiers=[tier.told(whole) for tier in self.tiers.values()],
            running=self.running,
            num_running=len(self.running),
            waiting=self.waiting,
            num_waiting=len(self.waiting),
            preemptions=preemptions,
        )

    def request_of(self, key: int) -> str | None:
        return self.ids.get(key)


def running(key: int, **facts: object) -> RunningView:
    """A running sequence of some size."""
    told = {"index": 0, "tenant": "default", "num_prompt": 40, "num_tokens": 60, "num_computed": 59, "num_blocks": 4}
    return RunningView(key=key, **{**told, "preemptions": 0, "seconds": 1.5, **facts})  # type: ignore[arg-type]


def waiting(key: int, **facts: object) -> WaitingView:
    """A waiting sequence."""
    told = {"index": 0, "tenant": "default", "state": "waiting", "reason": "blocks", "short": 3, "behind": 0}
    return WaitingView(key=key, **{**told, "num_tokens": 80, "seconds": 2.0, **facts})  # type: ignore[arg-type]


def preemption(number: int, **facts: object) -> PreemptionView:
    """A preemption by recompute that has cost nothing yet."""
    told = {
        "ago": 1.0, "victim": 1, "beneficiary": 2, "reason": "growth", "method": "recompute", "blocks": 4, "tokens": 60,
        "predicted_swap": 0.002, "predicted_recompute": 0.5, "waited": None, "kept_tokens": 0, "recomputed_tokens": 0,
        "actual": 0.0,
    }  # fmt: skip
    return PreemptionView(number=number, **{**told, **facts})  # type: ignore[arg-type]
