"""``/v1/requests``: what is running, why it waits, what has happened to it; and ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from octavo.errors import NotFoundError
from octavo.server.auth import identity_of
from octavo.server.explain import Account
from octavo.server.keys import Identity
from octavo.server.limits import MAX_LISTED_REQUESTS
from octavo.server.open_requests import OpenRequest
from octavo.server.responses import Ended, RequestCard, RequestList, RequestStory, json_response
from octavo.server.service import Service

# From the one furthest behind. "arriving" are those of which the engine knows nothing yet.
_STATES: Final = ("arriving", "waiting", "swapped", "preempted", "running", "finished")


def requests_router(service: Service) -> APIRouter:
    """The routes about requests."""
    router = APIRouter()

    @router.get("/v1/requests")
    async def list_requests(request: Request) -> Response:
        """The tenant's open requests, or everybody's for an administrator, as they came."""
        identity = identity_of(request)
        listed = service.open_requests.listed(identity)
        cards = [_card(service, entry, identity) for entry in listed[:MAX_LISTED_REQUESTS]]
        return json_response(RequestList(cards, len(listed)))

    @router.get("/v1/requests/{id}")
    async def explain_request(id: str, request: Request) -> Response:
        """What has happened to a request, and why, by the ``id`` of its answer or by its ``x-request-id``.

        Of several requests of one name it is the latest.
        """
        identity = identity_of(request)
        entry = service.open_requests.find(id, identity)
        if entry is None:
            raise _unknown(id)
        accounts = await service.explainer.accounts(entry, identity)
        known = [account for account in accounts if account is not None]
        if not known and entry.ended is not None:
            raise _unknown(id)
        return json_response(_story(service, entry, identity, known, len(accounts)))

    @router.delete("/v1/requests/{id}")
    async def abort_request(id: str, request: Request) -> Response:
        """Aborts a running request by the ``id`` of its answer, or by its ``x-request-id``."""
        if not service.open_requests.abort(id, identity_of(request)):
            raise NotFoundError(f"no request {id!r} is running")
        return json_response(Ended(id, "request"))

    return router


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(
        f"nothing is known of a request {id!r}: it is not open here, and those that ended are remembered only for a "
        "while, and not when the engine restarts"
    )


def _card(service: Service, entry: OpenRequest, identity: Identity) -> RequestCard:
    tenant = entry.tenant if identity.admin else UNSET
    return RequestCard(entry.name, service.open_requests.age_of(entry), len(entry.request_ids), tenant)


def _story(
    service: Service, entry: OpenRequest, identity: Identity, accounts: Sequence[Account], asked: int
) -> RequestStory:
    # What has not reached the engine, or is not told, may be anywhere; while a request is open it has not ended.
    states = [account.state for account in accounts] + ["arriving"] * (entry.ended is None and len(accounts) < asked)
    return RequestStory(
        id=entry.name,
        model=service.model_name,
        tenant=entry.tenant if identity.admin else UNSET,
        state=min(states, key=_STATES.index),
        seconds=max((account.seconds for account in accounts), default=service.open_requests.age_of(entry)),
        prompt_tokens=sum(account.prompt_tokens for account in accounts),
        cached_tokens=sum(account.cached_tokens for account in accounts),
        summary=_summary(states, accounts),
        prompts=list(accounts),
        left_out=len(entry.request_ids) - len(accounts),
    )


def _summary(states: Sequence[str], accounts: Sequence[Account]) -> str:
    if not accounts:
        return "arriving: the engine has not begun with it"
    behind = min(accounts, key=lambda account: _STATES.index(account.state))
    if len(states) == 1:
        return behind.summary
    counts = Counter(states)
    told = ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    return f"{len(states)} prompts, {told}; of them one {behind.summary}"
