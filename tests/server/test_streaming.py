"""Streams end once, tell what went wrong, beat while silent, and stop work when their reader leaves."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
from fake_engine import FakeEngine

from octavo import errors
from octavo.engine.messages import AddRequest, SequenceDelta
from octavo.server import streaming
from octavo.server.streaming import EventStream, merge

EventsOf = Callable[[str], list[Any]]
Connect = Callable[[], socket.socket]
WaitUntil = Callable[..., float]


class Event(msgspec.Struct):
    number: int


def post(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


@pytest.mark.parametrize("failure", [errors.EngineDeadError("the engine ended"), ValueError("secret")])
async def test_an_error_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf, failure: Exception
) -> None:
    engine.failure = failure
    response = await http.post("/v1/completions", json={"prompt": "abc", "stream": True})
    assert response.status_code == 200
    *chunks, last = events_of(response.text)
    assert len(chunks) == engine.fail_after
    assert last["error"].keys() == {"message", "type", "param", "code"}
    assert "secret" not in response.text


async def test_an_error_of_one_sequence_ends_the_stream(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf
) -> None:
    engine.error = "out of memory"
    response = await http.post("/v1/completions", json={"prompt": "abc", "stream": True, "n": 3})
    terminal = [event for event in events_of(response.text) if event == "[DONE]" or "error" in event]
    assert [event["error"]["message"] for event in terminal] == ["out of memory"]
    assert not engine.open


async def test_an_error_told_for_a_sequence_that_has_ended_ends_the_others(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        yield SequenceDelta(request.request_id, 0, [70], "length")
        yield SequenceDelta(request.request_id, 0, [], "error", error="out of memory")

    monkeypatch.setattr(engine, "generate", generate)
    body = {"prompt": "abc", "n": 2, "max_tokens": 1}
    streamed = await http.post("/v1/completions", json={**body, "stream": True})
    assert events_of(streamed.text)[-1]["error"]["message"] == "out of memory"
    assert (await http.post("/v1/completions", json=body)).status_code == 500


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}, {"prompt": ["abc", "def"], "n": 2}])
def test_a_client_that_leaves_ends_its_work(
    connect: Connect, engine: FakeEngine, wait_until: WaitUntil, body: dict[str, Any]
) -> None:
    engine.delay = 0.05
    connection = connect()
    connection.sendall(post({"prompt": "abc", "max_tokens": 200, **body}))
    wait_until(lambda: len(engine.open) > 0)
    time.sleep(0.12)
    connection.close()
    assert wait_until(lambda: not engine.open) < 0.5


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 200}),
        ("/v1/responses", {"input": "abc"}),
    ],
)
def test_a_client_of_another_api_that_leaves_ends_its_work(
    connect: Connect, engine: FakeEngine, wait_until: WaitUntil, path: str, body: dict[str, Any], stream: bool
) -> None:
    engine.delay = 0.05
    connection = connect()
    connection.sendall(post({**body, "stream": stream}, path))
    wait_until(lambda: len(engine.open) > 0)
    connection.close()
    wait_until(lambda: not engine.open, timeout=2)


def test_a_client_that_leaves_before_the_first_token_ends_its_work(
    connect: Connect, engine: FakeEngine, wait_until: WaitUntil
) -> None:
    engine.delay = 60
    for stream in (True, False):
        connection = connect()
        connection.sendall(post({"prompt": "abc", "stream": stream}))
        wait_until(lambda: len(engine.open) > 0)
        connection.close()
        assert wait_until(lambda: not engine.open) < 0.5


def test_clients_that_leave_at_any_point_leave_nothing_behind(
    connect: Connect, url: str, engine: FakeEngine, wait_until: WaitUntil
) -> None:
    engine.delay = 0.001
    random_ = random.Random(3)
    for _ in range(100):
        connection = connect()
        request = post({"prompt": "abc", "max_tokens": 100, "stream": random_.random() < 0.7})
        connection.sendall(request[: random_.randrange(len(request) * 2)])
        time.sleep(random_.random() * 0.01)
        connection.close()
    wait_until(lambda: not engine.open)
    wait_until(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "abc"}).status_code == 200


def test_a_slow_reader_is_given_up(
    connect: Connect, engine: FakeEngine, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLOW_READER_SECONDS", 0.2)
    engine.info = msgspec.structs.replace(engine.info, max_model_len=1_000_000)
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(post({"prompt": "abc", "max_tokens": 500_000, "stream": True}))
    wait_until(lambda: len(engine.open) > 0)
    wait_until(lambda: not engine.open, timeout=20)


def test_deltas_reach_a_client_as_they_come(url: str, engine: FakeEngine) -> None:
    engine.delay = 0.05
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        arrivals = [time.monotonic() for line in response.iter_lines() if line.startswith("data: {")]
    assert len(arrivals) == 4
    assert all(later - earlier > 0.02 for earlier, later in pairwise(arrivals))


def test_many_streams_at_once_do_not_mix(url: str, events_of: EventsOf) -> None:
    texts: dict[str, str] = {}

    def read(prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": 30, "stream": True}
        events = events_of(httpx.post(f"{url}/v1/completions", json=body, timeout=30).text)
        texts[prompt] = "".join(event["choices"][0]["text"] for event in events[:-1])

    threads = [threading.Thread(target=read, args=(letter,)) for letter in "abcdefghijkl"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {letter: letter * 30 for letter in "abcdefghijkl"}


async def send_stream(stream: EventStream, receive: Any = None) -> list[bytes]:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def wait() -> Any:
        await asyncio.Event().wait()

    await stream({"type": "http"}, receive or wait, send)
    return sent


async def test_silence_is_filled_with_comments() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        yield Event(1)
        await asyncio.sleep(0.25)
        yield Event(2)

    sent = await send_stream(EventStream(events(), heartbeat=0.1))
    assert sent == [
        b"", b'data: {"number":1}\n\n', streaming.HEARTBEAT, streaming.HEARTBEAT, b'data: {"number":2}\n\n',
        streaming.DONE, b"",
    ]  # fmt: skip


async def test_nothing_follows_an_end_that_waits_for_its_reader() -> None:
    sent: list[bytes] = []

    async def events() -> AsyncGenerator[Event, None]:
        yield Event(1)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent[-1] == streaming.DONE:
            await asyncio.sleep(0.1)

    async def wait() -> Any:
        await asyncio.Event().wait()

    await EventStream(events(), heartbeat=0.02)({"type": "http"}, wait, send)
    assert sent == [b"", b'data: {"number":1}\n\n', streaming.DONE, b""]


async def test_a_long_wait_opens_the_stream_and_fails_inside_it(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream.__init__, "__kwdefaults__", {"heartbeat": 0.05})
    engine.delay, engine.fail_after, engine.failure = 0.2, 0, errors.EngineDeadError("died")
    response = await http.post("/v1/completions", json={"prompt": "abc", "stream": True})
    assert response.status_code == 200
    assert response.text.startswith(":")
    assert [event["error"]["message"] for event in events_of(response.text)] == ["died"]


async def test_a_client_that_is_gone_already_closes_the_events() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield Event(1)
        finally:
            closed.set()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    stream = EventStream(events())
    await stream.begin()
    with pytest.raises(streaming.ClientDisconnect):
        await send_stream(stream, receive)
    assert closed.is_set()


async def test_merge_takes_items_as_they_come_and_closes_everything() -> None:
    closed = []

    async def numbers(name: str, pause: float) -> AsyncGenerator[str, None]:
        try:
            for number in range(3):
                await asyncio.sleep(pause)
                yield f"{name}{number}"
        finally:
            closed.append(name)

    merged = [item async for item in merge([numbers("slow", 0.03), numbers("fast", 0.001)])]
    assert merged[0] == (1, "fast0")
    assert sorted(merged) == [(0, f"slow{i}") for i in range(3)] + [(1, f"fast{i}") for i in range(3)]
    closed.clear()
    early = merge([numbers("slow", 10), numbers("fast", 0.001)])
    await anext(early)
    await early.aclose()
    assert sorted(closed) == ["fast", "slow"]


async def test_merge_closes_everything_even_if_it_is_cancelled_meanwhile() -> None:
    closed = []

    async def fails() -> AsyncGenerator[str, None]:
        yield "first"
        raise ValueError

    async def has_more() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "more"
        finally:
            closed.append("has more")

    async def is_slow_to_end() -> AsyncGenerator[str, None]:
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            closed.append("slow")
            await asyncio.sleep(0.1)

    streams = [fails(), has_more(), is_slow_to_end()]

    async def read() -> None:
        async for _ in merge(streams):
            pass

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert sorted(closed) == ["has more", "slow"]
