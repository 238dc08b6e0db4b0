"""Requests that are being worked at, by the names that their clients know them by, so that they can be aborted."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.engine.messages import AddRequest
from octavo.server.keys import Identity
from octavo.server.lifecycle import Lifecycle

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


@dataclass(frozen=True, eq=False, slots=True)
class OpenRequest:
    """One HTTP request: whose it is, and what the engine knows it as."""

    tenant: str
    request_ids: tuple[str, ...]


class OpenRequests:
    """All open requests; no more than the lifecycle lets be open.

    A name is not unique: whoever sends a request again may well give it the same ``x-request-id``.

    Args:
        client: The engine. lifecycle: counts what is open.
    """

    def __init__(self, client: EngineClient, lifecycle: Lifecycle) -> None:
        self._client = client
        self._lifecycle = lifecycle
        self._named: dict[str, list[OpenRequest]] = {}

    @contextlib.contextmanager
    def entered(self, requests: Sequence[AddRequest], names: Collection[str]) -> Iterator[None]:
        """Counts one HTTP request as open, and lets it be aborted by any of its names meanwhile.

        Args:
            requests: All that it asks of the engine.

        Raises:
            EngineUnavailableError, TooManyRequestsError: As `Lifecycle.request` does.
        """
        entry = OpenRequest(requests[0].tenant, tuple(request.request_id for request in requests))
        with self._lifecycle.request(entry.tenant):
            for name in names:
                self._named.setdefault(name, []).append(entry)
            try:
                yield
            finally:
                for name in names:
                    self._named[name].remove(entry)
                    if not self._named[name]:
                        del self._named[name]

    def abort(self, name: str, identity: Identity) -> bool:
        """Aborts all requests of this name that are the caller's, or anybody's if it is an administrator.

        Returns:
            Whether any of them was running; whoever waits for it then gets an `AbortedError`.
        """
        found = [e for e in self._named.get(name, ()) if identity.admin or e.tenant == identity.tenant]
        return sum(self._client.abort(request_id) for entry in found for request_id in entry.request_ids) > 0
