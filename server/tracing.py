"""OpenTelemetry: a span for each request for a generation, sent to a collector in the background.

Names are those of OpenTelemetry's semantic conventions for generative AI; Octavo's own begin with ``octavo.``. A span
is made when its request has ended, with the times of then, so that a request itself does nothing for it. What goes
wrong here costs spans and nothing else: everything on the way to the collector is bounded, and dropped when it is full.

OpenTelemetry's SDK and exporter are imported when tracing is turned on, and not before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from starlette.types import Scope

from octavo.engine.views import Story
from octavo.errors import SetupError
from octavo.server.limits import (
    LAST_SPANS_SECONDS,
    MAX_PENDING_SPANS,
    MAX_TOLD_STORIES,
    STORY_SECONDS,
)
from octavo.server.request_log import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from octavo.engine.client import EngineClient
    from octavo.server.generation import Generation
    from octavo.server.middleware import Observer
    from octavo.server.span_queue import SpanQueue

logger = logging.getLogger(__name__)

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
# Of `SamplingParams`, what the conventions have a name for. Stop sequences are a client's words.
_ASKED: Final = ("temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty", "frequency_penalty")
_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
_DEFAULT_PATH: Final = "/v1/traces"

Attribute = str | bool | int | float | list[str]


def open_tracing(endpoint: str) -> Tracing:
    """Tracing that sends to a collector.

    Args:
        endpoint: Its URL; without a path, spans go to ``/v1/traces``.

    Raises:
        SetupError: OpenTelemetry's packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from octavo.server.span_queue import SpanQueue
    except ImportError as error:
        raise SetupError(
            f"--otlp-endpoint needs OpenTelemetry's packages ({error}): install them with `pip install octavo[otel]`"
        ) from error
    url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _DEFAULT_PATH
    return Tracing(SpanQueue(OTLPSpanExporter(endpoint=url)))


class Tracing:
    """Makes spans of requests that have ended.

    Args:
        queue: Where the spans go.
    """

    def __init__(self, queue: SpanQueue) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        release = version("octavo")
        # What the operator has put into OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES comes first.
        ours = Resource({"service.name": "octavo", "service.version": release})
        self._resource = ours.merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("octavo", release)
        self._ids = RandomIdGenerator()
        self._queue = queue
        self._pending: set[asyncio.Task[None]] = set()
        self._dropping = False

    def observer(self, client: EngineClient, model_name: str) -> Observer:
        """What is to be told of requests that have ended.

        Args:
            client: Knows the requests' stories. model_name: the name that clients use.
        """

        def observe(record: RequestRecord, scope: Scope) -> None:
            # Whoever has no key may not fill the queue.
            if record.method == "POST" and record.route in _OPERATIONS and record.identity is not None:
                self._begin(client, model_name, record, scope)

        return observe

    async def close(self) -> None:
        """Sends what there is; waits for at most `LAST_SPANS_SECONDS` for stories, and as long for the collector."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=LAST_SPANS_SECONDS)
        await asyncio.to_thread(self._queue.close)

    def _begin(self, client: EngineClient, model_name: str, record: RequestRecord, scope: Scope) -> None:
        dropping = len(self._pending) >= MAX_PENDING_SPANS
        if dropping and not self._dropping:
            logger.warning("requests end faster than their stories are told; some get no span")
        self._dropping = dropping
        if not dropping:
            task = asyncio.create_task(self._trace(client, model_name, record, scope))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _trace(self, client: EngineClient, model_name: str, record: RequestRecord, scope: Scope) -> None:
        try:
            await self._make_span(client, model_name, record, scope)
        except Exception:
            logger.exception("a span could not be made")

    async def _make_span(self, client: EngineClient, model_name: str, record: RequestRecord, scope: Scope) -> None:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        parent = _parent(scope)
        if parent is not None and not parent.trace_flags.sampled:  # whoever began the trace does not want it
            return
        end = _unix(record, record.ended)
        events = [
            Event(name, {"octavo.prompt": number, **data}, min(_unix(record, at), end))
            for number, generation in enumerate(record.batch.generations[:MAX_TOLD_STORIES] if record.batch else ())
            for name, at, data in await _events(client, generation)
        ]
        # As HTTP's conventions have it: 4xx is no failure of the server's.
        failed = record.error is not None and (record.status >= 500 or record.status == 200)
        span = ReadableSpan(
            f"{_OPERATIONS[record.route]} {model_name}",
            context=SpanContext(
                trace_id=self._ids.generate_trace_id() if parent is None else parent.trace_id,
                span_id=self._ids.generate_span_id(),
                is_remote=False,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
                trace_state=None if parent is None else parent.trace_state,
            ),
            parent=parent,
            resource=self._resource,
            attributes=dict(attributes_of(record, scope, model_name)),
            events=events,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, record.error) if failed else Status(),
            start_time=record.began_at,
            end_time=end,
            instrumentation_scope=self._scope,
        )
        self._queue.put(span)


def attributes_of(record: RequestRecord, scope: Scope, model_name: str) -> Iterator[tuple[str, Attribute]]:
    """A span's attributes, as far as they are known. Nothing of what was asked or answered."""
    known: dict[str, Attribute | None] = {
        "gen_ai.operation.name": _OPERATIONS[record.route],
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": model_name,
        "gen_ai.response.id": record.answer_id,
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "octavo.request_id": record.request_id,
        "octavo.tenant": record.tenant,
        "octavo.disconnected": record.disconnected or None,
        **dict(zip(("server.address", "server.port"), scope.get("server") or (), strict=False)),
    }
    if record.batch is not None:
        known |= _of_generation(record, model_name)
    return ((name, value) for name, value in known.items() if value is not None)


