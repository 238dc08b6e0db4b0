"""Pure ASGI middleware. Starlette's `BaseHTTPMiddleware` would hide disconnects from the routes.

From the outside in: `RequestContext` names, counts and tells of requests, `octavo.server.hosts` and CORS deal with
browsers, `ErrorBoundary` answers whatever is raised below it, `octavo.server.auth` lets in who may come in,
`BodyReader` reads the body within its bounds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.errors import error_response, is_internal
from octavo.server.limits import BODY_SECONDS
from octavo.server.metrics import Metrics
from octavo.server.request_log import RequestRecord, is_untold

Observer = Callable[[RequestRecord, Scope], None]

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_LEFT: Final = 499  # nginx's number for it; never sent, only counted


class RequestContext:
    """Gives every response an ``x-request-id``, the client's own if it is well-formed, and counts it.

    Anthropic's clients read it as ``request-id``.

    Args:
        app: What comes next; there `octavo.server.request_log.record_of` answers.
        metrics: Where responses are counted.
        observers: Told of every request that has ended, except for those that `is_untold`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, observers: Sequence[Observer] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        record = RequestRecord(request_id, time.monotonic(), time.time_ns())
        scope.setdefault("state", {}).update(request_id=request_id, record=record)
        status = _CLIENT_LEFT

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            self._metrics.http_requests.labels(_route(scope), _method(scope), str(status)).inc()
            record.ended, record.identity = time.monotonic(), scope["state"].get("identity")
            record.method, record.route, record.status = _method(scope), _route(scope), status
            self._tell(record, scope)

    def _tell(self, record: RequestRecord, scope: Scope) -> None:
        for observe in () if is_untold(scope) else self._observers:
            try:
                observe(record, scope)
            except Exception:
                logger.exception("what became of a request could not be told")


def request_id_of(connection: HTTPConnection) -> str:
    """A request's ``x-request-id``: its client's, or the one that it got."""
    request_id: str = connection.state.request_id
    return request_id


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    # The template, not the path: labels must not grow with what clients send.
    return getattr(scope.get("route"), "path", "unknown")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE") else "other"


class ErrorBoundary:
    """Turns every exception into its error response; those that nobody raised on purpose are logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except ClientDisconnect:
            if (record := scope.get("state", {}).get("record")) is not None:
                record.disconnected = True
            logger.debug("a client left: %s %s", scope["method"], scope["path"])
        except Exception as error:
            if is_internal(error):
                logger.exception("unexpected error: %s %s", scope["method"], scope["path"])
            if started:
                raise
            await error_response(error, scope)(scope, receive, send)


class BodyReader:
    """Reads the whole body before the route runs: at most ``max_bytes``, within a deadline.

    Args:
        app: What comes next; it sees the body as one message.
        max_bytes: The largest body.
        seconds: How long the body may take to arrive.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        message: Message | None = {"type": "http.request", "body": await self._read(scope, receive), "more_body": False}

        async def receive_body() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            body, message = message, None
            return body

        await self._app(scope, receive_body, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read_parts(receive)
        except TimeoutError as error:
            message = f"the request body did not arrive within {self._seconds:g} seconds"
            raise HTTPException(408, message, headers={"connection": "close"}) from error

    async def _read_parts(self, receive: Receive) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> HTTPException:
        message = f"the request body is larger than {self._max_bytes} bytes"
        # The rest of the body is not read, so the connection cannot be used again.
        return HTTPException(413, message, headers={"connection": "close"})
