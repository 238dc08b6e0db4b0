"""build_app: the HTTP front end as a FastAPI application. A factory; nothing here is global."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.server.errors import error_response
from octavo.server.lifecycle import Lifecycle
from octavo.server.metrics import Metrics
from octavo.server.middleware import BodyReader, ErrorBoundary, RequestContext
from octavo.server.routes.chat import chat_router
from octavo.server.routes.completions import completions_router
from octavo.server.routes.health import health_router
from octavo.server.routes.models import models_router
from octavo.server.service import Service

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


def build_app(
    client: EngineClient,
    tokenizer: Tokenizer,
    config: ServerConfig,
    *,
    model_name: str,
    lifecycle: Lifecycle | None = None,
) -> FastAPI:
    """Builds the application.

    Args:
        client: The engine; it may still be loading.
        tokenizer: The model's tokenizer.
        config: The server's options.
        model_name: The name that clients use for the model.
        lifecycle: Shared with whoever stops the server; by default the app's own.
    """
    metrics = Metrics(client)
    service = Service(client, tokenizer, model_name, metrics, lifecycle or Lifecycle())
    app = FastAPI(
        title="Octavo",
        # Their pages load scripts from elsewhere; the schema itself stays at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _answer_http, RequestValidationError: _answer},
        middleware=[
            Middleware(RequestContext, metrics=metrics),
            Middleware(ErrorBoundary),
            Middleware(BodyReader, max_bytes=config.max_body_bytes),
        ],
    )
    for router in (completions_router, chat_router, models_router, health_router):
        app.include_router(router(service))
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.detail == HTTPStatus(error.status_code).phrase:
        # The router's own: it says what, not where.
        message = f"{error.detail}: {request.method} {request.scope['path']}"
        error = HTTPException(error.status_code, message, headers=error.headers)
    return error_response(error)
