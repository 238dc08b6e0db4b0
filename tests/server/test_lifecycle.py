"""Stopping: nothing new is taken, what is open may finish, a second request to stop ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI

from octavo.config import ServerConfig
from octavo.errors import EngineUnavailableError, UnsupportedModelError
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
