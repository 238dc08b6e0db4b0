"""Starting and stopping: counts open requests, refuses new ones once stopping, waits for the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from octavo.errors import EngineUnavailableError

RETRY_ELSEWHERE_SECONDS = 5.0


class Lifecycle:
    """The server's state between its first request and its last.

    Attributes:
        open_requests: Requests that hold, or wait for, a place in the engine.
    """

    def __init__(self) -> None:
        self.open_requests = 0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stopping(self) -> bool:
        """True once the server takes no new work."""
        return self._stop.is_set()

    @property
    def forced(self) -> bool:
        """True once somebody asked a second time."""
        return self._force.is_set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Keeps the server from stopping while a request is open.

        Raises:
            EngineUnavailableError: The server is stopping.
        """
        self.check_accepting()
        self.open_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.open_requests -= 1
            if self.open_requests == 0:
                self._idle.set()

    def check_accepting(self) -> None:
        """Raises:
        EngineUnavailableError: The server is stopping.
        """
        if self.stopping:
            raise EngineUnavailableError("the server is shutting down", retry_after=RETRY_ELSEWHERE_SECONDS)

    def stop(self) -> None:
        """Asks the server to finish what it has and end. Asked again: to end now."""
        if self.stopping:
            self._force.set()
        self._stop.set()

    async def stop_requested(self) -> None:
        """Returns once `stop` was called."""
        await self._stop.wait()

    async def drain(self, timeout: float) -> bool:
        """Waits for the open requests, at most ``timeout`` seconds and only until `stop` is called again.

        Returns:
            True if all of them finished.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, self._force)]
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self.open_requests == 0
