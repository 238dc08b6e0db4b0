"""``/ui``: the live map. The page and its assets hold no data; what they show comes from ``/ui/stream`` and
``/ui/blocks``, which tell of all tenants and need an admin key where there are keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from octavo.engine.views import BlockView
from octavo.errors import ForbiddenError
from octavo.server.limits import MAX_BLOCK_ID
from octavo.server.live.hub import LiveHub
from octavo.server.live.messages import Frame
from octavo.server.responses import json_response
from octavo.server.service import Service
from octavo.server.streaming import Dialect, frame, open_stream

_FOLDER: Final = Path(__file__).parents[1] / "ui"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE: Final = "index.html"
# All that is served below /ui/ as a file. They are public, so each is named in `octavo.server.auth` as well.
ASSETS: Final = (
    "colours.js",
    "figures.js",
    "lists.js",
    "main.js",
    "model.js",
    "recording.js",
    "stream.js",
    "style.css",
    "tier_map.js",
    "tooltip.js",
    "words.js",
)

HEADERS: Final = {
    # Nothing from elsewhere, nothing inline, and no frame around it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

_OUR_OWN: Final = (None, "same-origin", "none")


def _event(data: msgspec.Struct) -> bytes:
    return data.data if isinstance(data, Frame) else frame(data)


_LIVE: Final = Dialect(frame=_event, heartbeat=b": nothing new\n\n")


def ui_router(service: Service) -> APIRouter:
    """The live map's routes. They are the page's own and no API: the document at /openapi.json has none of them."""
    router = APIRouter(prefix="/ui", include_in_schema=False)
    hub = LiveHub(service.client, service.open_requests.name_of)

    for name in (PAGE, *ASSETS):
        router.add_api_route("" if name == PAGE else f"/{name}", _file_route(name), methods=["GET"])

    @router.get("/stream")
    async def stream(request: Request) -> Response:
        """What the map shows, as `octavo.server.live.messages` describes it."""
        _check_origin(request)
        service.lifecycle.check_accepting()
        return await open_stream(request.receive, hub.watch(), _LIVE)

    @router.get("/blocks/{tier}/{block}")
    async def block(
        tier: str, block: Annotated[int, PathParameter(ge=1, le=MAX_BLOCK_ID)], request: Request
    ) -> Response:
        """One block, and the ids of the requests that own it."""
        _check_origin(request)
        service.engine_info()  # says why there is no engine to ask
        return json_response(_with_names(service, await service.client.block(tier, block)))

    return router


def _file_route(name: str) -> Any:
    content = (_FOLDER / name).read_bytes()
    media_type = _TYPES[Path(name).suffix]

    async def file() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return file


def _check_origin(request: Request) -> None:
    """Other sites' pages have no business here, whoever may use the API: each could take a viewer's place."""
    site = request.headers.get("sec-fetch-site")
    if site not in _OUR_OWN:
        raise ForbiddenError(f"the live map is read by its own page only, not by a {site} one")


def _with_names(service: Service, view: BlockView) -> dict[str, Any]:
    owners = [
        {**msgspec.structs.asdict(owner), "request": service.open_requests.name_of(owner.key)} for owner in view.owners
    ]
    told = {name: value for name, value in msgspec.structs.asdict(view).items() if name != "ticket"}
    return {**told, "owners": owners}
