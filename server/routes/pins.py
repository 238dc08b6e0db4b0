"""``/v1/cache/pins``: prompts whose KV stays, whoever else wants blocks."""

from __future__ import annotations

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from octavo.engine.messages import AddRequest, PinInfo
from octavo.errors import NotFoundError, PinBudgetError
from octavo.server.auth import identity_of
from octavo.server.keys import Identity
from octavo.server.middleware import request_id_of
from octavo.server.prompt_only import compute_prompt, prompt_only
from octavo.server.protocol import PinRequest
from octavo.server.request_log import record_of
from octavo.server.responses import CachePin, CachePinList, Ended, json_response
from octavo.server.service import Service
from octavo.server.streaming import unless_disconnected
from octavo.server.strict_json import StrictJsonRoute


def pins_router(service: Service) -> APIRouter:
    """The routes about pins."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/cache/pins", status_code=201)
    async def create_pin(body: PinRequest, request: Request) -> Response:
        """Pins a prompt, which is computed first if it is not cached."""
        service.check_model(body.model)
        service.note_ignored(body)
        # Without the opening of an answer: another turn may follow instead.
        identity, ids = identity_of(request), await service.encode_either(body, add_generation_prompt=False)
        record_of(request).prompt_tokens = len(ids)
        (wanted,) = service.requests(body, [ids], prompt_only(), identity, pin_ttl=body.ttl)
        pin = await unless_disconnected(request.receive, _pin(service, wanted, body.ttl, request_id_of(request)))
        return json_response(_card(service, pin, identity), 201)

    @router.get("/v1/cache/pins")
    async def list_pins(request: Request) -> Response:
        """The tenant's pins, or everybody's for an administrator; the one that expires next comes first."""
        identity = identity_of(request)
        return json_response(CachePinList([_card(service, pin, identity) for pin in await _visible(service, identity)]))

    @router.delete("/v1/cache/pins/{id}")
    async def delete_pin(id: str, request: Request) -> Response:
        """Lets a pinned prompt go."""
        visible = await _visible(service, identity_of(request))
        number = next((pin.number for pin in visible if _id_of(service, pin) == id), None)
        if number is None or not await service.client.unpin(number):
            raise NotFoundError(f"there is no pin {id!r}")
        return json_response(Ended(id, "cache.pin"))

    return router


async def _pin(service: Service, request: AddRequest, ttl: float, request_id: str) -> PinInfo:
    client, salt = service.client, request.cache_salt
    with service.open_requests.entered([request], [request_id]):
        pin = await client.pin(request.prompt, ttl, tenant=request.tenant, cache_salt=salt)
        if pin is None:
            number = (await compute_prompt(client, request)).pin
            pin = next((pin for pin in await client.pins() if pin.number == number), None)
    if pin is None:
        raise PinBudgetError("other pins leave too few of the blocks that may be pinned")
    return pin


async def _visible(service: Service, identity: Identity) -> list[PinInfo]:
    service.engine_info()  # says why there is no engine to ask
    return [pin for pin in await service.client.pins() if identity.admin or pin.tenant == identity.tenant]


def _id_of(service: Service, pin: PinInfo) -> str:
    # Another engine counts from 1 again, and must not mistake one of its pins for one that went with the last engine.
    return f"pin-{service.client.restarts}-{pin.number}"


def _card(service: Service, pin: PinInfo, identity: Identity) -> CachePin:
    tenant = pin.tenant if identity.admin else UNSET
    return CachePin(_id_of(service, pin), pin.num_tokens, pin.num_blocks, pin.expires_in, tenant)
