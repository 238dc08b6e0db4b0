"""Pins over HTTP: made, listed, dropped, each tenant its own; and prompts that are pinned by the way."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, GRACE, bearer, some_keys
from fake_engine import FakeEngine

from octavo.engine.messages import packed, unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import NeverFitsError
from octavo.server.keys import Keys
from octavo.server.limits import MAX_PIN_SECONDS

PROMPT = list(range(100, 135))  # two blocks


@pytest.fixture
def keys() -> Keys:
    return some_keys()


async def pin(http: httpx.AsyncClient, key: str = ADA, **body: Any) -> httpx.Response:
    asked = {"prompt": PROMPT, "ttl": 60, **body}
    return await http.post(
        "/v1/cache/pins", json={k: v for k, v in asked.items() if v is not None}, headers=bearer(key)
    )


async def listed(http: httpx.AsyncClient, key: str) -> list[dict[str, Any]]:
    answer = (await http.get("/v1/cache/pins", headers=bearer(key))).json()
    assert answer["object"] == "list"
    data: list[dict[str, Any]] = answer["data"]
    return data


@pytest.mark.parametrize("cached", [True, False])
async def test_a_prompt_is_pinned_and_computed_first_if_need_be(
    http: httpx.AsyncClient, engine: FakeEngine, cached: bool
) -> None:
    engine.cached = {packed(PROMPT)} if cached else set()
    response = await pin(http, cache_salt="s")
    assert response.status_code == 201
    card = response.json()
    assert card == {
        "id": "pin-0-1", "object": "cache.pin", "num_tokens": 32, "num_blocks": 2, "expires_in": 60.0
    }  # fmt: skip
    assert await listed(http, ADA) == [card]
    asked = [(r.tenant, r.cache_salt, r.pin_ttl, r.sampling.max_tokens) for r in engine.seen]
    assert asked == ([] if cached else [("ada", "s", 60.0, 1)])


async def test_a_conversation_is_pinned_without_the_opening_of_an_answer(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "system", "content": "The quick brown fox jumps over the lazy dog."}]
    assert (await pin(http, prompt=None, messages=messages)).status_code == 201
    expected = tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert unpacked(engine.seen[0].prompt) == expected


async def test_each_tenant_sees_and_drops_its_own(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    ids = [(await pin(http, key)).json()["id"] for key in (ADA, GRACE, ADMIN)]
    assert [card["id"] for card in await listed(http, ADA)] == ids[:1]
    assert [(card["id"], card["tenant"]) for card in await listed(http, ADMIN)] == list(
        zip(ids, ("ada", "grace", "default"), strict=True)
    )
    assert "tenant" not in (await listed(http, GRACE))[0]

    async def drop(id: str, key: str) -> httpx.Response:
        return await http.delete(f"/v1/cache/pins/{id}", headers=bearer(key))

    for id in (ids[1], ids[2], "pin-0-9", "pin-1-1", "1", "x"):
        response = await drop(id, ADA)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert (await drop(ids[0], ADA)).json() == {"id": ids[0], "object": "cache.pin", "deleted": True}
    assert (await drop(ids[0], ADA)).status_code == 404
    assert (await drop(ids[1], ADMIN)).status_code == 200
    assert [pin.tenant for pin in engine.kept] == ["default"]


async def test_another_engines_pin_is_not_taken_for_one_of_the_last(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    old = (await pin(http)).json()["id"]
    engine.restarts = 1
    assert (await http.delete(f"/v1/cache/pins/{old}", headers=bearer(ADA))).status_code == 404
    assert len(engine.kept) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl": None}, "ttl"), ({"ttl": 0}, "ttl"), ({"ttl": -1}, "ttl"), ({"ttl": "60"}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"ttl": MAX_PIN_SECONDS + 1}, "ttl"), ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [512]}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"), ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": [5] * 300}, "prompt"),
    ],
)  # fmt: skip
async def test_what_is_refused(http: httpx.AsyncClient, engine: FakeEngine, body: Any, param: str) -> None:
    response = await pin(http, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert (engine.seen, engine.kept) == ([], [])


async def test_what_the_engine_refuses(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.pin_room = 1
    response = await pin(http)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "pin_budget_exceeded")
    engine.refusal = NeverFitsError("35 tokens are 3 blocks", largest=16, param="prompt")
    response = await pin(http)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    engine.refusal, engine.error, engine.fail_after = None, "boom", 0
    assert (await pin(http)).status_code == 500
    engine.status = "restarting"
    for response in (await pin(http), await http.get("/v1/cache/pins", headers=bearer(ADA))):
        assert response.status_code == 503


# ── by the way ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("retention", "seconds"),
    [
        ("24h", 86400.0), ("90s", 90.0), ("2m", 120.0), (0.5, 0.5), (30, 30.0), ("7d", MAX_PIN_SECONDS),
        (1e300, MAX_PIN_SECONDS), (10**18, MAX_PIN_SECONDS), ("in_memory", None), ("in-memory", None), (None, None),
    ],
)  # fmt: skip
async def test_retention_pins_prompts(
    http: httpx.AsyncClient, engine: FakeEngine, retention: Any, seconds: float | None
) -> None:
    body = {"max_tokens": 1, "prompt_cache_retention": retention, "prompt_cache_key": "user-5"}
    chat = {"messages": [{"role": "user", "content": "x"}], **body}
    for path, asked in (("chat/completions", chat), ("completions", {"prompt": ["a", "b"], **body})):
        assert (await http.post(f"/v1/{path}", json=asked, headers=bearer(ADA))).status_code == 200
    assert [request.pin_ttl for request in engine.seen] == [seconds] * 3
    assert "octavo_http_ignored_fields_total 0.0" in (await http.get("/metrics", headers=bearer(ADMIN))).text


async def test_without_room_the_prompt_is_answered_all_the_same(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.pin_room = 0
    body = {"prompt": PROMPT, "max_tokens": 2, "prompt_cache_retention": "24h"}
    response = await http.post("/v1/completions", json=body, headers=bearer(ADA))
    assert response.json()["usage"]["completion_tokens"] == 2
    assert engine.kept == []


@pytest.mark.parametrize("retention", ["", "24", "0h", "h", "-1h", "1w", "1.5h", 0, -1, True, [], "٣h"])
async def test_retentions_that_are_refused(http: httpx.AsyncClient, retention: Any) -> None:
    body = {"prompt": "x", "prompt_cache_retention": retention}
    response = await http.post("/v1/completions", json=body, headers=bearer(ADA))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt_cache_retention"
    assert "24h, 30m or 90s" in response.json()["error"]["message"]
