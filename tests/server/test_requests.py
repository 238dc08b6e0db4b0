"""``/v1/requests``: what is told of requests, and their end, only for those who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, GRACE, bearer, some_keys
from fake_engine import FakeEngine

from octavo.engine.views import Story, StoryEvent, WaitingView
from octavo.errors import EngineDeadError, EngineUnavailableError
from octavo.server.keys import Keys
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import MAX_EXPLAINED, MAX_LISTED_REQUESTS

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


# ── what is told ──────────────────────────────────────────────────────────────────────────────────────────


def a_story(state: str = "running", *events: StoryEvent, **values: Any) -> Story:
    return Story(0, known=True, state=state, tenant="ada", seconds=1.5, prompt_tokens=9, events=list(events), **values)


def story_of(engine: FakeEngine, number: int = -1, state: str = "running", **values: Any) -> None:
    engine.stories[engine.seen[number].request_id] = a_story(state, **values)


async def tell(http: httpx.AsyncClient, id: str, key: str = ADA) -> httpx.Response:
    return await http.get(f"/v1/requests/{id}", headers=bearer(key))


async def test_a_request_is_told_while_it_is_open_and_after(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.delay = 5.0
    sent = send(http, "/v1/chat/completions", "mine")
    await running(engine)
    arriving = (await tell(http, "mine")).json()
    assert (arriving["state"], arriving["prompts"], arriving["left_out"]) == ("arriving", [], 1)
    wait = WaitingView(1, 0, "ada", "waiting", "blocks", 4, 0, 9, 1.5)
    story_of(engine, state="waiting", wait=wait, cached_tokens=4)
    told = (await tell(http, "mine")).json()
    assert told["id"].startswith("chatcmpl-")
    assert (told["object"], told["model"], told["state"], told["seconds"]) == ("request", "tiny", "waiting", 1.5)
    assert (told["prompt_tokens"], told["cached_tokens"], "tenant" in told) == (9, 4, False)
    assert told["summary"] == "waiting for 1.50 s: 4 blocks are missing"
    assert told["prompts"][0]["wait"]["reason"] == "blocks"
    assert (await tell(http, told["id"])).json() == told
    assert (await tell(http, "mine", ADMIN)).json() == {**told, "tenant": "ada"}
    await abort(http, "mine")
    await sent
    story_of(engine, state="finished", wait=None)
    assert (await tell(http, "mine")).json()["state"] == "finished"


@pytest.mark.parametrize("path", BODIES)
async def test_every_kind_of_request_has_a_story(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    assert (await send(http, path, "mine")).is_success
    for number in range(len(engine.seen)):
        story_of(engine, number, "finished")
    assert len((await tell(http, "mine")).json()["prompts"]) == len(engine.seen)


async def test_another_tenants_request_is_an_unknown_one(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await send(http, "/v1/chat/completions", "mine")).is_success
    story_of(engine)
    assert (await tell(http, "mine")).status_code == 200
    hidden, unknown = await tell(http, "mine", GRACE), await tell(http, "none", GRACE)
    assert hidden.status_code == unknown.status_code == 404
    assert hidden.text.replace("mine", "none") == unknown.text


async def test_a_lost_story_is_not_found_and_no_engine_is_a_503(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await send(http, "/v1/chat/completions", "mine")).is_success
    lost = await tell(http, "mine")
    assert lost.status_code == 404
    assert "not when the engine restarts" in lost.json()["error"]["message"]

    for error in (EngineUnavailableError("it restarts"), EngineDeadError("it died")):

        async def fail(request_id: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(engine, "story", fail)
        gone = await tell(http, "mine")
        assert gone.status_code == 503
        assert "retry-after" in gone.headers
        assert (await tell(http, "none")).status_code == 404


async def test_others_are_named_to_those_who_may_know(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for id, key in (("a", ADA), ("b", ADA), ("c", GRACE)):
        assert (await send(http, "/v1/embeddings", id, key, input="x")).is_success

    def waits(behind: int) -> StoryEvent:
        return StoryEvent(0.5, "waiting", 0, {"reason": "behind", "short": 0, "behind": behind})

    engine.stories[engine.seen[0].request_id] = a_story("running", *map(waits, (1, 2, 3, 99)))
    timeline = (await tell(http, "a")).json()["prompts"][0]["timeline"]
    assert [moment["text"].rpartition(", behind ")[2] for moment in timeline] == [
        "another sequence of the same request",
        "request b",
        "another tenant's request",
        "a request that is forgotten",
    ]
    assert [moment["data"]["behind"]["id"] for moment in timeline] == ["a", "b", None, None]
    for_admin = (await tell(http, "a", ADMIN)).json()["prompts"][0]["timeline"]
    assert for_admin[2]["data"]["behind"]["id"] == "c"


async def test_what_tells_of_other_tenants_is_for_administrators(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await send(http, "/v1/chat/completions", "mine")).is_success
    queued = StoryEvent(0.0, "queued", 0, {"prompt_tokens": 9, "ahead": 5})
    engine.stories[engine.seen[0].request_id] = a_story("waiting", queued)
    for key, words in ((ADA, "arrived with 9 prompt tokens"), (ADMIN, "5 sequences waiting before it")):
        (moment,) = (await tell(http, "mine", key)).json()["prompts"][0]["timeline"]
        assert moment["text"].endswith(words)


async def test_several_prompts_up_to_a_bound(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for count, left_out in ((MAX_EXPLAINED, 0), (MAX_EXPLAINED + 1, 1)):
        engine.seen.clear()
        assert (await send(http, "/v1/completions", f"of-{count}", prompt=["x"] * count, n=1)).is_success
        for number in range(count):
            story_of(engine, number, "finished" if number else "running")
        told = (await tell(http, f"of-{count}")).json()
        assert (len(told["prompts"]), told["left_out"], told["state"]) == (MAX_EXPLAINED, left_out, "running")
        assert told["summary"].startswith(f"{MAX_EXPLAINED} prompts, 1 running, {MAX_EXPLAINED - 1} finished; ")
        assert told["prompt_tokens"] == 9 * MAX_EXPLAINED


async def test_the_list_is_of_ones_own_and_bounded(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await http.get("/v1/requests", headers=bearer(ADA))).json() == {"data": [], "total": 0, "object": "list"}
    engine.delay = 5.0
    count = MAX_LISTED_REQUESTS + 1
    sent = [send(http, "/v1/embeddings", f"a{number}", input="x") for number in range(MAX_LISTED_REQUESTS - 1)]
    sent.append(send(http, "/v1/completions", "a-last"))
    await listed(http, ADA, MAX_LISTED_REQUESTS)
    sent.append(send(http, "/v1/embeddings", "g", GRACE))
    mine = await listed(http, ADA, MAX_LISTED_REQUESTS)
    (hers,) = (await listed(http, GRACE, 1))["data"]
    everybodys = await listed(http, ADMIN, count)
    assert (len(mine["data"]), mine["total"]) == (MAX_LISTED_REQUESTS, MAX_LISTED_REQUESTS)
    assert (len(everybodys["data"]), everybodys["total"]) == (MAX_LISTED_REQUESTS, count)
    assert mine["data"][0].keys() == {"id", "age", "prompts", "object"}
    assert (mine["data"][0]["id"], mine["data"][-1]["prompts"]) == ("a0", 2)
    assert (hers["id"], hers["prompts"]) == ("g", 2)
    assert everybodys["data"][0]["tenant"] == "ada"
    for task in sent:
        task.cancel()


async def listed(http: httpx.AsyncClient, key: str, total: int) -> Any:
    """What is listed once so many are open."""
    while True:
        told = (await http.get("/v1/requests", headers=bearer(key))).json()
        if told["total"] == total:
            return told
        await asyncio.sleep(0.001)
