"""build_app: the HTTP front end as a FastAPI application. A factory; nothing here is global."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.server.auth import METRICS, PUBLIC, Authenticator
from octavo.server.errors import error_response
from octavo.server.explainer import Explainer
from octavo.server.hosts import HostGuard, names_of
from octavo.server.keys import Keys
from octavo.server.lifecycle import Lifecycle
from octavo.server.metrics import Metrics
from octavo.server.middleware import BodyReader, ErrorBoundary, Observer, RequestContext
from octavo.server.open_requests import OpenRequests
from octavo.server.openapi import ERRORS
from octavo.server.request_log import RequestLog
from octavo.server.routes.chat import chat_router
from octavo.server.routes.completions import completions_router
from octavo.server.routes.embeddings import embeddings_router
from octavo.server.routes.health import health_router
from octavo.server.routes.messages import messages_router
from octavo.server.routes.models import models_router
from octavo.server.routes.pins import pins_router
from octavo.server.routes.requests import requests_router
from octavo.server.routes.responses import responses_router
from octavo.server.routes.tokenizer_info import tokenizer_info_router
from octavo.server.routes.ui import ui_router
from octavo.server.service import Service
from octavo.server.tools.formats import tool_support

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

_ROUTERS: Final = (
    completions_router,
    chat_router,
    messages_router,
    responses_router,
    embeddings_router,
    models_router,
    pins_router,
    requests_router,
    health_router,
    ui_router,
)


def build_app(
    client: EngineClient,
    tokenizer: Tokenizer,
    config: ServerConfig,
    *,
    model_name: str,
    lifecycle: Lifecycle | None = None,
    keys: Keys | None = None,
    metrics: Metrics | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """Builds the application.

    Args:
        client: The engine; it may still be loading.
        tokenizer: The model's tokenizer.
        config: The server's options.
        model_name: The name that clients use for the model.
        lifecycle: Shared with whoever stops the server; by default the app's own.
        keys: The API keys that ``config`` names; None for a server that is open.
        metrics: Where everything is counted; by default the app's own.
        observers: Told how requests end, besides the log.
    """
    assert keys is not None or config.api_keys is None, "there are API keys, and nobody has read them"
    lifecycle = lifecycle or Lifecycle(config.max_open_requests)
    metrics = metrics or Metrics(client, lifecycle, model_name, config.metrics_compat)
    tools = tool_support(config.tool_format, tokenizer.chat_template)
    open_requests = OpenRequests(client, lifecycle)
    explainer = Explainer(client, open_requests, one_tenant=keys is None)
    service = Service(client, tokenizer, model_name, metrics, lifecycle, tools, open_requests, explainer)
    app = FastAPI(
        title="Octavo",
        # Their pages load scripts from elsewhere; the schema itself stays at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        exception_handlers={HTTPException: _answer_http, RequestValidationError: _answer},
        middleware=[
            Middleware(RequestContext, metrics=metrics, observers=[*_request_log(config), *observers]),
            *_for_browsers(config, keys),
            Middleware(ErrorBoundary),
            Middleware(Authenticator, keys=keys, public=PUBLIC | {METRICS} if config.public_metrics else PUBLIC),
            Middleware(BodyReader, max_bytes=config.max_body_bytes),
        ],
    )
    for router in _ROUTERS:
        app.include_router(router(service))
    if config.tokenizer_info:
        app.include_router(tokenizer_info_router(service))
    return app


def _request_log(config: ServerConfig) -> Iterator[Observer]:
    if config.log_requests:
        yield RequestLog()


def _for_browsers(config: ServerConfig, keys: Keys | None) -> Iterator[Middleware]:
    """What keeps web pages out, and lets those in that may use the server."""
    if (names := names_of(config, keys)) is not None:
        yield Middleware(HostGuard, names=names)
    if config.cors_origins:
        # Never with credentials, which a browser would add on its own: a page has to know a key.
        yield Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after", "x-should-retry"),
        )


async def _answer(request: Request, error: Exception) -> Response:
    return error_response(error, request.scope)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.detail == HTTPStatus(error.status_code).phrase:
        # The router's own: it says what, not where.
        message = f"{error.detail}: {request.method} {request.scope['path']}"
        headers = _allowed(request) if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
        error = HTTPException(error.status_code, message, headers=headers)
    return error_response(error, request.scope)


def _allowed(request: Request) -> dict[str, str]:
    """The header with the methods that a path takes; the router knows only those of the first route that has it."""
    methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    scopes = [{**request.scope, "method": method} for method in methods]
    taken = [scope["method"] for scope in scopes if any(r.matches(scope)[0] is Match.FULL for r in request.app.routes)]
    return {"allow": ", ".join(taken)}
