"""One streamed completion over plain HTTP/1.1, each piece stamped when its packet arrives.

The client shares the machine with the server that it measures, so it does little per token: httptools cuts the
HTTP, `EventParser` the events, msgspec decodes the few fields that count. Every request has a connection of its own,
and opening it counts.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from loadgen.metrics import Trace
from loadgen.sse import EventParser

Message = dict[str, str]
Prompt = str | list[Message]

MAX_ERROR_CHARS = 200
HTTP_OK = 200
UNWELCOME_FIELD = (400, 422)


class RequestFailed(Exception):
    """A request got no proper answer; the text says why."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason[:MAX_ERROR_CHARS])
        self.status = status


Sampling = Mapping[str, float]
GREEDY: Sampling = {"temperature": 0}
Dialect = Callable[[int, Sampling], Mapping[str, Any]]


def ignore_eos(max_tokens: int, sampling: Sampling) -> Mapping[str, Any]:
    """Octavo, vLLM, SGLang, llama.cpp: exactly so many tokens."""
    return {**sampling, "max_tokens": max_tokens, "ignore_eos": True}


def generation_config(max_tokens: int, sampling: Sampling) -> Mapping[str, Any]:
    """transformers serve: the same, by an end token that does not exist."""
    # The request's own temperature replaces the configuration's; of the rest it takes little.
    temperature = sampling.get("temperature", 1)
    drawn = {"do_sample": True, **sampling} if temperature else {"do_sample": False}
    config = {"max_new_tokens": max_tokens, "eos_token_id": -1, **drawn}
    return {"temperature": temperature, "max_tokens": max_tokens, "generation_config": json.dumps(config)}


def plain(max_tokens: int, sampling: Sampling) -> Mapping[str, Any]:
    """Anyone: so many tokens at most."""
    return {**sampling, "max_tokens": max_tokens}


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how to ask it.

    Attributes:
        base_url: Ends in ``/v1``, as OpenAI's clients have it.
        timeout: Seconds after which a request is given up.
        dialect: How to ask for answers of a given length; `find_dialect` finds out.
        sampling: How tokens are drawn, in the words of the API; greedily by default.
    """

    base_url: str
    model: str
    api_key: str | None = None
    timeout: float = 600.0
    dialect: Dialect = plain
    sampling: Sampling = field(default_factory=lambda: GREEDY)

    @property
    def root(self) -> str:
        """Where the server keeps what is not OpenAI's, such as ``/tokenize``."""
        return self.base_url.removesuffix("/").removesuffix("/v1")


async def find_dialect(target: Target) -> Target:
    """The target with the first dialect that the server does not refuse.

    Raises:
        RequestFailed: It refuses even a plain request, or fails otherwise.
    """
    for dialect in (ignore_eos, generation_config):
        candidate = replace(target, dialect=dialect)
        try:
            await complete(candidate, "Once upon a time", 1)
        except RequestFailed as error:
            if error.status not in UNWELCOME_FIELD:
                raise
        else:
            return candidate
    await complete(replace(target, dialect=plain), "Once upon a time", 1)
    return replace(target, dialect=plain)


def body_of(target: Target, prompt: Prompt, max_tokens: int) -> tuple[str, bytes]:
    """Path and body of a streamed request: a text is completed, a list of messages is answered."""
    asked: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    body = {
        "model": target.model,
        **asked,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.dialect(max_tokens, target.sampling),
    }
    return "/completions" if isinstance(prompt, str) else "/chat/completions", msgspec.json.encode(body)


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


class StreamReader:
    """Reads the body of one streamed answer into a `Trace`."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.finished = False
        self._parser = EventParser()
        self._pieces: list[str] = []

    def feed(self, chunk: bytes, now: float) -> None:
        """Takes bytes that arrived at a time.

        Raises:
            RequestFailed: The server reports an error, or sends what is no event of a completion.
        """
        for payload in self._parser.feed(chunk):
            if payload == b"[DONE]":
                self.finished = True
            else:
                self._take(payload, now)

    def close(self) -> None:
        """The stream has ended.

        Raises:
            RequestFailed: It was cut short, or it said nothing.
        """
        trace = self.trace
        trace.text = "".join(self._pieces)
        if not self.finished:
            raise RequestFailed(f"the stream ended after {len(self._pieces)} pieces without a finish_reason")
        if not trace.text:
            raise RequestFailed("the answer is empty")
        if not trace.counted_by_server:
            trace.output_tokens = len(self._pieces)

    def _take(self, payload: bytes, now: float) -> None:
        try:
            event = _decode_event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestFailed(f"not an event of a completion ({error}): {payload[:80]!r}") from error
        if event.error is not None:
            raise RequestFailed(f"in the stream: {_message_of(event.error)}")
        trace = self.trace
        for choice in event.choices:
            text = choice.text or (choice.delta.content if choice.delta else None)
            if text:
                trace.arrivals.append(now)
                self._pieces.append(text)
            # Tokens without text (special ones) count as well: the last of them comes with the reason.
            trace.ended = now
            self.finished = self.finished or choice.finish_reason is not None
        if event.usage is not None:
            usage = event.usage
            trace.counted_by_server = True
            trace.prompt_tokens, trace.output_tokens = usage.prompt_tokens, usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                trace.cached_tokens = usage.prompt_tokens_details.cached_tokens


def _message_of(error: Any) -> str:
    """What an error says: OpenAI's object, or whatever else a server sends."""
    while isinstance(error, dict):
        inner = next((error[key] for key in ("error", "message", "detail") if error.get(key)), None)
        error = json.dumps(error) if inner is None else inner
    return str(error)


