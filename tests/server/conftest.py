"""The whole front end on a fake engine: in process, and behind a real uvicorn on a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from self_signed import make_certificate
from tiny_tokenizer import EOS_ID, write_tokenizer

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.keys import Keys
from octavo.server.lifecycle import Lifecycle
from octavo.server.middleware import BodyReader
from octavo.server.serve import HttpServer, address_of, bind, http_config


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undoes what `octavo.logs.set_up` does to the whole process."""
    root, own, hook = logging.getLogger(), logging.getLogger("octavo"), sys.excepthook
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    for handler in [known for known in root.handlers if type(known) is logging.StreamHandler]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    logging.captureWarnings(False)
    sys.excepthook = hook


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(eos=EOS_ID)


@pytest.fixture
def say(engine: FakeEngine, tokenizer: Tokenizer) -> Callable[[str], None]:
    """Makes the engine say a text."""

    def script(text: str) -> None:
        engine.script = tokenizer.encode(text)

    return script


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(port=0, max_body_bytes=64 * 1024, allowed_hosts=("octavo", "x"))


@pytest.fixture
def keys() -> Keys | None:
    return None


@pytest.fixture
def app(
    engine: FakeEngine, tokenizer: Tokenizer, config: ServerConfig, lifecycle: Lifecycle, keys: Keys | None
) -> FastAPI:
    return build_app(engine, tokenizer, config, model_name="tiny", lifecycle=lifecycle, keys=keys)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        yield client


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The address of a uvicorn serving the app, set up as `octavo serve` sets it up."""
    listener = bind(ServerConfig(port=0))
    server = HttpServer(http_config(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield address_of(listener)
    server.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate for this machine, signed by itself, and of its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    make_certificate(*files)
    return files


@pytest.fixture
def impatient(app: FastAPI) -> None:
    """Bodies have to arrive at once."""
    for middleware in app.user_middleware:
        if middleware.cls is BodyReader:
            middleware.kwargs["seconds"] = 0.2


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> float:
    """Waits for a condition; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, "timed out"
        time.sleep(0.002)
    return time.monotonic() - began


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., float]:
    return wait_until


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], socket.socket]]:
    """Opens raw connections to the server."""
    connections = []

    def open_connection() -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=10)
        connections.append(connection)
        return connection

    yield open_connection
    for connection in connections:
        connection.close()


def events_of(text: str) -> list[Any]:
    """The data of server-sent events; ``[DONE]`` as it is."""
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@pytest.fixture(name="events_of")
def events_of_fixture() -> Callable[[str], list[Any]]:
    return events_of


@pytest.fixture
def tests_folder() -> Path:
    return Path(__file__).parents[1]
