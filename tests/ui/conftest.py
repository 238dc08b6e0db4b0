"""The live map's page in a headless Chromium."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from live_engine import LiveEngine
from tiny_tokenizer import write_tokenizer

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.keys import Keys
from octavo.server.serve import HttpServer, address_of, bind, http_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 1400, 900


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; not for the session: playwright keeps a loop running, which other tests must not find."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium: `apt-get install chromium`")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `pip install playwright`"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty tab; the test fails if anything in it does."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(30_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # Among them what the Content-Security-Policy refuses. That a server answers 401 is told there as well.
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


@pytest.fixture
def engine() -> LiveEngine:
    return LiveEngine(device=60, host=20)


@pytest.fixture
def keys() -> Keys | None:
    return None


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def url(engine: LiveEngine, tokenizer: Tokenizer, keys: Keys | None) -> Iterator[str]:
    """The address of a server on the painted engine."""
    app = build_app(engine, tokenizer, ServerConfig(port=0), model_name="tiny", keys=keys)
    listener = bind(ServerConfig(port=0))
    server = HttpServer(http_config(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield address_of(listener)
    engine.status = "stopped"  # ends the streams
    server.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()
