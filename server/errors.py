"""Every exception's HTTP face: one table, and an envelope for each family of clients.

    {"error": {"message": …, "type": …, "param": …, "code": …}}                   OpenAI's
    {"type": "error", "error": {"type": …, "message": …}, "request_id": …}        Anthropic's, below /v1/messages

The headers speak to clients that retry on their own: ``Retry-After`` where later is fine, ``x-should-retry:
false`` where trying again would fail again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from octavo.errors import (
    AbortedError,
    AuthenticationError,
    CapacityError,
    ClientError,
    EngineDeadError,
    EngineUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    NeverFitsError,
    NotFoundError,
    PinBudgetError,
    QueueFullError,
    RequestFailedError,
    SetupError,
    TooManyRequestsError,
)

ENGINE_RESTART_SECONDS: Final = 5.0


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every response that is not a success, and the last event of a stream that failed."""

    error: ErrorBody


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    """Anthropic's error object."""

    type: str
    message: str


class AnthropicErrorEnvelope(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """What `ErrorEnvelope` is for OpenAI's clients."""

    error: AnthropicErrorBody
    request_id: str | None


@dataclass(frozen=True)
class Face:
    """How one kind of exception looks over HTTP. ``code`` stands in where the exception has none."""

    status: int
    type: str
    code: str | None = None
    retry_after: float | None = None


_INTERNAL: Final = Face(500, "server_error", "internal_error")

_TABLE: Final[dict[type[Exception], Face]] = {
    InvalidRequestError: Face(400, "invalid_request_error"),
    NeverFitsError: Face(400, "invalid_request_error", "context_length_exceeded"),
    AuthenticationError: Face(401, "invalid_request_error", "invalid_api_key"),
    ForbiddenError: Face(403, "invalid_request_error", "forbidden"),
    NotFoundError: Face(404, "invalid_request_error", "not_found"),
    # nginx's and gRPC's number for what its client called off. No client tries that again by itself, as many do a 409.
    AbortedError: Face(499, "invalid_request_error", "aborted"),
    ClientError: Face(400, "invalid_request_error"),
    QueueFullError: Face(429, "rate_limit_error", "queue_full", retry_after=1.0),
    TooManyRequestsError: Face(429, "rate_limit_error", "too_many_requests", retry_after=1.0),
    PinBudgetError: Face(429, "rate_limit_error", "pin_budget_exceeded", retry_after=1.0),
    EngineUnavailableError: Face(503, "service_unavailable_error", "engine_unavailable", retry_after=1.0),
    CapacityError: Face(503, "service_unavailable_error", "no_capacity", retry_after=1.0),
    RequestFailedError: Face(500, "server_error", "request_failed"),
    # The supervisor restarts the engine, and nothing has been answered: the same request may well succeed then.
    EngineDeadError: Face(503, "server_error", "engine_died", retry_after=ENGINE_RESTART_SECONDS),
    SetupError: _INTERNAL,
    Exception: _INTERNAL,
}

_CODE_OF_STATUS: Final = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
}

_ANTHROPIC_PATH: Final = "/v1/messages"
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def describe(error: Exception) -> ErrorBody:
    """The error object for an exception. What went wrong inside the server stays there."""
    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, HTTPException):
        return ErrorBody(error.detail, _face(error).type, code=_CODE_OF_STATUS.get(error.status_code))
    face = _face(error)
    message = "internal error; the server's log has the details" if face is _INTERNAL else str(error)
    return ErrorBody(message, face.type, getattr(error, "param", None), getattr(error, "code", None) or face.code)


def envelope(error: Exception, scope: Mapping[str, Any]) -> ErrorEnvelope | AnthropicErrorEnvelope:
    """The error as clients of the route that was asked for read it.

    Args:
        scope: The request's, as ASGI has it.
    """
    told = describe(error)
    if not f"{scope['path']}/".startswith(f"{_ANTHROPIC_PATH}/"):
        return ErrorEnvelope(told)
    status = _face(error).status
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return AnthropicErrorEnvelope(AnthropicErrorBody(kind, told.message), scope.get("state", {}).get("request_id"))


def error_response(error: Exception, scope: Mapping[str, Any]) -> Response:
    """The whole HTTP response for an exception, of which the request's record takes note."""
    note_error(error, scope)
    face = _face(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if face.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if face.retry_after is not None:
        seconds = getattr(error, "retry_after", face.retry_after)
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    elif face.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        headers["x-should-retry"] = "false"
    body = msgspec.json.encode(envelope(error, scope))
    return Response(body, face.status, headers, media_type="application/json")


def note_error(error: Exception, scope: Mapping[str, Any]) -> None:
    """Has the request's record, if it has one, say what went wrong: in a word, and not in a client's."""
    if (record := scope.get("state", {}).get("record")) is not None:
        told = describe(error)
        record.error = told.code or told.type


def is_internal(error: Exception) -> bool:
    """True for exceptions that nobody raised on purpose: they belong in the log with their traceback."""
    return _face(error) is _INTERNAL


def _face(error: Exception) -> Face:
    if isinstance(error, RequestValidationError):
        return _TABLE[InvalidRequestError]
    if isinstance(error, HTTPException):
        ours = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
        return Face(error.status_code, "server_error" if ours else "invalid_request_error")
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def _describe_validation(error: RequestValidationError) -> ErrorBody:
    first = error.errors()[0]
    param = _field_path(first["loc"])
    return ErrorBody(_validation_message(first, param), "invalid_request_error", param or None)


def _validation_message(fault: dict[str, Any], param: str) -> str:
    if not param:
        return "the request body must be a JSON object"
    if fault["type"] == "missing":
        return f"{param} is required"
    if fault["type"] == "octavo":
        return f"{param}: {fault['msg']}"
    value = repr(fault.get("input"))
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{param}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {shown}"


def _field_path(location: tuple[str | int, ...]) -> str:
    """``("body", "messages", 0, "role")`` → ``messages[0].role``."""
    path = ""
    for part in location[1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")
