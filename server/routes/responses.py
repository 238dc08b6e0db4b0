"""``/v1/responses``: OpenAI's Responses API, text and functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.errors import InvalidRequestError
from octavo.server.auth import identity_of
from octavo.server.keys import Identity
from octavo.server.openapi import STREAMS
from octavo.server.responses import json_response
from octavo.server.responses_api.items import Message, chat_messages
from octavo.server.responses_api.objects import Deleted
from octavo.server.responses_api.request import ResponsesRequest
from octavo.server.responses_api.store import ResponseStore
from octavo.server.responses_api.tools import tool_use, tools_of
from octavo.server.responses_api.truncation import longest_that_fits
from octavo.server.routes.response_answer import Kept, ResponseAnswer
from octavo.server.service import Service
from octavo.server.strict_json import StrictJsonRoute
from octavo.server.tools.use import ToolUse
from octavo.server.turn import Turn, chat_request, grammar_of_turn


def responses_router(service: Service) -> APIRouter:
    """The routes of the Responses API."""
    router = APIRouter(route_class=StrictJsonRoute)
    store = ResponseStore()

    @router.post("/v1/responses", responses=STREAMS)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answers what is asked, or what is asked next."""
        service.check(body)
        identity = identity_of(request)
        tools = tools_of(body)
        use = tool_use(body, tools, service.tools)
        said = [*_before(store, body, identity), *chat_messages(body.input)]
        turn = await _turn(service, body, use, said, identity)
        kept = Kept(store, identity.tenant, said) if body.store is not False else None
        answer = ResponseAnswer(service, body, tools, turn, kept)
        return await answer.respond(request, stream=bool(body.stream))

    @router.get("/v1/responses/{response_id}")
    async def get_response(response_id: str, request: Request, stream: bool = False) -> Response:
        """A response that was stored."""
        if stream:
            raise InvalidRequestError("stream: a stored response comes whole only", param="stream")
        stored = store.get(identity_of(request).tenant, response_id, param="response_id")
        return Response(stored.response, media_type="application/json")

    @router.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str, request: Request) -> Response:
        """Forgets a response; those that went on from it stay as they are."""
        store.delete(identity_of(request).tenant, response_id, param="response_id")
        return json_response(Deleted(response_id))

    return router


def _before(store: ResponseStore, body: ResponsesRequest, identity: Identity) -> list[Message]:
    """The conversation that the request goes on with. Its instructions are not part of it."""
    if body.previous_response_id is None:
        return []
    stored = store.get(identity.tenant, body.previous_response_id, param="previous_response_id")
    return msgspec.json.decode(stored.messages, type=list[Message])


async def _turn(
    service: Service, body: ResponsesRequest, use: ToolUse, said: Sequence[Message], identity: Identity
) -> Turn:
    grammar = grammar_of_turn(use, service.tokenizer.added_tokens, body.schema_asked_for, "text.format.schema")
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []

    async def begin(messages: Sequence[Message]) -> Turn:
        chat = chat_request(
            messages,
            param="input",
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            logprobs=body.wants_logprobs,
            top_logprobs=body.top_logprobs,
            octavo=body.octavo,
        )
        return await Turn.of(service, chat, use, grammar, identity)

    begin_with = partial(longest_that_fits, begin) if body.truncation == "auto" else begin
    return await begin_with([*instructions, *said])
