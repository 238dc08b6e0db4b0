"""Spans: their names and attributes, whose children they are, what happened in them, and what cannot break."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import msgspec
import pytest
from api_keys import ADA, bearer, some_keys
from fake_engine import FakeEngine
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from octavo.config import ServerConfig
from octavo.engine.messages import SequenceDelta
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.views import Story, StoryEvent
from octavo.errors import EngineDeadError, EngineUnavailableError, QueueFullError, SetupError
from octavo.server import span_queue
from octavo.server import tracing as module
from octavo.server.app import build_app
from octavo.server.keys import Keys
from octavo.server.limits import MAX_PENDING_SPANS, MAX_SPANS_AT_ONCE, MAX_TOLD_STORIES
from octavo.server.request_log import RequestRecord
from octavo.server.span_queue import SpanQueue
from octavo.server.tracing import Tracing, open_tracing

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EVENTS = [
    StoryEvent(0.0, "queued", 0, {"prompt_tokens": 3, "ahead": 2}),
    StoryEvent(0.0, "admitted", 0, {"hits": {"device": 16, "host": 0}, "evicted_ago": None, "miss": "new"}),
    StoryEvent(0.0, "preempted", 0, {"method": "swap", "blocks": 3}),
    StoryEvent(1e6, "finished", 0, {"reason": "length"}),
]


class Traced:
    """A server whose spans stay here."""

    def __init__(self, engine: FakeEngine, tokenizer: Tokenizer, keys: Keys | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(SpanQueue(self.exporter))
        observers = [self.tracing.observer(engine, "tiny")]
        app = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", keys=keys, observers=observers)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def post(self, path: str = "/v1/chat/completions", body: Any = CHAT, **more: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **more)

    async def spans(self) -> Sequence[ReadableSpan]:
        """Those of all requests so far; there will be no more."""
        await self.http.aclose()
        await self.tracing.close()
        return self.exporter.get_finished_spans()

    async def only(self) -> ReadableSpan:
        (span,) = await self.spans()
        return span


@pytest.fixture
async def traced(engine: FakeEngine, tokenizer: Tokenizer) -> AsyncIterator[Traced]:
    traced = Traced(engine, tokenizer)
    yield traced
    await traced.http.aclose()


async def test_a_span_says_what_was_asked_and_what_came_of_it(traced: Traced, engine: FakeEngine) -> None:
    engine.cached_tokens = 1
    answer = (await traced.post(headers={"x-request-id": "mine"})).json()
    span = await traced.only()
    assert (span.name, span.kind, span.parent) == ("chat tiny", SpanKind.SERVER, None)
    told = dict(span.attributes or {})
    assert {name: told[name] for name in told if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.stream": False,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 1,
    }
    assert told["octavo.request_id"] == "mine"
    assert told["octavo.cached_tokens"] == 1
    assert {"octavo.queue_seconds", "octavo.prefill_seconds", "octavo.preemptions", "server.address"} <= set(told)
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.end_time
    assert span.resource.attributes["service.name"] == "octavo"


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 2}, "text_completion tiny"),
        ("/v1/messages", {"messages": CHAT["messages"], "max_tokens": 4}, "chat tiny"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 4}, "chat tiny"),
    ],
)
async def test_every_api_has_its_span(traced: Traced, path: str, body: Any, name: str) -> None:
    await traced.post(path, {**body, "stream": True})
    span = await traced.only()
    assert span.name == name
    assert span.attributes is not None
    assert span.attributes["gen_ai.request.stream"] is True
    assert "gen_ai.response.time_to_first_chunk" in span.attributes
    assert span.attributes.get("gen_ai.request.choice.count") == body.get("n")


async def test_other_requests_have_none(traced: Traced) -> None:
    await traced.http.get("/health")
    await traced.http.get("/v1/chat/completions")
    await traced.post("/tokenize", {"prompt": "x"})
    await traced.post("/v1/embeddings", {"input": "x"})
    assert not await traced.spans()


async def test_nor_have_those_without_a_key(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    traced = Traced(engine, tokenizer, some_keys())
    assert (await traced.post()).status_code == 401
    await traced.post(headers=bearer(ADA))
    span = await traced.only()
    assert span.attributes is not None
    assert span.attributes["octavo.tenant"] == "ada"


async def test_a_clients_trace_goes_on(traced: Traced) -> None:
    await traced.post(headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"})
    span = await traced.only()
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.context.trace_id == span.parent.trace_id
    assert span.context.trace_state.get("a") == "1"


async def test_a_client_that_wants_no_trace_gets_none(traced: Traced) -> None:
    await traced.post(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not await traced.spans()


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "nonsense")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("traceparent", f"00-{TRACE}-{PARENT}-01")],
        [("tracestate", "a=1")],
        [("traceparent", "ü".encode("latin-1"))],
    ],
)
async def test_a_malformed_parent_begins_a_new_trace(traced: Traced, headers: Any) -> None:
    assert (await traced.post(headers=headers)).status_code == 200
    assert (await traced.only()).parent is None


async def test_what_happened_is_told_as_events(traced: Traced, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    class Known(dict[str, Story]):
        def get(self, key: str, default: Any = None) -> Story:
            return Story(0, known=True, events=EVENTS)

    engine.stories = Known()
    await traced.post()
    span = await traced.only()
    assert [event.name for event in span.events] == ["queued", "admitted", "preempted", "first_token", "finished"]
    assert dict(span.events[1].attributes or {}) == {
        "octavo.prompt": 0,
        "octavo.sequence": 0,
        "octavo.hits.device": 16,
        "octavo.hits.host": 0,
        "octavo.miss": "new",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert all(span.start_time <= event.timestamp <= span.end_time for event in span.events)


async def test_of_many_prompts_the_first_stories_are_told(traced: Traced, engine: FakeEngine) -> None:
    asked = []

    async def story(request_id: str) -> Story | None:
        asked.append(request_id)
        return None

    engine.story = story  # type: ignore[method-assign]
    await traced.post("/v1/completions", {"prompt": ["a"] * (MAX_TOLD_STORIES + 1), "max_tokens": 1})
    span = await traced.only()
    assert len(asked) == MAX_TOLD_STORIES
    assert len(span.events) == MAX_TOLD_STORIES


async def test_a_story_that_cannot_be_had_costs_only_itself(traced: Traced, engine: FakeEngine) -> None:
    async def story(request_id: str) -> Story | None:
        raise EngineUnavailableError("restarting")

    engine.story = story  # type: ignore[method-assign]
    await traced.post()
    assert [event.name for event in (await traced.only()).events] == ["first_token"]


async def test_a_story_that_does_not_come_costs_only_itself(
    traced: Traced, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORY_SECONDS", 0.0)

    async def story(request_id: str) -> Story | None:
        await asyncio.Event().wait()
        return None

    engine.story = story  # type: ignore[method-assign]
    await traced.post()
    assert [event.name for event in (await traced.only()).events] == ["first_token"]


@pytest.mark.parametrize(
    ("failure", "stream", "status", "code"),
    [
        (EngineDeadError("gone"), False, StatusCode.ERROR, "engine_died"),
        (EngineDeadError("gone"), True, StatusCode.ERROR, "engine_died"),
        (QueueFullError("full"), False, StatusCode.UNSET, "queue_full"),
    ],
)
async def test_failures_are_told(
    traced: Traced, engine: FakeEngine, failure: Exception, stream: bool, status: StatusCode, code: str
) -> None:
    engine.failure, engine.fail_after = failure, 1
    await traced.post(body={**CHAT, "stream": stream})
    span = await traced.only()
    assert span.attributes is not None
    assert (span.status.status_code, span.attributes["error.type"]) == (status, code)
    assert span.status.description == (code if status is StatusCode.ERROR else None)


async def test_a_request_that_was_refused_at_once_has_a_span(traced: Traced) -> None:
    await traced.post(body={**CHAT, "max_tokens": -1})
    span = await traced.only()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 400
    assert "gen_ai.usage.input_tokens" not in span.attributes


async def test_nothing_of_what_is_said_gets_into_a_span(
    traced: Traced, engine: FakeEngine, say: Callable[[str], None]
) -> None:
    say("SPOKEN canary")
    body = {
        "messages": [{"role": "user", "content": "WRITTEN"}],
        "stop": "WRITTEN",
        "user": "WRITTEN",
        "max_tokens": 50,
    }
    await traced.post(body=body)
    told = (await traced.only()).to_json()
    assert "WRITTEN" not in told
    assert "SPOKEN" not in told


async def test_requests_that_end_too_fast_get_no_span(
    engine: FakeEngine, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    traced = Traced(engine, tokenizer)
    observe = traced.tracing.observer(engine, "tiny")
    record = RequestRecord("id", method="POST", route="/v1/completions", status=200)
    record.identity = some_keys().identify(ADA.encode())
    for _ in range(MAX_PENDING_SPANS + 2):  # no task gets to run in between
        observe(record, {"headers": []})
    assert len(await traced.spans()) == MAX_PENDING_SPANS
    assert caplog.text.count("some get no span") == 1


class Collector:
    """A collector on this machine: it notes what it gets, or hangs."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.release = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                if hangs:
                    collector.release.wait(10)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


