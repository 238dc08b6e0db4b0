"""Responses that clients may ask for again, or go on from. They are kept in memory, while there is room."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import NoReturn

from octavo.errors import NotFoundError
from octavo.server.limits import MAX_STORED_BYTES, MAX_STORED_RESPONSES


@dataclass(frozen=True)
class Stored:
    """A response.

    Attributes:
        response: What its client received, as JSON.
        messages: The whole conversation up to its end, as JSON of a chat's messages.
    """

    response: bytes
    messages: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.response) + len(self.messages)


@dataclass
class _Shelf:
    """One tenant's responses, the least recently used first."""

    kept: OrderedDict[str, Stored] = field(default_factory=OrderedDict)
    size: int = 0

    def remove(self, id: str) -> None:
        self.size -= self.kept.pop(id).size


class ResponseStore:
    """Keeps each tenant's latest responses, and gives up the least recently used.

    Args:
        max_count: How many of one tenant's. max_bytes: how much of it, with the conversations before them.
    """

    def __init__(self, max_count: int = MAX_STORED_RESPONSES, max_bytes: int = MAX_STORED_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._shelves = defaultdict[str, _Shelf](_Shelf)

    def put(self, tenant: str, id: str, stored: Stored) -> None:
        """Keeps a new response; one that is too large by itself is not kept."""
        shelf = self._shelves[tenant]
        if stored.size > self._max_bytes:
            return
        shelf.kept[id] = stored
        shelf.size += stored.size
        while len(shelf.kept) > self._max_count or shelf.size > self._max_bytes:
            shelf.remove(next(iter(shelf.kept)))

    def get(self, tenant: str, id: str, *, param: str) -> Stored:
        """A response.

        Args:
            param: The request field that named it.

        Raises:
            NotFoundError: The tenant has none of that id, or no longer.
        """
        shelf = self._shelves[tenant]
        if id not in shelf.kept:
            _missing(id, param)
        shelf.kept.move_to_end(id)
        return shelf.kept[id]

    def delete(self, tenant: str, id: str, *, param: str) -> None:
        """Forgets a response.

        Raises:
            NotFoundError: As for `get`.
        """
        shelf = self._shelves[tenant]
        if id not in shelf.kept:
            _missing(id, param)
        shelf.remove(id)


def _missing(id: str, param: str) -> NoReturn:
    raise NotFoundError(
        f"there is no response {id[:80]!r}: it never was, was not to be stored, or made room for later ones",
        param=param,
        code="response_not_found",
    )
