"""What HTTP asks of the engine's process beside text: pins, aborts, and what its tokenizer is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Server, serve

pytestmark = pytest.mark.model

SYSTEM = list(range(1000, 1064))  # four blocks


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = "--num-blocks 24 --max-model-len 256 --pin-ratio 0.25 --tokenizer-info"
    with serve(*options.split(), log=tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def complete(http: httpx.Client, prompt: list[int], **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1, **body}).json()
    return answer


def fill(http: httpx.Client) -> None:
    """Has other prompts push everything out of the cache that is not pinned."""
    for start in range(2000, 2600, 300):
        complete(http, list(range(start, start + 240)))


def hit(http: httpx.Client, prompt: list[int]) -> int:
    found: int = complete(http, [*prompt, 5])["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def pins(http: httpx.Client) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = http.get("/v1/cache/pins").json()["data"]
    return data


def test_a_pinned_prompt_stays_until_it_is_dropped(http: httpx.Client, server: Server) -> None:
    made = http.post("/v1/cache/pins", json={"prompt": SYSTEM, "ttl": 600})
    assert made.status_code == 201
    pin = made.json()
    assert (pin["num_tokens"], pin["num_blocks"]) == (64, 4)
    assert 590 < pin["expires_in"] <= 600
    fill(http)
    assert hit(http, SYSTEM) == 64
    longer = http.post("/v1/cache/pins", json={"prompt": SYSTEM, "ttl": 900}).json()  # cached: nothing to compute
    assert (longer["id"], longer["num_blocks"], longer["expires_in"] > 890) == (pin["id"], 4, True)
    assert [listed["id"] for listed in pins(http)] == [pin["id"]]
    assert http.delete(f"/v1/cache/pins/{pin['id']}").status_code == 200
    assert http.delete(f"/v1/cache/pins/{pin['id']}").status_code == 404
    assert pins(http) == []
    fill(http)
    assert hit(http, SYSTEM) == 0


def test_pins_have_a_budget_and_retention_does_not_fail_for_it(http: httpx.Client) -> None:
    refused = http.post("/v1/cache/pins", json={"prompt": list(range(1000, 1112)), "ttl": 600})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "at most 6 may be pinned" in refused.json()["error"]["message"]
    short = http.post("/v1/cache/pins", json={"prompt": [7, 8], "ttl": 600})
    assert "fill no block" in short.json()["error"]["message"]
    complete(http, SYSTEM, prompt_cache_retention="24h", prompt_cache_key="any")
    (pin,) = pins(http)
    assert pin["expires_in"] > 86000
    fill(http)
    assert hit(http, SYSTEM) == 64
    for prompt in (list(range(3000, 3064)), list(range(3000, 3200)), [7, 8]):  # too many now, too many ever, too few
        assert complete(http, prompt, prompt_cache_retention="1h")["usage"]["completion_tokens"] == 1
    full = http.post("/v1/cache/pins", json={"prompt": list(range(3000, 3064)), "ttl": 600})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "pin_budget_exceeded")
    assert [listed["id"] for listed in pins(http)] == [pin["id"]]
    assert http.delete(f"/v1/cache/pins/{pin['id']}").status_code == 200


def test_an_aborted_stream_ends_and_its_blocks_are_free(http: httpx.Client, server: Server) -> None:
    body = {"prompt": SYSTEM, "max_tokens": 190, "ignore_eos": True, "stream": True}
    events = []
    with http.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "mine"}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            events.append(json.loads(line.removeprefix("data: ")))
            if len(events) == 2:
                assert httpx.delete(f"{server.url}/v1/requests/{events[0]['id']}").json()["deleted"] is True
    assert events[-1]["error"]["code"] == "aborted"
    assert all("choices" in event for event in events[:-1])
    assert len(events) < 190
    assert http.delete("/v1/requests/mine").status_code == 404
    deadline = time.monotonic() + 5  # the numbers are sent several times a second
    while server.metric("octavo_kv_blocks", tier="device", state="used"):
        assert time.monotonic() < deadline, "its blocks are still in use"
        time.sleep(0.02)


def test_the_tokenizer_is_told(http: httpx.Client, model_folder: Path) -> None:
    from transformers import AutoTokenizer

    told, own = http.get("/tokenizer_info").json(), AutoTokenizer.from_pretrained(model_folder)
    assert (told["eos_token"], told["bos_token"]) == (own.eos_token, own.bos_token)
    assert told["chat_template"] == own.chat_template
    assert told["tokenizer_class"]
    assert (told["vocab_size"], told["max_model_len"]) == (49152, 256)
