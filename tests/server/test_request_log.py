"""One line for each request: what it says, what it never says, and how many there can be."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from api_keys import ADA, ADMIN, bearer, some_keys
from fake_engine import FakeEngine
from fastapi import FastAPI

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import NeverFitsError, QueueFullError
from octavo.logs import HumanFormatter, JsonFormatter, fields_of
from octavo.server.app import build_app
from octavo.server.limits import MAX_IDLE_REQUEST_LINES
from octavo.server.request_log import RequestLog, RequestRecord

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 4},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "x", "max_output_tokens": 4},
    "/v1/messages": CHAT,
}


class Lines:
    """The request lines so far, as fields."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="octavo")
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "octavo.request"]

    @property
    def all(self) -> list[dict[str, Any]]:
        return [fields_of(record) for record in self.records]

    @property
    def only(self) -> dict[str, Any]:
        (line,) = self.all
        return line


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    return Lines(caplog)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_generation_is_told_from_queue_to_end(
    http: httpx.AsyncClient, engine: FakeEngine, lines: Lines, path: str, stream: bool
) -> None:
    engine.cached_tokens = 1
    answer = await http.post(path, json={**BODIES[path], "stream": stream}, headers={"x-request-id": "mine"})
    told = lines.only
    assert lines.records[0].getMessage() == f"POST {path} 200"
    assert (told["request_id"], told["tenant"], told["route"], told["status"]) == ("mine", "default", path, 200)
    assert told["answer_id"] in answer.text
    assert (told["streamed"], told["n"], told["preemptions"]) == (stream, 1, 0)
    assert (told["cached_tokens"], told["output_tokens"], told["finish_reasons"]) == (1, 4, ["length"])
    assert told["prompt_tokens"] > 0
    assert 0 <= told["first_token_seconds"] <= told["total_seconds"]
    assert {"queue_seconds", "prefill_seconds"} <= set(told)
    assert not {"error", "disconnected"} & set(told)


