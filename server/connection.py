"""uvicorn's HTTP connection with the bounds that it lacks: how large a request's head may be, and how slow."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from octavo.errors import CapacityError
from octavo.server.errors import error_response
from octavo.server.limits import HEADER_SECONDS, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_HEADERS


class BoundedConnection(HttpToolsProtocol):
    """One client connection. A head that is too large, too slow or malformed gets an error and is closed."""

    header_seconds = HEADER_SECONDS
    max_connections = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_complete = False
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(CapacityError(f"{self.max_connections} connections are open already, the most there may be"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._head_complete = False
        self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # what follows a body is not to be taken for a key, a host or a length
            super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._head_arrived()
        self._head_complete = True
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        half_read = not self.pipeline and self.cycle.more_body
        super().on_response_complete()
        if half_read:  # whoever was answered before the end of the body could go on sending it for ever
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not an HTTP request, in the form of every other error."""
        if not self.transport.is_closing():
            self._refuse(HTTPException(400, msg))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            limits = f"{MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes"
            self._refuse(HTTPException(431, f"the request's head is larger than {limits}"))
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
        self._refuse(HTTPException(408, f"no complete request head within {self.header_seconds:g} seconds"))

    def _refuse(self, error: Exception) -> None:
        response = error_response(error, {"path": ""})  # it may have none yet
        headers = [*response.raw_headers, (b"connection", b"close")]
        head = STATUS_LINE[response.status_code] + b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(head + b"\r\n" + bytes(response.body))
        self.transport.close()
