"""An HTTP connection to an ASGI application: httpx on one side, the application on the other, a bounded buffer between.

httpx's own ``ASGITransport`` runs the application to its end before the client sees a byte of the answer. Here answers
stream, a client that does not read makes the application wait, and one that leaves is noticed, as behind uvicorn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from starlette.types import ASGIApp, Message


class Connection(httpx.AsyncByteStream):
    """One request and its answer.

    Args:
        body: The request's. capacity: bytes of the answer that may wait to be read.
        on_gone: Called once, when the client has left or the application has returned.
    """

    def __init__(self, body: bytes, capacity: int, on_gone: Callable[[], None]) -> None:
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._body: bytes | None = body
        self._capacity = capacity
        self._on_gone = on_gone
        self._buffer: deque[bytes] = deque()
        self._left = asyncio.Event()
        self._change = asyncio.Event()
        self._application: asyncio.Task[None] | None = None

    async def open(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        """Starts the application and waits for the beginning of its answer."""
        self._application = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]
        self._application.add_done_callback(lambda task: self._end())
        try:
            while self.status is None and not self._application.done():
                await self._changed()
        except BaseException:
            await self.aclose()
            raise
        if self.status is None:
            self._application.result()
            raise httpx.RemoteProtocolError("the server closed the connection without an answer")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._application is not None
        while True:
            while self._buffer:
                data = self._buffer.popleft()
                self._changes()
                yield data
            if self.complete:
                return
            if self._application.done():
                self._application.result()
                raise httpx.RemoteProtocolError("the server closed the connection in the middle of its answer")
            await self._changed()

    async def aclose(self) -> None:
        """Leaves. The application has to notice at once; virtual time that it takes is counted against it."""
        assert self._application is not None
        self._left.set()
        self._on_gone()
        self._changes()
        done, _ = await asyncio.wait({self._application}, timeout=1.0)
        assert done, "the application goes on for a client that has left"

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while not (self._left.is_set() or self.complete):
            await self._changed()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left.is_set():
            return  # as uvicorn does
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            assert not self.complete, "the application sends after the end"
            if message.get("body"):
                self._buffer.append(message["body"])
            self.complete = not message.get("more_body", False)
        self._changes()
        while sum(map(len, self._buffer)) > self._capacity and not self._left.is_set():
            await self._changed()

    def _end(self) -> None:
        self._on_gone()
        self._changes()

    def _changes(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _changed(self) -> None:
        await self._change.wait()


class StreamingTransport(httpx.AsyncBaseTransport):
    """Connects an httpx client to an application.

    Attributes:
        capacity: Of the next connection. on_gone: of the next connection.
    """

    def __init__(self, app: ASGIApp, capacity: int, on_gone: Callable[[], None] = lambda: None) -> None:
        self._app = app
        self._capacity = capacity
        self._on_gone = on_gone

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        connection = Connection(await request.aread(), self._capacity, self._on_gone)
        await connection.open(
            self._app,
            {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": request.method,
                "scheme": "http",
                "path": request.url.path,
                "raw_path": request.url.raw_path,
                "query_string": request.url.query,
                "root_path": "",
                "headers": [(name.lower(), value) for name, value in request.headers.raw],
                "server": ("octavo", 80),
                "client": ("127.0.0.1", 1),
            },
        )
        assert connection.status is not None
        return httpx.Response(connection.status, headers=connection.headers, stream=connection)