async def trace_one(tracing: Tracing, engine: FakeEngine, tokenizer: Tokenizer) -> httpx.Response:
    observers = [tracing.observer(engine, "tiny")]
    app = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", observers=observers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        return await http.post("/v1/chat/completions", json=CHAT)


@pytest.mark.parametrize(("path", "arrives_at"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/mine", "/mine")])
async def test_spans_reach_a_collector(engine: FakeEngine, tokenizer: Tokenizer, path: str, arrives_at: str) -> None:
    collector = Collector()
    tracing = open_tracing(collector.url + path)
    await trace_one(tracing, engine, tokenizer)
    await tracing.close()
    collector.close()
    ((where, body),) = collector.got
    assert where == arrives_at
    assert b"chat tiny" in body


@pytest.mark.parametrize("kind", ["nobody listens", "it hangs"])
async def test_a_collector_that_is_no_good_breaks_nothing(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(span_queue, "LAST_SPANS_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    collector = Collector(hangs=True)
    if kind == "nobody listens":
        collector.close()
    tracing = open_tracing(collector.url)
    assert (await trace_one(tracing, engine, tokenizer)).status_code == 200
    await tracing.close()
    if kind == "it hangs":
        assert "did not take the last spans" in caplog.text
        collector.close()
    for thread in [running for running in threading.enumerate() if running.name == "spans"]:
        await asyncio.to_thread(thread.join, 10)
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


async def test_an_exporter_that_raises_breaks_nothing(
    engine: FakeEngine, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise ZeroDivisionError

    tracing = Tracing(SpanQueue(Broken()))
    assert (await trace_one(tracing, engine, tokenizer)).status_code == 200
    await tracing.close()
    assert "spans could not be sent" in caplog.text


class Held(SpanExporter):
    """Takes nothing before it is told to."""

    def __init__(self) -> None:
        self.busy, self.release = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.busy.set()
        self.release.wait(10)
        self.batches.append(len(spans))
        return SpanExportResult.SUCCESS


def test_a_queue_that_is_full_drops_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    exporter, span = Held(), ReadableSpan("a")
    queue = SpanQueue(exporter, most=3, seconds=0.0)
    queue.put(span)
    assert exporter.busy.wait(10)
    for _ in range(5):  # three of which may wait
        queue.put(span)
    exporter.release.set()
    queue.close()
    queue.put(span)
    assert exporter.batches == [1, 3]
    (told,) = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert told.__dict__["dropped"] == 2


def test_a_large_batch_is_sent_at_once_and_in_parts() -> None:
    exporter = Held()
    exporter.release.set()
    queue = SpanQueue(exporter, seconds=1000.0)
    for _ in range(MAX_SPANS_AT_ONCE - 1):
        queue.put(ReadableSpan("a"))
    assert not exporter.busy.is_set()
    for _ in range(2):
        queue.put(ReadableSpan("a"))
    assert exporter.busy.wait(10)
    queue.close()
    assert sum(exporter.batches) == MAX_SPANS_AT_ONCE + 1
    assert max(exporter.batches) == MAX_SPANS_AT_ONCE


def test_nothing_is_registered_for_forks() -> None:
    # uvloop runs that in the child that is to become the engine's process; what starts threads there can hang it.
    code = """
import os
from opentelemetry.exporter.otlp.proto.http import trace_exporter  # what imports register is Python's own business
registered = []
os.register_at_fork = lambda **calls: registered.append(calls)
from octavo.server.tracing import open_tracing
open_tracing("http://127.0.0.1:9")
print(registered, flush=True)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SetupError, match=r"--otlp-endpoint needs .* `pip install octavo\[otel\]`"):
        open_tracing("http://127.0.0.1:4318")


def test_the_server_loads_nothing_of_it_when_it_is_off() -> None:
    # Its API alone may be there: FastAPI looks for it.
    names = "('opentelemetry.sdk', 'opentelemetry.exporter')"
    code = f"import octavo.server.commands.serve, sys; print([m for m in sys.modules if m.startswith({names})])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


async def test_a_sequences_times_come_from_the_engine(traced: Traced, engine: FakeEngine) -> None:
    generate = engine.generate

    async def slower(request: Any) -> AsyncIterator[SequenceDelta]:
        async for delta in generate(request):
            yield msgspec.structs.replace(delta, queue_seconds=1.5, prefill_seconds=0.25, preemptions=2)

    engine.generate = slower  # type: ignore[method-assign, assignment]
    await traced.post()
    told = (await traced.only()).attributes
    assert told is not None
    names = ("octavo.queue_seconds", "octavo.prefill_seconds", "octavo.preemptions")
    assert tuple(told[name] for name in names) == (1.5, 0.25, 2)
