"""Requests that are being worked at, and the latest that ended, by the names that their clients know them by."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.engine.messages import AddRequest
from octavo.server.keys import Identity
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import MAX_ENDED_REQUESTS

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


@dataclass(eq=False, slots=True)
class OpenRequest:
    """One HTTP request: whose it is, its names (its answer's id first, if it has one), and what the engine calls it.

    Attributes:
        began, ended: Seconds on the monotonic clock; the latter None while it is open.
    """

    tenant: str
    request_ids: tuple[str, ...]
    names: tuple[str, ...]
    began: float
    ended: float | None = None

    @property
    def name(self) -> str:
        """What it is called where only one name is told."""
        return self.names[0] if self.names else ""

    def visible_to(self, identity: Identity) -> bool:
        """Whether somebody may know of it."""
        return identity.admin or self.tenant == identity.tenant


class _ByName:
    """Requests by name. A name is not unique: whoever sends a request again may well give it the same x-request-id."""

    def __init__(self) -> None:
        self.named: dict[str, list[OpenRequest]] = {}

    def add(self, entry: OpenRequest) -> None:
        for name in entry.names:
            self.named.setdefault(name, []).append(entry)

    def remove(self, entry: OpenRequest) -> None:
        for name in entry.names:
            self.named[name].remove(entry)
            if not self.named[name]:
                del self.named[name]

    def find(self, name: str, identity: Identity) -> list[OpenRequest]:
        return [entry for entry in self.named.get(name, ()) if entry.visible_to(identity)]


class OpenRequests:
    """All open requests, no more than the lifecycle lets be open; and the latest that ended, until they are too many.

    Args:
        client: The engine. lifecycle: counts what is open.
        clock: Seconds that only grow.
    """

    def __init__(self, client: EngineClient, lifecycle: Lifecycle, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._lifecycle = lifecycle
        self._clock = clock
        self._open = _ByName()
        self._entries: dict[OpenRequest, None] = {}  # the open ones, as they came
        self._ended = _ByName()
        self._latest: deque[OpenRequest] = deque()
        self._by_request_id: dict[str, OpenRequest] = {}
        self._num_ended = 0  # in the engine's requests, of which one of HTTP may be many

    @contextlib.contextmanager
    def entered(self, requests: Sequence[AddRequest], names: Collection[str]) -> Iterator[None]:
        """Counts one HTTP request as open, and lets it be found, and aborted, by any of its names.

        Args:
            requests: All that it asks of the engine.

        Raises:
            EngineUnavailableError, TooManyRequestsError: As `Lifecycle.request` does.
        """
        ids = tuple(request.request_id for request in requests)
        entry = OpenRequest(requests[0].tenant, ids, tuple(names), self._clock())
        with self._lifecycle.request(entry.tenant):
            self._begin(entry)
            try:
                yield
            finally:
                self._end(entry)

    def abort(self, name: str, identity: Identity) -> bool:
        """Aborts all requests of this name that are the caller's, or anybody's if it is an administrator.

        Returns:
            Whether any of them was running; whoever waits for it then gets an `AbortedError`.
        """
        found = self._open.find(name, identity)
        return sum(self._client.abort(request_id) for entry in found for request_id in entry.request_ids) > 0

    def find(self, name: str, identity: Identity) -> OpenRequest | None:
        """The latest request of this name that the caller may know of; an open one if there is any."""
        found = self._open.find(name, identity) or self._ended.find(name, identity)
        return found[-1] if found else None

    def holder_of(self, request_id: str) -> OpenRequest | None:
        """The request that an engine's request belongs to; None if it was never here, or ended too long ago."""
        return self._by_request_id.get(request_id)

    def name_of(self, key: int) -> str | None:
        """What to call the request that has this key in the engine's views: its client's name for it, else ours.

        None if it was never here, or ended too long ago.
        """
        request_id = self._client.request_of(key)
        entry = None if request_id is None else self.holder_of(request_id)
        return request_id if entry is None else entry.name or request_id

    def listed(self, identity: Identity) -> list[OpenRequest]:
        """The open requests that the caller may know of, as they came."""
        return [entry for entry in self._entries if entry.visible_to(identity)]

    def age_of(self, entry: OpenRequest) -> float:
        """Seconds since a request came; of one that has ended, how long it was open."""
        return (self._clock() if entry.ended is None else entry.ended) - entry.began

    def _begin(self, entry: OpenRequest) -> None:
        self._entries[entry] = None
        self._open.add(entry)
        for request_id in entry.request_ids:
            self._by_request_id[request_id] = entry

    def _end(self, entry: OpenRequest) -> None:
        del self._entries[entry]
        self._open.remove(entry)
        entry.ended = self._clock()
        self._ended.add(entry)
        self._latest.append(entry)
        self._num_ended += len(entry.request_ids)
        while self._num_ended > MAX_ENDED_REQUESTS:
            self._forget(self._latest.popleft())

    def _forget(self, entry: OpenRequest) -> None:
        self._num_ended -= len(entry.request_ids)
        self._ended.remove(entry)
        for request_id in entry.request_ids:
            del self._by_request_id[request_id]
