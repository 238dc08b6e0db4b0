"""Open requests: how many each tenant may have, when the next one ends, and waiting for the last when stopping."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from octavo.config import DEFAULT_TENANT
from octavo.errors import EngineUnavailableError, QueueFullError, TooManyRequestsError

RETRY_ELSEWHERE_SECONDS: Final = 5.0
LATEST: Final = 0.1  # the weight of the latest request in the mean of how long they take


class Lifecycle:
    """The server's state between its first request and its last.

    Args:
        max_open: How many requests each tenant may have open; None for any number.
    """

    def __init__(self, max_open: int | None = None) -> None:
        self._max_open = max_open
        self._open = Counter[str]()
        self._seconds = 0.0  # that requests take, in the mean of late
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        """Requests that hold, or wait for, a place in the engine."""
        return self._open.total()

    @property
    def open_by_tenant(self) -> dict[str, int]:
        """The same by tenant; those that have had any since the start."""
        return dict(self._open)

    @property
    def stopping(self) -> bool:
        """True once the server takes no new work."""
        return self._stop.is_set()

    @property
    def forced(self) -> bool:
        """True once somebody asked a second time."""
        return self._force.is_set()

    @contextlib.contextmanager
    def request(self, tenant: str = DEFAULT_TENANT) -> Iterator[None]:
        """Keeps the server from stopping while a request is open.

        Raises:
            EngineUnavailableError: The server is stopping.
            TooManyRequestsError: The tenant has as many requests open as it may.
        """
        self.check_accepting()
        self._check_room(tenant)
        self._open[tenant] += 1
        self._idle.clear()
        began = time.monotonic()
        try:
            yield
            self._note(time.monotonic() - began)
        except QueueFullError as error:
            wait = max(error.retry_after, self._until_one_ends(self.open_requests))
            raise QueueFullError(str(error), retry_after=wait) from error
        finally:
            self._open[tenant] -= 1
            if self.open_requests == 0:
                self._idle.set()

    def check_accepting(self) -> None:
        """Raises:
        EngineUnavailableError: The server is stopping.
        """
        if self.stopping:
            raise EngineUnavailableError("the server is shutting down", retry_after=RETRY_ELSEWHERE_SECONDS)

    def _check_room(self, tenant: str) -> None:
        if self._max_open is not None and self._open[tenant] >= self._max_open:
            raise TooManyRequestsError(
                f"{self._max_open} requests are open already, the most that one tenant may have",
                retry_after=self._until_one_ends(self._max_open),
            )

    def _note(self, seconds: float) -> None:
        self._seconds += (seconds - self._seconds) * (LATEST if self._seconds else 1)

    def _until_one_ends(self, count: int) -> float:
        """Seconds until the next of so many open requests is expected to end."""
        return self._seconds / count

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
