"""``/health``, ``/ready``, ``/version``, ``/metrics``: for probes, balancers and Prometheus."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse, Response

from octavo.errors import EngineUnavailableError
from octavo.server.responses import json_response
from octavo.server.service import Service


def health_router(service: Service) -> APIRouter:
    """The routes about the server itself."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """This process is alive."""
        return json_response({"status": "alive"})

    @router.get("/ready")
    async def ready() -> Response:
        """200 when requests are served, 503 with the reason when they are not."""
        if not service.ready:
            raise EngineUnavailableError(f"not ready: {service.status}")
        return json_response({"status": service.status})

    @router.get("/version")
    async def octavo_version() -> Response:
        """Octavo's version."""
        return json_response({"version": version("octavo")})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Everything that is counted, in Prometheus' text format."""
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return router
