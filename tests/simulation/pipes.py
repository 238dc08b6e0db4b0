"""What lies between the front end and an engine: a process to wait for, and sockets that deliver a little later."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import zmq


class WouldBlock(Exception):
    """The engine polls its socket without a limit: it has nothing to do until a message comes."""


class Pipe:
    """One direction of a socket. Messages arrive in order, each after a latency of its own.

    Args:
        latency: Draws the next one, in seconds.
    """

    def __init__(self, latency: Callable[[], float]) -> None:
        self._latency = latency
        self._under_way: deque[bytes] = deque()
        self._arrived: deque[bytes] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._last_due = 0.0
        self._closed = False

    def __len__(self) -> int:
        return len(self._arrived)

    def send(self, data: bytes) -> None:
        """Puts a message on its way."""
        if self._closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        loop = asyncio.get_running_loop()
        self._last_due = max(self._last_due, loop.time() + self._latency())
        self._under_way.append(data)
        loop.call_at(self._last_due, self._arrive)

    def take(self) -> bytes:
        """The next message, which is there."""
        return self._arrived.popleft()

    async def news(self) -> None:
        """Returns when a message is there."""
        while not self._arrived:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def close(self) -> None:
        """Nothing comes out any more; as with ``zmq.asyncio``, whoever waits for something is cancelled."""
        self._closed = True
        self._arrived.clear()
        for waiter in self._waiting:
            waiter.cancel()

    def _arrive(self) -> None:
        # Timers of one moment come in any order, messages do not.
        if not self._closed:
            self._arrived.append(self._under_way.popleft())
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)


class FrontSocket:
    """A socket as `EngineProcess` uses it: ``zmq.asyncio``'s."""

    def __init__(self, incoming: Pipe, outgoing: Pipe | None = None) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, data: bytes) -> None:
        """Sends without waiting."""
        assert self._outgoing is not None
        self._outgoing.send(data)

    async def recv(self) -> bytes:
        """The next message."""
        await self._incoming.news()
        return self._incoming.take()

    async def poll(self, timeout: int) -> int:
        """Messages that are there after ``timeout`` milliseconds, or earlier if there are any."""
        if not self._incoming:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout / 1000):
                    await self._incoming.news()
        return len(self._incoming)


class EngineSocket:
    """A socket as `EngineLoop` uses it: zmq's blocking one."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def poll(self, timeout: int | None = None) -> int:
        """Messages that are there."""
        if timeout is None and not self._incoming:
            raise WouldBlock
        return len(self._incoming)

    def recv(self) -> bytes:
        """The next message, which is there."""
        return self._incoming.take()

    def send(self, data: bytes) -> None:
        """Sends without waiting."""
        self._outgoing.send(data)


class Context:
    """What owns an engine's sockets."""

    def __init__(self, *pipes: Pipe) -> None:
        self._pipes = pipes

    def destroy(self, linger: int) -> None:
        """Closes them all."""
        for pipe in self._pipes:
            pipe.close()


class Process:
    """A process as ``asyncio.subprocess`` shows it.

    Args:
        end: Stops what runs in it.
    """

    def __init__(self, pid: int, end: Callable[[], None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = end
        self._ended = asyncio.Event()

    def exit(self, code: int) -> None:
        """Ends it."""
        if self.returncode is None:
            self.returncode = code
            self._ended.set()
            self._end()

    def kill(self) -> None:
        """Ends it by force."""
        self.exit(-9)

    async def wait(self) -> int:
        """Waits for its end."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode
