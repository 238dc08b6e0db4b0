"""Reads JSON bodies strictly: right content type, bounded depth, no NaN, no lone surrogates, off the loop if large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from octavo.server.limits import INLINE_BYTES, MAX_JSON_DEPTH


class StrictJsonRoute(APIRoute):
    """A FastAPI route whose JSON body is decoded by `decode`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def body(self) -> bytes:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A browser sends other types across origins without asking; this one it has to ask for.
        if self.method == "POST" and kind != "application/json":
            raise HTTPException(415, f"content-type must be application/json, not {kind or 'absent'}")
        return await super().body() or b" "

    async def json(self) -> Any:
        raw = await self.body()
        return decode(raw) if len(raw) <= INLINE_BYTES else await asyncio.to_thread(decode, raw)


def decode(raw: bytes) -> Any:
    """Decodes a JSON document.

    Raises:
        HTTPException: 400, saying where the document is malformed or that it is nested too deeply.
    """
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    # Counting brackets is cheap and settles all but strange bodies.
    if raw.count(b"[") + raw.count(b"{") > MAX_JSON_DEPTH and deeper_than(value, MAX_JSON_DEPTH):
        raise _too_deep()
    return value


def deeper_than(value: Any, limit: int) -> bool:
    """Whether a JSON value is nested more than ``limit`` levels deep."""
    level = [value]
    for _ in range(limit):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> HTTPException:
    return HTTPException(400, f"the request body is nested more than {MAX_JSON_DEPTH} levels deep")
