"""The live map's hub: what it asks, when, and what each viewer is told."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from live_engine import LiveEngine, PaintedTier, preemption, running, waiting

from octavo.engine.messages import EngineStats
from octavo.engine.views import CACHED, PIN, PINNED, USED
from octavo.errors import EngineDeadError, EngineUnavailableError, TooManyRequestsError
from octavo.server.limits import (
    LIVE_CELLS,
    LIVE_INTERVAL_SECONDS,
    LIVE_SHARE,
    MAX_LIVE_BEHIND,
    MAX_LIVE_PREEMPTIONS,
    MAX_LIVE_VIEWERS,
)
from octavo.server.live.hub import LiveHub, pause_after
from octavo.server.live.messages import Frame

Stream = AsyncGenerator[msgspec.Struct, None]


class Clock:
    """Time that passes only while somebody sleeps, and ``tick`` seconds each time somebody looks at it."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> LiveEngine:
    return LiveEngine(device=6, host=2)


@pytest.fixture
def hub(engine: LiveEngine, clock: Clock) -> LiveHub:
    return LiveHub(engine, clock=clock, sleep=clock.sleep)


async def read(stream: Stream) -> dict[str, Any]:
    """The next message."""
    frame = await anext(stream)
    assert isinstance(frame, Frame)
    assert frame.data.startswith(b"data: ")
    assert frame.data.endswith(b"\n\n")
    message: dict[str, Any] = json.loads(frame.data[6:])
    return message


