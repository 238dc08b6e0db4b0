"""uvicorn's HTTP connection with the bounds that it lacks: how large a request's head may be, and how slow."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.server.errors import ErrorBody, ErrorEnvelope
from octavo.server.limits import HEADER_SECONDS, MAX_HEADER_BYTES, MAX_HEADERS


class BoundedConnection(HttpToolsProtocol):
    """One client connection. A head that is too large, too slow or malformed gets an error and is closed."""

    header_seconds = HEADER_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not an HTTP request, in the form of every other error."""
        if not self.transport.is_closing():
            self._refuse("400 Bad Request", msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            limits = f"{MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes"
            self._refuse("431 Request Header Fields Too Large", f"the request's head is larger than {limits}")
            # Leaves the parser, which reports it to `send_400_response`.
            raise ValueError("the request's head is too large")

    def _await_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.header_seconds, self._head_overdue)

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_overdue(self) -> None:
        self._head_deadline = None
        self._refuse("408 Request Timeout", f"no complete request head within {self.header_seconds:g} seconds")

    def _refuse(self, status: str, message: str) -> None:
        body = msgspec.json.encode(ErrorEnvelope(ErrorBody(message, "invalid_request_error")))
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
