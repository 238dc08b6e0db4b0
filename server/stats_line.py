"""A line every so often about how the engine is doing: load, KV, speed; what people watch in a terminal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.engine.messages import EngineStats

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

logger = logging.getLogger("octavo.stats")


class StatsLine:
    """What has changed since the last line.

    Counters begin at 0 again with each new engine; what is told of an interval is never negative.

    Args:
        client: The engine.
        clock: Monotonic, in seconds.
    """

    def __init__(self, client: EngineClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._at = clock()
        self._restarts = client.restarts
        self._latest = self._base = client.stats

    async def run(self, interval: float) -> None:
        """Logs a line every ``interval`` seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                self.tell()
            except Exception:
                logger.exception("the engine's state could not be told")

    def tell(self) -> None:
        """Logs a line, unless nothing has happened since the last one."""
        now, stats = self._clock(), self._client.stats
        self._base = self._base_of(stats)
        if _load(stats) != _load(self._latest) or stats.steps != self._base.steps or any(_load(stats)):
            logger.info("engine", extra=interval_fields(self._base, stats, now - self._at))
        self._at, self._base, self._latest = now, stats, stats

    def _base_of(self, stats: EngineStats) -> EngineStats:
        """The counters that this interval began with."""
        if stats is self._base:  # a new engine may not have spoken yet
            return self._base
        restarted = self._client.restarts != self._restarts or stats.steps < self._base.steps
        self._restarts = self._client.restarts
        return EngineStats() if restarted else self._base


def interval_fields(base: EngineStats, stats: EngineStats, seconds: float) -> dict[str, Any]:
    """A line's fields.

    Args:
        base: The counters at the interval's beginning. stats: the state at its end.
        seconds: How long it was.
    """
    fields: dict[str, Any] = {"running": stats.running, "waiting": stats.waiting, "swapped": stats.swapped}
    for tier, blocks in stats.blocks.items():
        fields[f"{tier}_used_percent"] = _percent(blocks.used, blocks.total)
        fields[f"{tier}_cached_percent"] = _percent(blocks.cached, blocks.total)
    queries = _grown(base.prefix_queries, stats.prefix_queries)
    hits = _grown(sum(base.prefix_hits.values()), sum(stats.prefix_hits.values()))
    fields["prefix_hit_percent"] = _percent(min(hits, queries), queries)
    rates = {
        "prompt_tokens_per_second": (base.prompt_tokens, stats.prompt_tokens),
        "generated_tokens_per_second": (base.generated_tokens, stats.generated_tokens),
        "steps_per_second": (base.steps, stats.steps),
    }
    for name, (before, after) in rates.items():
        fields[name] = round(_grown(before, after) / seconds, 1) if seconds > 0 else 0.0
    fields["preemptions"] = _grown(base.num_preemptions, stats.num_preemptions)
    fields["seconds"] = round(seconds, 1)
    return fields


def _load(stats: EngineStats) -> tuple[int, int, int]:
    return stats.running, stats.waiting, stats.swapped


def _grown(before: int, after: int) -> int:
    return max(0, after - before)


def _percent(part: int, whole: int) -> float | None:
    """None where there is nothing to take a part of."""
    return round(100 * part / whole, 1) if whole else None
