"""``/v1/requests``: ends what is running."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.errors import NotFoundError
from octavo.server.auth import identity_of
from octavo.server.responses import Ended, json_response
from octavo.server.service import Service


def requests_router(service: Service) -> APIRouter:
    """The routes about requests."""
    router = APIRouter()

    @router.delete("/v1/requests/{id}")
    async def abort_request(id: str, request: Request) -> Response:
        """Aborts a running request by the ``id`` of its answer, or by its ``x-request-id``."""
        if not service.open_requests.abort(id, identity_of(request)):
            raise NotFoundError(f"no request {id!r} is running")
        return json_response(Ended(id, "request"))

    return router
