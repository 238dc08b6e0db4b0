"""The line about load and speed: its numbers, its silence, and that it survives the engine."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine

from octavo.engine.messages import EngineStats, TierBlocks
from octavo.logs import fields_of
from octavo.server.stats_line import StatsLine, interval_fields

BUSY = EngineStats(
    running=3,
    waiting=2,
    swapped=1,
    blocks={"device": TierBlocks(200, 50, 20, 130), "host": TierBlocks(10, 1, 9, 0)},
    steps=100,
    prompt_tokens=1000,
    generated_tokens=300,
    prefix_queries=1500,
    prefix_hits={"device": 400, "host": 100},
    preemptions=[("swap", "growth", 2), ("recompute", "growth", 1)],
)
IDLE = msgspec.structs.replace(BUSY, running=0, waiting=0, swapped=0)


class Watched:
    """A stats line with an engine and a clock that a test sets."""

    def __init__(self, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "octavo")
        self.engine = engine
        self.now = 0.0
        self._caplog = caplog
        self._line = StatsLine(engine, clock=lambda: self.now)

    def after(self, seconds: float, stats: EngineStats) -> list[dict[str, Any]]:
        """What is told so many seconds later."""
        self.now += seconds
        self.engine.stats = stats
        self._caplog.clear()
        self._line.tell()
        return [fields_of(record) for record in self._caplog.records]


@pytest.fixture
def watched(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> Watched:
    engine.stats = EngineStats()
    return Watched(engine, caplog)


def test_it_tells_load_usage_and_speed(watched: Watched) -> None:
    assert watched.after(10, BUSY) == [
        {
            "running": 3,
            "waiting": 2,
            "swapped": 1,
            "device_used_percent": 25.0,
            "device_cached_percent": 10.0,
            "host_used_percent": 10.0,
            "host_cached_percent": 90.0,
            "prefix_hit_percent": 33.3,
            "prompt_tokens_per_second": 100.0,
            "generated_tokens_per_second": 30.0,
            "steps_per_second": 10.0,
            "preemptions": 3,
            "seconds": 10,
        }
    ]


def test_rates_are_those_of_the_interval(watched: Watched) -> None:
    watched.after(10, BUSY)
    later = msgspec.structs.replace(
        BUSY, steps=120, generated_tokens=340, prefix_queries=1600, prefix_hits={"device": 420, "host": 100}
    )
    (told,) = watched.after(4, later)
    assert (told["steps_per_second"], told["generated_tokens_per_second"], told["preemptions"]) == (5.0, 10.0, 0)
    assert (told["prefix_hit_percent"], told["prompt_tokens_per_second"]) == (20.0, 0.0)


def test_without_look_ups_there_is_no_hit_rate(watched: Watched) -> None:
    watched.after(10, BUSY)
    (told,) = watched.after(10, msgspec.structs.replace(BUSY, steps=101))
    assert told["prefix_hit_percent"] is None


def test_an_idle_engine_is_told_of_once(watched: Watched) -> None:
    assert watched.after(10, EngineStats()) == []
    assert len(watched.after(10, BUSY)) == 1
    assert len(watched.after(10, IDLE)) == 1
    assert watched.after(10, IDLE) == []
    assert watched.after(10, msgspec.structs.replace(IDLE)) == []


def test_an_engine_that_is_stuck_with_work_is_told_of(watched: Watched) -> None:
    watched.after(10, BUSY)
    (told,) = watched.after(10, BUSY)
    assert (told["running"], told["steps_per_second"]) == (3, 0.0)


def test_a_new_engine_counts_from_zero(watched: Watched) -> None:
    watched.after(10, BUSY)
    watched.engine.restarts += 1
    (told,) = watched.after(10, msgspec.structs.replace(BUSY, steps=500, generated_tokens=20))
    assert (told["steps_per_second"], told["generated_tokens_per_second"], told["preemptions"]) == (50.0, 2.0, 3)


def test_a_new_engine_that_has_not_spoken_yet_has_done_nothing(watched: Watched) -> None:
    watched.after(10, IDLE)
    watched.engine.restarts += 1
    assert watched.after(10, IDLE) == []
    (told,) = watched.after(10, msgspec.structs.replace(BUSY, steps=500))
    assert told["steps_per_second"] == 50.0


def test_nothing_is_ever_negative() -> None:
    for before, after in ((BUSY, EngineStats(running=1, steps=1)), (BUSY, BUSY), (EngineStats(), EngineStats())):
        told = interval_fields(before, after, 0.0)
        assert all(value is None or value >= 0 for value in told.values())


async def test_it_goes_on_after_a_failure_and_ends_when_it_is_cancelled(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "octavo")
    line, told = StatsLine(engine), asyncio.Event()

    def tell() -> None:
        if caplog.records:
            told.set()
        raise ZeroDivisionError

    line.tell = tell  # type: ignore[method-assign]
    task = asyncio.create_task(line.run(0.0))
    await told.wait()
    assert "could not be told" in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
