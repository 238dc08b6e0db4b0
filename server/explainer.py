"""Asks the engine for requests' stories, and names whom they speak of to those who may know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from octavo.engine.views import Story
from octavo.errors import EngineDeadError, EngineUnavailableError
from octavo.server.explain import Account, Audience, Explanation, Party, Unexplained, account, explanation
from octavo.server.keys import Identity
from octavo.server.limits import MAX_EXPLAINED
from octavo.server.open_requests import OpenRequest, OpenRequests

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

T = TypeVar("T")

_FORGOTTEN = "a request that is forgotten"
_ANOTHERS = "another tenant's request"


class Explainer:
    """Tells requests' stories.

    Args:
        client: The engine. open_requests: who is called what.
        one_tenant: All requests are one tenant's: there are no API keys.
    """

    def __init__(self, client: EngineClient, open_requests: OpenRequests, *, one_tenant: bool) -> None:
        self._client = client
        self._open_requests = open_requests
        self._one_tenant = one_tenant

    async def accounts(self, entry: OpenRequest, identity: Identity) -> list[Account | None]:
        """What happened to each of a request's prompts, the first `MAX_EXPLAINED`; None where nothing is known.

        Raises:
            EngineUnavailableError, EngineDeadError: There is no engine to ask.
        """
        return await self._told(entry.request_ids, identity, account)

    async def explain(self, request_ids: Sequence[str], identity: Identity) -> Explanation | Unexplained:
        """The same for an answer, which is not to fail for it: the first prompt's, with those of all others in it."""
        try:
            told = await self._told(request_ids, identity, explanation)
        except (EngineUnavailableError, EngineDeadError) as error:
            return Unexplained(str(error))
        lost = Unexplained("the engine knows no story of it: it was restarted since, or forgot it")
        first, *further = [one if one is not None else lost for one in told]
        return msgspec.structs.replace(first, further=further) if further else first

    async def _told(
        self, request_ids: Sequence[str], identity: Identity, tell: Callable[[Story, Audience], T]
    ) -> list[T | None]:
        asked = request_ids[:MAX_EXPLAINED]
        stories = await asyncio.gather(*(self._client.story(request_id) for request_id in asked))
        return [
            None if story is None else tell(story, self._audience(request_id, identity))
            for request_id, story in zip(asked, stories, strict=True)
        ]

    def _audience(self, request_id: str, identity: Identity) -> Audience:
        sees_all = self._one_tenant or identity.admin
        return _Audience(self._client, self._open_requests, request_id, identity, sees_all)


class _Audience:
    """Whoever asks for a request's story."""

    def __init__(
        self, client: EngineClient, open_requests: OpenRequests, request_id: str, identity: Identity, sees_all: bool
    ) -> None:
        self._client = client
        self._open_requests = open_requests
        self._request_id = request_id
        self._identity = identity
        self._sees_all = sees_all

    @property
    def sees_all(self) -> bool:
        return self._sees_all

    def party(self, key: int) -> Party | None:
        if not key:
            return None
        entry = self._entry(key)
        return Party(entry.name if entry is not None and entry.visible_to(self._identity) else None)

    def words(self, key: int) -> str | None:
        if not key:
            return None
        entry = self._entry(key)
        if entry is None:
            return _FORGOTTEN
        if not entry.visible_to(self._identity):
            return _ANOTHERS
        if self._request_id in entry.request_ids:
            return "another sequence of the same request"
        return f"request {entry.name}"

    def _entry(self, key: int) -> OpenRequest | None:
        request_id = self._client.request_of(key)
        return None if request_id is None else self._open_requests.holder_of(request_id)