async def test_several_prompts_and_sequences_are_one_line(
    http: httpx.AsyncClient, engine: FakeEngine, lines: Lines
) -> None:
    await http.post("/v1/completions", json={"prompt": ["abc", "de"], "n": 2, "max_tokens": 3})
    told = lines.only
    assert (told["n"], told["output_tokens"], told["finish_reasons"]) == (2, 12, ["length"] * 4)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_a_tool_is_a_reason_to_finish(
    http: httpx.AsyncClient, engine: FakeEngine, say: Callable[[str], None], lines: Lines, stream: bool
) -> None:
    engine.info = msgspec.structs.replace(engine.info, max_model_len=4096)
    say('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 100, "tools": tools, "stream": stream})
    assert lines.only["finish_reasons"] == ["tool_calls"]


async def test_prompts_alone_are_told(http: httpx.AsyncClient, lines: Lines) -> None:
    await http.post("/v1/embeddings", json={"input": [[3, 4], [5]]})
    await http.post("/v1/cache/pins", json={"prompt": list(range(3, 20)), "ttl": 5})
    assert [line["prompt_tokens"] for line in lines.all] == [3, 17]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/ui", "/ui/live"])
async def test_probes_leave_no_line(http: httpx.AsyncClient, lines: Lines, path: str) -> None:
    await http.get(path)
    assert lines.all == []


@pytest.mark.parametrize("path", ["/uix", "/healthy", "/v1/models"])
async def test_what_only_looks_like_a_probe_is_told(http: httpx.AsyncClient, lines: Lines, path: str) -> None:
    await http.get(path)
    assert len(lines.all) == 1


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (QueueFullError("full"), 429, "queue_full"),
        (NeverFitsError("too long", largest=1), 400, "context_length_exceeded"),
        (ZeroDivisionError(), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_its_code(
    http: httpx.AsyncClient, engine: FakeEngine, lines: Lines, failure: Exception, status: int, code: str, stream: bool
) -> None:
    engine.refusal = failure
    await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert (lines.only["status"], lines.only["error"]) == (status, code)
    assert "first_token_seconds" not in lines.only


async def test_a_malformed_request_and_an_unknown_route_are_told(http: httpx.AsyncClient, lines: Lines) -> None:
    await http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    await http.get("/nowhere%0a2026 ERROR forged")
    assert [(line["status"], line["error"]) for line in lines.all] == [
        (400, "invalid_request_error"),
        (404, "not_found"),
    ]
    assert "forged" not in str(lines.all)


async def test_a_stream_that_fails_in_the_middle_has_status_and_error(
    http: httpx.AsyncClient, engine: FakeEngine, lines: Lines
) -> None:
    engine.error = "a kernel broke"
    await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert (lines.only["status"], lines.only["error"], lines.only["output_tokens"]) == (200, "request_failed", 2)


@pytest.mark.parametrize(("stream", "status"), [(True, 200), (False, 499)])
async def test_a_client_that_leaves_is_told(
    url: str, engine: FakeEngine, lines: Lines, wait_until: Callable[..., float], stream: bool, status: int
) -> None:
    engine.delay = 0.05
    body = {**CHAT, "max_tokens": 100, "stream": stream}
    async with httpx.AsyncClient(base_url=url) as http:
        if stream:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                await anext(answer.aiter_lines())
        else:
            sent = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(wait_until, lambda: bool(engine.open))
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
    await asyncio.to_thread(wait_until, lambda: bool(lines.all))
    assert (lines.only["status"], lines.only["disconnected"]) == (status, True)


async def test_an_unknown_key_belongs_to_nobody(engine: FakeEngine, tokenizer: Tokenizer, lines: Lines) -> None:
    app = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", keys=some_keys())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        await http.post("/v1/chat/completions", json=CHAT, headers=bearer("sk-nobody-knows-this-key"))
        await http.post("/v1/chat/completions", json=CHAT, headers=bearer(ADA))
    refused, served = lines.all
    assert (refused["status"], refused["error"], refused.get("tenant")) == (401, "invalid_api_key", None)
    assert (served["status"], served["tenant"]) == (200, "ada")


async def test_without_the_option_there_are_no_lines(engine: FakeEngine, tokenizer: Tokenizer, lines: Lines) -> None:
    app = build_app(engine, tokenizer, ServerConfig(log_requests=False), model_name="tiny")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert lines.all == []


@pytest.mark.parametrize("broken", [False, True])
async def test_prompts_answers_and_keys_are_never_logged(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    broken: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    say("SPOKEN canary")
    if broken:
        engine.failure = ZeroDivisionError("division by zero")
    app = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", keys=some_keys())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for path, body in BODIES.items():
            asked = json.loads(json.dumps(body).replace('"x"', '"WRITTEN canary"').replace('"abc"', '"WRITTEN canary"'))
            for stream in (False, True):
                limits = {name: 100 for name in asked if name.startswith("max")}
                sent = {**asked, **limits, "stream": stream, "user": "WRITTEN canary"}
                await http.post(path, json=sent, headers={**bearer(ADMIN), "x-request-id": "WRITTEN canary"})
        await http.post(
            "/v1/completions", json={"prompt": "WRITTEN canary", "n": "WRITTEN canary"}, headers=bearer(ADA)
        )
    ours = [record for record in caplog.records if record.name.startswith("octavo")]
    told = "\n".join(form("server").format(record) for form in (HumanFormatter, JsonFormatter) for record in ours)
    assert told.count("/v1/messages") >= 4
    for secret in ("WRITTEN", "SPOKEN", ADMIN, ADA):
        assert secret not in told


class Clock:
    """Time as a test wants it, and what is to be called later."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append((seconds, call))

    def log(self) -> RequestLog:
        return RequestLog(later=self.later, clock=lambda: self.now)


def ended(log: RequestLog, count: int, **known: Any) -> None:
    for _ in range(count):
        log(RequestRecord("id", **known), {"path": "/"})


def test_a_flood_of_refusals_is_cut_short_and_counted(lines: Lines) -> None:
    clock = Clock()
    log = clock.log()
    ended(log, MAX_IDLE_REQUEST_LINES, status=401)
    assert len(lines.all) == MAX_IDLE_REQUEST_LINES
    assert clock.calls == []
    ended(log, 7, status=401)
    assert len(lines.all) == MAX_IDLE_REQUEST_LINES
    ((seconds, tell),) = clock.calls
    assert seconds == 1
    tell()
    assert lines.all[-1] == {"left_out": 7}
    clock.now = 1.0
    ended(log, 1, status=401)
    assert lines.all[-1]["status"] == 401


def test_work_is_told_in_the_middle_of_a_flood(lines: Lines) -> None:
    log = Clock().log()
    ended(log, 2 * MAX_IDLE_REQUEST_LINES, status=401)
    ended(log, 3, status=200, prompt_tokens=5)
    assert [line["status"] for line in lines.all[-3:]] == [200] * 3


async def test_the_line_about_left_out_ones_comes_by_itself(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(0, later=lambda _, call: asyncio.get_running_loop().call_soon(call))
    ended(log, 2, status=401)
    assert lines.all == []
    await asyncio.sleep(0)
    assert lines.only == {"left_out": 2}


async def test_an_observer_that_fails_spoils_nothing(
    engine: FakeEngine, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(record: RequestRecord, scope: Any) -> None:
        raise ZeroDivisionError

    app: FastAPI = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", observers=[broken])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert "could not be told" in caplog.text
