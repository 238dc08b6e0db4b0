"""The live map over HTTP: what is served, with which headers, and to whom."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, WRONG, bearer, some_keys
from fastapi import FastAPI
from live_engine import LiveEngine

from octavo.engine.views import USED, BlockOwner, BlockView
from octavo.server.auth import PUBLIC
from octavo.server.keys import Keys
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import MAX_BLOCK_ID, MAX_LIVE_VIEWERS
from octavo.server.routes import ui

FOLDER = Path(ui.__file__).parents[1] / "ui"
FILES = sorted(file.name for file in FOLDER.iterdir())
BLOCK = BlockView(
    0, "device", 3, "used", [BlockOwner(1, 0, "ada", 2)], 5, 16, "00ff", 2, age=1.5, idle=None, hits=4
)  # fmt: skip


@pytest.fixture
def engine() -> LiveEngine:
    engine = LiveEngine(device=6)
    engine.blocks["device", 3] = BLOCK
    engine.ids = {1: "a-request"}
    return engine


def test_every_file_of_the_page_is_served_and_public_and_no_other() -> None:
    assert sorted((ui.PAGE, *ui.ASSETS)) == FILES
    assert {path for path in PUBLIC if path.startswith("/ui")} == {"/ui", *(f"/ui/{name}" for name in ui.ASSETS)}


@pytest.mark.parametrize("name", FILES)
async def test_a_file_comes_with_headers_that_keep_everything_else_out(http: httpx.AsyncClient, name: str) -> None:
    response = await http.get("/ui" if name == ui.PAGE else f"/ui/{name}")
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    assert response.headers["content-type"].startswith(kind)
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert "unsafe" not in str(policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("name", FILES)
def test_a_file_fetches_nothing_from_elsewhere_and_writes_no_markup(name: str) -> None:
    text = (FOLDER / name).read_text()
    elsewhere = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)))
    assert elsewhere <= {"http://www.w3.org"}  # the name of SVG
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text)
    if name.endswith(".html"):
        assert not re.search(r"\son\w+=|\sstyle=|<script(?![^>]*src=)|<style", text)


@pytest.mark.parametrize(
    "path",
    ["/ui/", "/ui/index.html", "/ui/../auth.py", "/ui/..%2fauth.py", "/ui/%2e%2e/auth.py", "/ui/x.js",
     "/ui/blocks/device"],
)  # fmt: skip
async def test_there_is_nothing_else(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


# ── one block ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_block(http: httpx.AsyncClient) -> None:
    block = (await http.get("/ui/blocks/device/3")).json()
    assert block == {
        "tier": "device", "block": 3, "state": "used", "filled": 5, "size": 16, "hash": "00ff", "parent": 2,
        "owners": [{"key": 1, "index": 0, "tenant": "ada", "position": 2, "request": "a-request"}],
        "age": 1.5, "idle": None, "hits": 4,
    }  # fmt: skip


async def test_a_block_whose_owner_the_front_end_has_forgotten(http: httpx.AsyncClient, engine: LiveEngine) -> None:
    engine.ids = {}
    assert (await http.get("/ui/blocks/device/3")).json()["owners"][0]["request"] is None


@pytest.mark.parametrize(
    ("path", "status"),
    [("device/4", 404), ("moon/3", 404), ("device/0", 400), ("device/-1", 400), ("device/x", 400), ("device/1e3", 400),
     (f"device/{MAX_BLOCK_ID}", 404), (f"device/{MAX_BLOCK_ID + 1}", 400), (f"device/{10**30}", 400)],
)  # fmt: skip
async def test_blocks_that_there_cannot_be(http: httpx.AsyncClient, path: str, status: int) -> None:
    response = await http.get(f"/ui/blocks/{path}")
    assert response.status_code == status
    assert response.json()["error"]["message"]


async def test_a_block_of_an_engine_that_is_away(http: httpx.AsyncClient, engine: LiveEngine) -> None:
    engine.status = "restarting"
    response = await http.get("/ui/blocks/device/3")
    assert response.status_code == 503
    assert "restarting" in response.json()["error"]["message"]


# ── the stream ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stream_begins_with_everything(url: str, engine: LiveEngine) -> None:
    engine.paint("device", 2, state=USED, owner=1)
    with httpx.stream("GET", f"{url}/ui/stream", timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
    message = json.loads(first.removeprefix("data: "))
    assert (message["kind"], message["tiers"][0][1]) == ("all", 6)


def test_viewers_who_leave_make_room_and_the_engine_is_left_alone(
    url: str, engine: LiveEngine, wait_until: Callable[..., float]
) -> None:
    def look() -> Any:
        return httpx.stream("GET", f"{url}/ui/stream", timeout=10)

    opened = [look() for _ in range(MAX_LIVE_VIEWERS)]
    for stream in opened:
        assert stream.__enter__().status_code == 200
    with look() as refused:
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
    for stream in opened:
        stream.__exit__(None, None, None)

    def there_is_room() -> bool:
        with look() as response:
            return bool(response.status_code == 200)

    wait_until(there_is_room)


def test_a_viewer_who_never_reads_does_no_harm(url: str, connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(b"GET /ui/stream HTTP/1.1\r\nhost: x\r\n\r\n")
    assert httpx.get(f"{url}/health").status_code == 200
    with httpx.stream("GET", f"{url}/ui/stream", timeout=10) as response:
        assert next(line for line in response.iter_lines() if line.startswith("data: "))


async def test_no_new_viewers_while_the_server_stops(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
    lifecycle.stop()
    assert (await http.get("/ui/stream")).status_code == 503
    assert (await http.get("/ui")).status_code == 200


# ── who may look ──────────────────────────────────────────────────────────────────────────────────────────────


class TestWithKeys:
    @pytest.fixture
    def keys(self) -> Keys:
        return some_keys()

    async def test_the_page_is_for_everybody_and_what_it_shows_for_administrators(
        self, http: httpx.AsyncClient, engine: LiveEngine
    ) -> None:
        engine.status = "stopped"  # so that the stream has an end
        for path in ("/ui", "/ui/main.js"):
            assert (await http.get(path)).status_code == 200
        for path in ("/ui/stream", "/ui/blocks/device/3", "/ui/nothing"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers=bearer(WRONG))).status_code == 401
            refused = await http.get(path, headers=bearer(ADA))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
            assert (await http.get(path, headers=bearer(ADMIN))).status_code in (200, 404, 503)
        assert engine.asked == []

    @pytest.mark.parametrize("path", ["/ui/stream/", "/ui//stream", "/ui/%73tream", "/ui/./stream", "/ui/stream%0a"])
    async def test_no_spelling_shows_it_to_a_tenant(self, http: httpx.AsyncClient, path: str) -> None:
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers=bearer(ADA))).status_code in (403, 404)


@pytest.mark.parametrize("path", ["/ui/stream", "/ui/blocks/device/3"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
async def test_pages_of_other_sites_get_nothing(http: httpx.AsyncClient, path: str, site: str) -> None:
    assert (await http.get(path, headers={"sec-fetch-site": site})).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_its_own_page_does(http: httpx.AsyncClient, site: str) -> None:
    assert (await http.get("/ui/blocks/device/3", headers={"sec-fetch-site": site})).status_code == 200


async def test_the_document_for_clients_has_none_of_it(http: httpx.AsyncClient, app: FastAPI) -> None:
    assert not any(path.startswith("/ui") for path in app.openapi()["paths"])
