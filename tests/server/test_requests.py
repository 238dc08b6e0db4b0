"""``DELETE /v1/requests/{id}``: ends a running request, once, and only for those who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, GRACE, bearer, some_keys
from fake_engine import FakeEngine

from octavo.server.keys import Keys
from octavo.server.lifecycle import Lifecycle

EventsOf = Callable[[str], list[Any]]

BODIES = {
    "/v1/completions": {"prompt": ["abc", "def"], "n": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 64},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/cache/pins": {"prompt": "a", "ttl": 5},
}


@pytest.fixture
def keys() -> Keys:
    return some_keys()


async def running(engine: FakeEngine, count: int = 1) -> None:
    """Until so many requests are open in the engine."""
    while len(engine.open) < count:
        await asyncio.sleep(0.001)


async def abort(http: httpx.AsyncClient, id: str, key: str = ADA) -> httpx.Response:
    return await http.delete(f"/v1/requests/{id}", headers=bearer(key))


def send(http: httpx.AsyncClient, path: str, id: str, key: str = ADA, **more: Any) -> asyncio.Task[httpx.Response]:
    headers = {**bearer(key), "x-request-id": id}
    return asyncio.create_task(http.post(path, json={**BODIES[path], **more}, headers=headers))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("key", [ADA, ADMIN])
async def test_by_the_clients_own_id(
    http: httpx.AsyncClient, engine: FakeEngine, lifecycle: Lifecycle, path: str, key: str
) -> None:
    engine.delay = 5.0
    sent = send(http, path, "mine")
    await running(engine)
    response = await abort(http, "mine", key)
    assert response.json() == {"id": "mine", "object": "request", "deleted": True}
    answer = await sent
    assert answer.status_code == 499
    error = answer.json()["error"]  # Anthropic's has no code
    assert error.get("code", "aborted") == "aborted"
    assert "aborted" in error["message"]
    assert engine.open == set()
    assert lifecycle.open_requests == 0
    assert (await abort(http, "mine", key)).status_code == 404


async def test_the_status_goes_through_a_socket(url: str, engine: FakeEngine) -> None:
    engine.delay = 5.0
    async with httpx.AsyncClient(base_url=url) as http:
        sent = send(http, "/v1/chat/completions", "mine")
        await running(engine)
        await abort(http, "mine")
        answer = await sent
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "aborted")
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_open_stream_ends_with_one_error(url: str, engine: FakeEngine, events_of: EventsOf, path: str) -> None:
    engine.delay = 0.02
    body, text = {**BODIES[path], "stream": True}, ""
    async with httpx.AsyncClient(base_url=url) as http:
        async with http.stream("POST", path, json=body, headers=bearer(ADA)) as response:
            async for line in response.aiter_lines():
                text += f"{line}\n"
                if line.startswith("data: ") and text.count("data: ") == 1:
                    id = json.loads(line.removeprefix("data: "))["id"]
                    assert id.startswith(("cmpl-", "chatcmpl-"))
                    assert (await abort(http, id)).status_code == 200
        *chunks, last = events_of(text)
        assert last["error"]["code"] == "aborted"
        assert all(chunk["choices"] for chunk in chunks)
        assert (await abort(http, id)).status_code == 404
    assert engine.open == set()


async def test_nobody_elses(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.delay = 0.05
    sent = send(http, "/v1/chat/completions", "mine", max_tokens=3)
    await running(engine)
    for id, key in (("mine", GRACE), ("yours", ADA), ("yours", ADMIN)):
        response = await abort(http, id, key)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert (await sent).status_code == 200


async def test_equal_ids_mean_all_of_ones_own(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.delay = 0.2
    chat = "/v1/chat/completions"
    sent = [send(http, chat, "same", key, max_tokens=1) for key in (ADA, ADA, GRACE)]
    await running(engine, 3)
    assert (await abort(http, "same")).status_code == 200
    assert [(await answer).status_code for answer in sent] == [499, 499, 200]


async def test_an_id_that_the_server_gave(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.delay = 5.0
    sent = send(http, "/v1/chat/completions", "not well formed!")
    await running(engine)
    assert (await abort(http, "not well formed!")).status_code == 404
    engine.delay = 0.0
    sent.cancel()
