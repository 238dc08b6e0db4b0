"""Server-sent events, and the watch for clients that leave.

A disconnect shows only in ``receive()``; whoever does not listen there goes on generating for nobody. So every
piece of work runs beside a watcher, and is cancelled, its iterators closed, as soon as the watcher returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.errors import ErrorEnvelope, describe, is_internal, note_error
from octavo.server.limits import HEARTBEAT_SECONDS, SLOW_READER_SECONDS

T = TypeVar("T")

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still working\n\n"


def frame(data: msgspec.Struct) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def named_frame(data: msgspec.Struct) -> bytes:
    """One event, with its type as its name."""
    return b"event: %s\n" % str(data.__struct_config__.tag).encode() + frame(data)


@dataclass(frozen=True)
class Dialect:
    """How one family of clients reads a stream.

    Attributes:
        frame: An event's bytes.
        failed: What is sent last where an exception ended the events.
        done: What follows the last event where none did: nothing, where that event is an end by itself.
        heartbeat: What is sent in a long silence.
    """

    frame: Callable[[msgspec.Struct], bytes] = named_frame
    failed: Callable[[Exception], Iterable[msgspec.Struct]] = lambda error: [ErrorEnvelope(describe(error))]
    done: bytes = b""
    heartbeat: bytes = HEARTBEAT


CHUNKS = Dialect(frame, done=DONE)


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work``, and cancels it the moment the client is gone.

    Raises:
        ClientDisconnect: The client left; ``work`` has been cancelled and has cleaned up.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _cancel(task, watcher)


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several iterators as they come, each with its iterator's number. Closes all of them at its end."""
    upcoming: dict[asyncio.Future[T], int] = {}
    # A stack closes all that is on it, also when the client leaves while it is at it.
    async with contextlib.AsyncExitStack() as closing:
        for stream in streams:
            closing.push_async_callback(stream.aclose)
        closing.push_async_callback(lambda: _cancel(*upcoming))
        upcoming |= {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
        while upcoming:
            done, _ = await asyncio.wait(upcoming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = upcoming.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                upcoming[asyncio.ensure_future(anext(streams[number]))] = number
                yield number, item


async def open_stream(
    receive: Receive, events: AsyncGenerator[msgspec.Struct, None], dialect: Dialect = CHUNKS
) -> Response:
    """Starts a stream once it has its first event, so that a refusal still has its own status.

    A request that waits longer than a heartbeat gets its stream at once; what fails then is told inside it.

    Raises:
        ClientDisconnect: The client left before the stream began.
        OctavoError: Whatever ended ``events`` before their first.
    """
    stream = EventStream(events, dialect)
    try:
        await unless_disconnected(receive, stream.begin())
    except BaseException:
        await stream.close()
        raise
    return stream


class EventStream(Response):
    """A response of server-sent events that ends in exactly one terminal event: its dialect's, or an error.

    Args:
        events: What to send. Closed at the end, however it comes.
        dialect: How that looks.
        heartbeat: Seconds of silence after which a comment is sent.
    """

    def __init__(
        self,
        events: AsyncGenerator[msgspec.Struct, None],
        dialect: Dialect = CHUNKS,
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        # x-accel-buffering: nginx would otherwise collect the stream.
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events
        self._dialect = dialect
        self._first = asyncio.ensure_future(anext(events))
        self._heartbeat = heartbeat
        self._last_sent = 0.0
        self._writing = False
        self._failure: Exception | None = None

    async def begin(self) -> None:
        """Waits for the first event, at most one heartbeat; raises what came instead of it."""
        await asyncio.wait({self._first}, timeout=self._heartbeat)
        if self._first.done():
            self._first.result()

    async def close(self) -> None:
        """Ends the work behind the stream."""
        await _cancel(self._first)
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        finally:
            if self._failure is not None:
                note_error(self._failure, scope)
            await self.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        beat = asyncio.ensure_future(self._beat(send))
        try:
            async for data in self._frames():
                await self._write(send, data)
        finally:
            await _cancel(beat)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames(self) -> AsyncIterator[bytes]:
        try:
            yield self._dialect.frame(await self._first)
            async for event in self._events:
                yield self._dialect.frame(event)
        except Exception as error:
            if is_internal(error):
                logger.exception("a stream failed")
            self._failure = error
            for event in self._dialect.failed(error):
                yield self._dialect.frame(event)
        else:
            if self._dialect.done:
                yield self._dialect.done

    async def _write(self, send: Send, data: bytes) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        self._writing = True
        try:
            async with asyncio.timeout(SLOW_READER_SECONDS):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise ClientDisconnect from error
        finally:
            self._writing = False

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        while True:
            await asyncio.sleep(self._last_sent + self._heartbeat - loop.time())
            if self._writing:  # it is the reader who is silent; and what is being written may be the last event
                self._last_sent = loop.time()
            elif loop.time() - self._last_sent >= self._heartbeat:
                await self._write(send, self._dialect.heartbeat)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and waits until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
