"""What is served, whether it is served, and what is counted."""

from __future__ import annotations

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI

from octavo.config import ServerConfig
from octavo.engine.messages import EngineStats, TierBlocks
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.lifecycle import Lifecycle


async def test_models(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    (card,) = (await http.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 256)
    assert (await http.get("/v1/models/tiny")).json() == card
    assert (await http.get("/v1/models/org/huge")).json()["error"]["code"] == "model_not_found"
    engine.status = "loading"
    assert (await http.get("/v1/models/tiny")).json()["max_model_len"] is None


async def test_a_model_name_may_have_slashes(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = build_app(engine, tokenizer, ServerConfig(allowed_hosts=("octavo",)), model_name="org/tiny")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http:
        assert (await http.get("/v1/models/org/tiny")).json()["id"] == "org/tiny"


async def test_alive_and_ready(http: httpx.AsyncClient, engine: FakeEngine, lifecycle: Lifecycle) -> None:
    assert (await http.get("/ready")).json() == {"status": "ready"}
    for status in ("loading", "restarting", "stalled", "stopped"):
        engine.status = status
        response = await http.get("/ready")
        assert response.status_code == 503
        assert status in response.json()["error"]["message"]
        assert response.headers["retry-after"]
        assert (await http.get("/health")).status_code == 200
    engine.status = "ready"
    lifecycle.stop()
    assert "draining" in (await http.get("/ready")).text


@pytest.mark.parametrize(("status", "expected"), [("silent", 200), ("stalled", 503), ("restarting", 503)])
async def test_silence_alone_costs_no_request(
    http: httpx.AsyncClient, engine: FakeEngine, status: str, expected: int
) -> None:
    engine.status = status
    assert (await http.get("/ready")).status_code == 503
    assert (await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})).status_code == expected


async def test_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/version")).json()["version"]


async def test_tokenize_and_back(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Größe 🙂")
    answer = (await http.post("/tokenize", json={"prompt": "Größe 🙂"})).json()
    assert answer == {"count": len(ids), "max_model_len": 256, "tokens": ids}
    assert (await http.post("/detokenize", json={"tokens": ids})).json() == {"prompt": "Größe 🙂"}


async def test_tokenize_a_conversation(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = (await http.post("/tokenize", json={"messages": messages})).json()
    assert answer["tokens"] == tokenizer.encode_chat(messages)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/detokenize", {"tokens": [512]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_the_tokenizer_refuses(http: httpx.AsyncClient, path: str, body: object, param: str) -> None:
    response = await http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_metrics(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(
        blocks={"device": TierBlocks(64, 3, 4, 57)}, copies={"copy_on_write": 5}, finished={"stop": 2}
    )
    await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
    await http.get("/v1/models/none")
    await http.get("/nothing/at/all")
    text = (await http.get("/metrics")).text
    for line in (
        'octavo_kv_blocks{state="used",tier="device"} 3.0',
        'octavo_kv_blocks{state="cached",tier="device"} 4.0',
        'octavo_kv_blocks{state="free",tier="device"} 57.0',
        'octavo_kv_copies_total{kind="copy_on_write"} 5.0',
        'octavo_sequences_finished_total{reason="stop"} 2.0',
        "octavo_ready 1.0",
        "octavo_engine_restarts_total 0.0",
        'octavo_http_requests_total{method="POST",route="/v1/completions",status="200"} 1.0',
        'octavo_http_requests_total{method="GET",route="/v1/models/{name:path}",status="404"} 1.0',
        'octavo_http_requests_total{method="GET",route="unknown",status="404"} 1.0',
        "octavo_time_to_first_token_seconds_count 1.0",
        "octavo_inter_token_latency_seconds_count 2.0",
        "octavo_request_seconds_count 1.0",
    ):
        assert line in text


async def test_exporting_never_raises(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "stats", None)
    monkeypatch.delattr(engine, "restarts")
    text = (await http.get("/metrics")).text
    assert "octavo_kv_blocks" not in text
    errors = next(line for line in text.splitlines() if line.startswith("octavo_exporter_errors_total"))
    assert float(errors.split()[1]) >= 0
    assert "octavo_exporter_errors_total 0.0" not in (await http.get("/metrics")).text


async def test_the_schema_describes_the_bodies(app: FastAPI, http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    assert "prompt" in schema["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"/v1/completions", "/v1/chat/completions", "/metrics"} <= schema["paths"].keys()