async def read_until(stream: Stream, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first message of some kind."""
    for _ in range(100):
        message = await read(stream)
        if wanted(message):
            return message
    raise AssertionError("no such message came")


async def pass_questions(engine: LiveEngine, count: int) -> None:
    """Waits until so many more questions were asked."""
    wanted = len(engine.asked) + count
    while len(engine.asked) < wanted:
        await asyncio.sleep(0)


class Reader:
    """What somebody knows who reads messages as the module describes them."""

    def __init__(self) -> None:
        self.tiers: dict[str, PaintedTier] = {}
        self.columns: dict[str, list[str]] = {}

    def take(self, message: dict[str, Any]) -> None:
        self.columns = message.get("columns") or self.columns
        for row in message.get("tiers", []):
            told = dict(zip(self.columns["tiers"], row, strict=True))
            parts = {
                name: np.frombuffer(b64decode(told[name]), np.int32 if name in ("cells", "owners") else np.uint8)
                for name in ("cells", "states", "owners", "fills", "counts")
            }
            if message["kind"] == "all":
                assert not len(parts["cells"])
                self.tiers[told["tier"]] = PaintedTier(told["tier"], told["num_blocks"])
                parts["cells"] = np.arange(told["num_blocks"])
            tier = self.tiers[told["tier"]]
            for name in ("states", "owners", "fills", "counts"):
                getattr(tier, name)[parts["cells"]] = parts[name]

    def sees(self, engine: LiveEngine) -> bool:
        return self.tiers.keys() == engine.tiers.keys() and all(
            np.array_equal(getattr(self.tiers[name], part), getattr(tier, part))
            for name, tier in engine.tiers.items()
            for part in ("states", "owners", "fills", "counts")
        )


# ── when the engine is asked ──────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_asked_unless_somebody_looks(engine: LiveEngine, hub: LiveHub) -> None:
    for _ in range(50):
        await asyncio.sleep(0)
    assert engine.asked == []
    stream = hub.watch()
    await read(stream)
    await pass_questions(engine, 3)
    await stream.aclose()
    asked = len(engine.asked)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(engine.asked) == asked
    assert hub.num_viewers == 0
    assert [task for task in asyncio.all_tasks() if task.get_name() == "live map"] == []


async def test_whoever_looks_after_a_while_is_told_what_is_there_then(engine: LiveEngine, hub: LiveHub) -> None:
    first = hub.watch()
    await read(first)
    await first.aclose()
    engine.paint("device", 2, owner=5)
    second, reader = hub.watch(), Reader()
    reader.take(await read(second))
    assert engine.asked[-1]
    assert reader.sees(engine)
    await second.aclose()


@pytest.mark.parametrize(
    ("engine_seconds", "own_seconds", "pause"),
    [
        (0.0, 0.0, LIVE_INTERVAL_SECONDS),
        (0.0001, 0.0, LIVE_INTERVAL_SECONDS),
        (0.1, 0.0, 10.0),
        (0.0, 0.2, 20.0),
        (0.1, 0.2, 20.0),
    ],
)
def test_the_pause_keeps_both_processes_to_their_share(engine_seconds: float, own_seconds: float, pause: float) -> None:
    assert pause_after(engine_seconds, own_seconds) == pytest.approx(pause)


@pytest.mark.parametrize("cost", [0.0, 0.04, 1.5])
async def test_the_engine_is_asked_no_more_often_than_its_cost_allows(
    engine: LiveEngine, hub: LiveHub, clock: Clock, cost: float
) -> None:
    engine.cost = cost
    stream = hub.watch()
    await read(stream)
    await pass_questions(engine, 1)
    asked, began = len(engine.asked), clock.now
    await pass_questions(engine, 5)
    questions = len(engine.asked) - asked
    assert questions * cost <= LIVE_SHARE * (clock.now - began) + 1e-9
    assert questions * LIVE_INTERVAL_SECONDS <= clock.now - began + 1e-9
    await stream.aclose()


async def test_the_hubs_own_work_delays_the_next_question_as_well(engine: LiveEngine) -> None:
    clock = Clock(tick=0.001)
    hub = LiveHub(engine, clock=clock, sleep=clock.sleep)
    stream = hub.watch()
    await read(stream)
    await pass_questions(engine, 1)
    asked, began = len(engine.asked), clock.now
    await pass_questions(engine, 5)
    # Each message is taken in and encoded: two measured stretches of a tick at least.
    assert clock.now - began >= (len(engine.asked) - asked) * 2 * clock.tick / LIVE_SHARE
    await stream.aclose()


async def test_large_tiers_are_asked_for_in_as_many_cells_as_a_page_can_draw(engine: LiveEngine, hub: LiveHub) -> None:
    seen = []
    plain = engine.live

    async def live(*, fresh: bool, most_cells: int) -> Any:
        seen.append(most_cells)
        return await plain(fresh=fresh, most_cells=most_cells)

    engine.live = live  # type: ignore[method-assign]
    stream = hub.watch()
    await read(stream)
    assert seen == [LIVE_CELLS]
    await stream.aclose()


# ── what viewers are told ─────────────────────────────────────────────────────────────────────────────────────


async def test_everything_and_then_what_changes(engine: LiveEngine, hub: LiveHub) -> None:
    engine.paint("device", 0, owner=7, fill=100, count=3)
    engine.paint("device", 1, state=PINNED, owner=PIN)
    stream, reader = hub.watch(), Reader()
    first = await read(stream)
    reader.take(first)
    assert (first["kind"], first["status"], first["engine"]) == ("all", "ready", 0)
    assert reader.sees(engine)
    engine.paint("device", 5, owner=9)
    engine.paint("host", 1, state=CACHED, count=0)
    message = await read_until(stream, lambda message: any(row[3] for row in message["tiers"]))
    reader.take(message)
    assert (message["kind"], "columns" in message) == ("changes", False)
    assert reader.sees(engine)
    await stream.aclose()


async def test_lists_names_and_totals(engine: LiveEngine, hub: LiveHub) -> None:
    engine.ids = {1: "one", 2: "two", 3: "three"}
    engine.running, engine.waiting = [running(1)], [waiting(2, behind=1)]
    engine.stats = EngineStats(
        prompt_tokens=10, generated_tokens=4, prefix_hits={"device": 3, "host": 2}, finished={"stop": 1}
    )
    stream = hub.watch()
    first = await read(stream)
    columns = first["columns"]
    told = dict(zip(columns["waiting"], first["waiting"][0], strict=True))
    assert (told["key"], told["reason"], told["short"], told["behind"]) == (2, "blocks", 3, 1)
    assert first["running"][0][columns["running"].index("num_blocks")] == 4
    assert first["names"] == {"1": "one", "2": "two"}
    assert (first["totals"]["prompt_tokens"], first["totals"]["found"], first["totals"]["finished"]) == (10, 5, 1)
    engine.running = [running(1), running(3), running(4)]
    later = await read_until(stream, lambda message: len(message["running"]) == 3)
    assert later["names"] == {"3": "three"}  # new ones only, and none that the client does not know
    await stream.aclose()


async def test_a_second_viewer_gets_all_at_once_and_costs_the_engine_nothing(engine: LiveEngine, hub: LiveHub) -> None:
    first = hub.watch()
    await read(first)
    engine.paint("device", 3, owner=4)
    await pass_questions(engine, 2)
    engine.gate.clear()  # the engine says no more
    await pass_questions(engine, 1)
    second, reader = hub.watch(), Reader()
    message = await read(second)
    reader.take(message)
    assert message["kind"] == "all"
    assert reader.sees(engine)
    assert engine.asked.count(True) == 1
    engine.paint("device", 3, owner=8)
    engine.gate.set()
    reader.take(await read(second))
    assert reader.sees(engine)
    await first.aclose()
    assert hub.num_viewers == 1
    await second.aclose()


async def test_the_latest_preemptions_are_kept_for_those_who_come_later(
    engine: LiveEngine, hub: LiveHub, clock: Clock
) -> None:
    engine.ids = {1: "one", 2: "two"}
    engine.preemptions = [preemption(number, ago=1.0) for number in range(MAX_LIVE_PREEMPTIONS)]
    first = hub.watch()
    began = await read(first)
    assert len(began["preemptions"]) == MAX_LIVE_PREEMPTIONS
    engine.preemptions = [preemption(MAX_LIVE_PREEMPTIONS, ago=0.5), preemption(5, waited=3.0)]
    changes = await read_until(first, lambda message: bool(message.get("preemptions")))
    assert len(changes["preemptions"]) == 2
    second = hub.watch()
    later = await read(second)
    rows = [dict(zip(later["columns"]["preemptions"], row, strict=True)) for row in later["preemptions"]]
    assert {row["number"] for row in rows} == set(range(1, MAX_LIVE_PREEMPTIONS + 1))
    by_number = {row["number"]: row for row in rows}
    assert by_number[5]["waited"] == 3.0
    # Told as of then, not as of when the engine said it.
    assert by_number[6]["ago"] == pytest.approx(1.0 + later["seconds"] - began["seconds"])
    assert later["names"] == {"1": "one", "2": "two"}
    await first.aclose()
    await second.aclose()


async def test_a_viewer_that_is_a_little_behind_gets_every_change(engine: LiveEngine, hub: LiveHub) -> None:
    stream = hub.watch()
    await read(stream)
    engine.gate.clear()
    await pass_questions(engine, 1)
    for cell in range(MAX_LIVE_BEHIND):
        engine.paint("device", cell % 6, owner=cell + 1)
        engine.gate.set()
        await pass_questions(engine, 1)
        engine.gate.clear()
    assert {(await read(stream))["kind"] for _ in range(MAX_LIVE_BEHIND)} == {"changes"}
    await stream.aclose()


async def test_a_viewer_that_is_far_behind_loses_changes_and_gets_everything_anew(
    engine: LiveEngine, hub: LiveHub
) -> None:
    slow, quick, reader = hub.watch(), hub.watch(), Reader()
    await read(slow)
    await read(quick)
    for cell in range(2 * MAX_LIVE_BEHIND + 1):
        engine.paint("device", cell % 6, state=USED, owner=cell + 1)
        await pass_questions(engine, 2)
        await read(quick)
    message = await read(slow)
    reader.take(message)
    assert message["kind"] == "all"
    engine.gate.clear()
    await pass_questions(engine, 1)
    while not reader.sees(engine):
        reader.take(await read(slow))
    assert engine.asked.count(True) == 1  # the hub knew it all
    await slow.aclose()
    await quick.aclose()


async def test_there_are_only_so_many_viewers(engine: LiveEngine, hub: LiveHub) -> None:
    streams = [hub.watch() for _ in range(MAX_LIVE_VIEWERS)]
    for stream in streams:
        await read(stream)
    refused = hub.watch()
    with pytest.raises(TooManyRequestsError, match=str(MAX_LIVE_VIEWERS)):
        await read(refused)
    await streams.pop().aclose()
    streams.append(hub.watch())
    await read(streams[-1])
    for stream in streams:
        await stream.aclose()


# ── when the engine is away ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("failure", [EngineDeadError("it ended"), EngineUnavailableError("it is restarting")])
async def test_a_restart_is_told_and_survived(engine: LiveEngine, hub: LiveHub, failure: Exception) -> None:
    stream, reader = hub.watch(), Reader()
    await read(stream)
    engine.live_failure, engine.status = failure, "restarting"
    message = await read_until(stream, lambda message: message["kind"] == "status")
    assert message["status"] == "restarting"
    late = hub.watch()
    assert (await read(late))["status"] == "restarting"
    engine.tiers["device"] = PaintedTier("device", 4)  # the new one has less room
    engine.replace()
    engine.live_failure, engine.status = None, "ready"
    for viewer in (stream, late):
        message = await read_until(viewer, lambda message: message["kind"] == "all")
        assert (message["status"], message["engine"]) == ("ready", 1)
        reader.take(message)
    assert engine.asked.count(True) >= 2
    assert reader.sees(engine)
    await stream.aclose()
    await late.aclose()


async def test_an_engine_that_was_replaced_between_two_questions_is_asked_for_everything(
    engine: LiveEngine, hub: LiveHub
) -> None:
    stream, reader = hub.watch(), Reader()
    await read(stream)
    engine.tiers = {"device": PaintedTier("device", 3)}
    engine.replace()
    message = await read_until(stream, lambda message: message["engine"] == 1)
    reader.take(message)
    assert message["kind"] == "all"
    assert reader.sees(engine)
    assert engine.asked.count(True) == 2
    await stream.aclose()


async def test_an_engine_that_does_not_answer_is_told_meanwhile(engine: LiveEngine, hub: LiveHub) -> None:
    stream = hub.watch()
    await read(stream)
    engine.gate.clear()
    engine.status = "silent"
    assert (await read_until(stream, lambda message: message["kind"] == "status"))["status"] == "silent"
    engine.status = "ready"
    engine.gate.set()
    assert (await read_until(stream, lambda message: message["status"] == "ready"))["kind"] in ("changes", "status")
    await stream.aclose()


async def test_a_viewer_who_comes_while_the_engine_loads_is_told_so(engine: LiveEngine, hub: LiveHub) -> None:
    engine.status = "loading"
    stream = hub.watch()
    assert (await read(stream))["status"] == "loading"
    engine.status = "ready"
    assert (await read_until(stream, lambda message: message["kind"] != "status"))["kind"] == "all"
    await stream.aclose()


async def test_streams_end_when_the_server_stops(engine: LiveEngine, hub: LiveHub) -> None:
    stream = hub.watch()
    await read(stream)
    engine.status = "stopped"
    statuses = [json.loads(frame.data[6:])["status"] async for frame in stream if isinstance(frame, Frame)]
    assert statuses[-1] == "stopped"


async def test_a_mistake_of_ours_ends_the_streams_and_not_the_hub(engine: LiveEngine, hub: LiveHub) -> None:
    stream = hub.watch()
    await read(stream)
    engine.live_failure = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        await read_until(stream, lambda message: False)
    engine.live_failure = None
    again = hub.watch()
    assert (await read(again))["kind"] == "all"
    await again.aclose()
