"""Where the engine's time goes: seconds by phase, and distributions over steps."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.engine.messages import HistogramCounts
from octavo.scheduler.plan import StepPlan

PHASES: Final = ("schedule", "transfer", "execute", "update")

_STEP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_STEP_TOKENS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_SEQUENCES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Distribution:
    """Counts of what is at most each bound, and of what exceeds them all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def counts(self) -> HistogramCounts:
        """So far."""
        return HistogramCounts(list(self._bounds), self._counts.copy(), self._total)


class StepMeter:
    """Measures steps.

    Attributes:
        phases: Seconds by phase. copies: seconds by (source, target) of copies between tiers.
    """

    def __init__(self) -> None:
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.copies: defaultdict[tuple[Tier, Tier], float] = defaultdict(float)
        self._seconds = Distribution(_STEP_SECONDS)
        self._tokens = Distribution(_STEP_TOKENS)
        self._sequences = Distribution(_STEP_SEQUENCES)

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return sum(self.phases.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures one phase of a step, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] += time.monotonic() - began

    def step(self, plan: StepPlan, seconds: float) -> None:
        """Counts a step that was planned."""
        self._seconds.add(seconds)
        self._tokens.add(plan.num_tokens)
        self._sequences.add(len(plan.rows))

    def transfers(self, timings: Iterable[TransferTiming]) -> None:
        """Counts copies between tiers."""
        for timing in timings:
            self.copies[timing.source, timing.target] += timing.seconds

    def histograms(self) -> dict[str, HistogramCounts]:
        """The distributions, by the names that `octavo.engine.messages.EngineStats` has for them."""
        return {
            "step_seconds": self._seconds.counts(),
            "step_tokens": self._tokens.counts(),
            "step_sequences": self._sequences.counts(),
        }