class _Exchange(asyncio.Protocol):
    """One request and its answer on one connection.

    Args:
        request: Its bytes.
        on_body: Told about the bytes of a 200's body as they arrive; None collects them.
    """

    def __init__(self, request: bytes, on_body: Callable[[bytes, float], None] | None = None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.body = bytearray()
        self.status = 0
        self._request = request
        self._on_body = on_body
        self._http = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._failure: RequestFailed | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's by inheritance.
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._http.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(RequestFailed(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        # An answer without a length ends here; a stream tells by itself whether it is whole.
        self._finish(RequestFailed(f"the connection was lost: {exc}") if exc or not self.status else None)

    def on_headers_complete(self) -> None:
        self.status = self._http.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._on_body is None or self.status != HTTP_OK:
            self.body += body
        elif self._failure is None:
            try:
                self._on_body(body, self._now)
            except RequestFailed as error:
                self._failure = error
                self._finish(error)

    def on_message_complete(self) -> None:
        self._finish(None)

    def _finish(self, failure: RequestFailed | None) -> None:
        if self.done.done():
            return
        if failure is not None:
            self.done.set_exception(failure)
        elif self.status != HTTP_OK:
            self.done.set_exception(RequestFailed(f"HTTP {self.status}: {self._refusal()}", self.status))
        else:
            self.done.set_result(None)

    def _refusal(self) -> str:
        try:
            return _message_of(msgspec.json.decode(self.body))
        except msgspec.DecodeError:
            return self.body.decode(errors="replace")


async def _exchange(
    target: Target, method: str, url: str, body: bytes = b"", on_body: Callable[[bytes, float], None] | None = None
) -> bytes:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80)
    headers = [
        f"{method} {parts.path or '/'} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"Authorization: Bearer {target.api_key}"] if target.api_key else []),
    ]
    request = "\r\n".join(headers).encode() + b"\r\n\r\n" + body
    loop = asyncio.get_running_loop()
    transport = None
    try:
        async with asyncio.timeout(target.timeout):
            transport, exchange = await loop.create_connection(
                lambda: _Exchange(request, on_body), host, port, ssl=ssl.create_default_context() if secure else None
            )
            await exchange.done
    except TimeoutError as error:
        raise RequestFailed(f"no answer within {target.timeout:g} s") from error
    except OSError as error:
        raise RequestFailed(f"no connection: {error.strerror or error}") from error
    finally:
        if transport is not None:
            transport.abort()
    return bytes(exchange.body)


async def complete(target: Target, prompt: Prompt, max_tokens: int, trace: Trace | None = None) -> Trace:
    """Sends one request and reads its stream to the end.

    Args:
        trace: Is filled as the answer arrives, so that a failed request's shows how far it came; by default a new one.

    Raises:
        RequestFailed: No whole answer came.
    """
    path, body = body_of(target, prompt, max_tokens)
    now = time.perf_counter()
    trace = trace or Trace(planned=now)
    trace.sent = now
    reader = StreamReader(trace)
    await _exchange(target, "POST", target.base_url.removesuffix("/") + path, body, reader.feed)
    reader.close()
    return trace


async def fetch_counters(target: Target, names: Mapping[str, str]) -> dict[str, float]:
    """The server's counters, each summed over its labels.

    Args:
        names: What to call it → its name at ``/metrics``.

    Raises:
        RequestFailed: There are no such pages.
    """
    if not names:
        return {}
    lines = (await _exchange(target, "GET", target.root + "/metrics")).decode().splitlines()
    samples = [(re.split(r"[{ ]", line, maxsplit=1)[0], line.rpartition(" ")[2]) for line in lines]
    return {name: sum(float(value) for found, value in samples if found == wanted) for name, wanted in names.items()}


async def fetch(target: Target, path: str, body: Any = None) -> Any:
    """JSON from the server's root: GET, or POST if there is a body.

    Raises:
        RequestFailed: It answered anything but 200 and JSON.
    """
    method = "GET" if body is None else "POST"
    raw = await _exchange(target, method, target.root + path, b"" if body is None else msgspec.json.encode(body))
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise RequestFailed(f"{path} did not answer in JSON") from error