def _of_generation(record: RequestRecord, model_name: str) -> dict[str, Attribute | None]:
    assert record.batch is not None, "nothing is generated"
    usage, sampling = record.batch.usage(), record.batch.generations[0].request.sampling
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        **{f"gen_ai.request.{name}": getattr(sampling, name) for name in _ASKED},
        "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
        "gen_ai.request.stream": record.streamed,
        "gen_ai.response.model": model_name,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": record.seconds_to_first_token if record.streamed else None,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": cached,
        "octavo.cached_tokens": cached,
        "octavo.queue_seconds": record.queue_seconds,
        "octavo.prefill_seconds": record.prefill_seconds,
        "octavo.first_token_seconds": record.seconds_to_first_token,
        "octavo.preemptions": record.preemptions,
    }


async def _events(client: EngineClient, generation: Generation) -> list[tuple[str, float, dict[str, Attribute]]]:
    """What happened to a prompt and its sequences: name, time on the monotonic clock, and attributes; in order."""
    course, story = generation.course, None
    try:
        async with asyncio.timeout(STORY_SECONDS):
            story = await client.story(generation.request.request_id)
    except Exception as error:  # the engine is gone or busy, or has forgotten the request
        logger.debug("a span is without its story: %s", error)
    told = [*_told(story, course.began)] if story is not None else []
    if course.first_token is not None:
        told.append(("first_token", course.first_token, {}))
    return sorted(told, key=lambda event: event[1])


def _told(story: Story, began: float) -> Iterator[tuple[str, float, dict[str, Attribute]]]:
    for event in story.events:
        data = {f"octavo.{name}": value for name, value in _flat(event.data)}
        yield event.kind, began + event.at, {"octavo.sequence": event.index, **data}


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[str, Attribute]]:
    """An event's data as attributes have it: without None, and without tables in it."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in _flat(value))
        elif value is not None:
            yield name, value if isinstance(value, bool | int | float) else str(value)


def _parent(scope: Scope) -> SpanContext | None:
    """The span that the client had the request made in, if it says so in one well-formed `traceparent`."""
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    given = [(key, value.decode("latin-1")) for key, value in scope["headers"]]
    parents, states = ([value for key, value in given if key == name] for name in _TRACE_HEADERS)
    if len(parents) != 1:
        return None
    carrier = {"traceparent": parents, "tracestate": [",".join(states)] if states else []}
    parent = get_current_span(TraceContextTextMapPropagator().extract(carrier, Context())).get_span_context()
    return parent if parent.is_valid else None


def _unix(record: RequestRecord, at: float) -> int:
    """A time on the monotonic clock in Unix nanoseconds."""
    return record.began_at + round((at - record.began) * 1e9)
