"""Which request has which key: those that are open, and the last ones that ended."""

from __future__ import annotations

from collections import deque

# Ended requests of which views and stories may still speak.
_MOST_ENDED = 4096


class KnownRequests:
    """Requests' ids by key, and the other way round."""

    def __init__(self, most_ended: int = _MOST_ENDED) -> None:
        self._most_ended = most_ended
        self._keys: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._ended: deque[str] = deque()

    def begin(self, request_id: str, key: int) -> None:
        """Notes a request that is open from now on."""
        self._keys[request_id] = key
        self._ids[key] = request_id

    def end(self, request_id: str) -> None:
        """Notes that a request is open no more; it is forgotten when enough others have ended after it."""
        self._ended.append(request_id)
        if len(self._ended) > self._most_ended:
            del self._ids[self._keys.pop(self._ended.popleft())]

    def key_of(self, request_id: str) -> int | None:
        """A request's key."""
        return self._keys.get(request_id)

    def request_of(self, key: int) -> str | None:
        """The request that has a key."""
        return self._ids.get(key)
