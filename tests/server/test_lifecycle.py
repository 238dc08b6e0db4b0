"""Stopping: nothing new is taken, what is open may finish, a second request to stop ends it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import httpx
import pytest
from api_keys import ADA, GRACE, bearer, some_keys
from fake_engine import FakeEngine
from fastapi import FastAPI

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineUnavailableError, QueueFullError, TooManyRequestsError, UnsupportedModelError
from octavo.server.app import build_app
from octavo.server.console import Narrator
from octavo.server.lifecycle import Lifecycle
from octavo.server.serve import FORCED_EXIT, HttpServer, Server, address_of, bind, http_config


async def test_draining_waits_for_open_requests() -> None:
    lifecycle = Lifecycle()
    assert await lifecycle.drain(0)
    with lifecycle.request():
        assert not await lifecycle.drain(0.01)
        lifecycle.stop()
        with pytest.raises(EngineUnavailableError, match="shutting down"), lifecycle.request():
            pass
        waiting = asyncio.ensure_future(lifecycle.drain(10))
        await asyncio.sleep(0.01)
    assert await waiting


async def test_stopping_twice_ends_the_wait() -> None:
    lifecycle = Lifecycle()
    with lifecycle.request():
        lifecycle.stop()
        waiting = asyncio.ensure_future(lifecycle.drain(10))
        await asyncio.sleep(0)
        lifecycle.stop()
        assert not await waiting
    assert lifecycle.forced


def test_each_tenant_has_its_own_bound() -> None:
    lifecycle = Lifecycle(max_open=2)
    with lifecycle.request("ada"):
        with lifecycle.request("ada"):
            with pytest.raises(TooManyRequestsError, match="2 requests are open already"), lifecycle.request("ada"):
                pass
            with lifecycle.request("grace"):
                assert lifecycle.open_requests == 3
        with lifecycle.request("ada"):
            pass
    assert lifecycle.open_requests == 0


def test_when_to_come_back_is_when_a_request_should_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle, now = Lifecycle(max_open=4), 0.0
    monkeypatch.setattr("octavo.server.lifecycle.time.monotonic", lambda: now)
    with lifecycle.request():
        now += 20
    with pytest.raises(ZeroDivisionError), lifecycle.request():  # what fails at once tells nothing
        raise ZeroDivisionError
    with contextlib.ExitStack() as stack:
        with pytest.raises(QueueFullError, match="full") as full, lifecycle.request():
            raise QueueFullError("full")
        for _ in range(4):
            stack.enter_context(lifecycle.request())
        with pytest.raises(TooManyRequestsError) as many:
            stack.enter_context(lifecycle.request())
    assert (full.value.retry_after, many.value.retry_after) == (20, 5)


async def test_a_tenant_with_too_many_requests_is_told(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = build_app(engine, tokenizer, ServerConfig(max_open_requests=2), model_name="tiny", keys=some_keys())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http:

        def ask(key: str, stream: bool) -> asyncio.Task[httpx.Response]:
            body = {"prompt": "abc", "max_tokens": 5, "stream": stream}
            return asyncio.ensure_future(http.post("/v1/completions", json=body, headers=bearer(key)))

        engine.delay = 0.05
        taken = [ask(ADA, stream) for stream in (True, False)]
        while len(engine.open) < 2:
            await asyncio.sleep(0.01)
        for stream in (True, False):
            refused = await ask(ADA, stream)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "too_many_requests"
        assert (await ask(GRACE, stream=False)).status_code == 200
        assert [response.status_code for response in await asyncio.gather(*taken)] == [200, 200]
        assert (await ask(ADA, stream=False)).status_code == 200


class Running:
    """A whole server in this event loop."""

    def __init__(self, app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle, shutdown_timeout: float = 10) -> None:
        listener = bind(ServerConfig(port=0))
        server = Server(HttpServer(http_config(app)), engine, lifecycle, shutdown_timeout, Narrator(), "tiny")
        self.ended = asyncio.ensure_future(server.run(listener))
        self.http = httpx.AsyncClient(base_url=address_of(listener))

    async def until_ready(self) -> None:
        while (await self.http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)

    async def open_stream(self, engine: FakeEngine, tokens: int) -> asyncio.Task[httpx.Response]:
        body = {"prompt": "abc", "max_tokens": tokens, "stream": True}
        task = asyncio.ensure_future(self.http.post("/v1/completions", json=body))
        while not engine.open:
            await asyncio.sleep(0.01)
        return task


async def test_open_requests_finish_and_new_ones_are_refused(
    app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle
) -> None:
    server = Running(app, engine, lifecycle)
    await server.until_ready()
    engine.delay = 0.05
    stream = await server.open_stream(engine, tokens=20)
    lifecycle.stop()
    refused = await server.http.post("/v1/completions", json={"prompt": "abc"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert (await server.http.get("/ready")).status_code == 503
    assert (await server.http.get("/health")).status_code == 200
    assert (await stream).text.endswith("data: [DONE]\n\n")
    await server.http.aclose()
    assert await server.ended == 0
    assert engine.status == "stopped"


@pytest.mark.parametrize("forced", [False, True])
async def test_requests_that_take_too_long_are_told(
    app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle, events_of: Any, forced: bool
) -> None:
    server = Running(app, engine, lifecycle, shutdown_timeout=60 if forced else 0.1)
    await server.until_ready()
    engine.delay = 0.05
    stream = await server.open_stream(engine, tokens=200)
    await asyncio.sleep(0.1)
    lifecycle.stop()
    if forced:
        lifecycle.stop()
    began = time.monotonic()
    last = events_of((await stream).text)[-1]
    assert "shutting down" in last["error"]["message"]
    await server.http.aclose()
    assert await server.ended == (FORCED_EXIT if forced else 0)
    assert time.monotonic() - began < 5


async def test_http_answers_while_the_engine_loads(app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle) -> None:
    engine.status, engine.delay = "loading", 0.3
    server = Running(app, engine, lifecycle)
    assert (await server.http.get("/health")).status_code == 200
    assert "loading" in (await server.http.get("/ready")).text
    await server.until_ready()
    lifecycle.stop()
    await server.http.aclose()
    assert await server.ended == 0


async def test_stopping_while_the_engine_loads(app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle) -> None:
    engine.delay = 60
    server = Running(app, engine, lifecycle)
    await asyncio.sleep(0.05)
    lifecycle.stop()
    assert await asyncio.wait_for(server.ended, timeout=5) == 0
    await server.http.aclose()


async def test_an_engine_that_cannot_start_ends_the_server(
    app: FastAPI, engine: FakeEngine, lifecycle: Lifecycle
) -> None:
    engine.start_failure = UnsupportedModelError("no such architecture")
    server = Running(app, engine, lifecycle)
    with pytest.raises(UnsupportedModelError):
        await server.ended
    await server.http.aclose()
