"""``/v1/messages``: the Messages API of Anthropic's clients."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic_core import from_json
from starlette.responses import Response

from octavo.server.auth import identity_of
from octavo.server.errors import envelope
from octavo.server.generation import Piece
from octavo.server.messages_api.objects import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextBlock,
    TextDelta,
    TokenCount,
    ToolUseBlock,
)
from octavo.server.messages_api.request import CountTokensRequest, MessagesRequest
from octavo.server.messages_api.tools import tool_use
from octavo.server.openapi import STREAMS
from octavo.server.parts import Change, Closed, Grown, Opened, Part
from octavo.server.responses import json_response
from octavo.server.routes.parts_answer import PartsAnswer
from octavo.server.service import Service
from octavo.server.streaming import Dialect
from octavo.server.strict_json import StrictJsonRoute
from octavo.server.turn import Turn, grammar_of_turn

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def messages_router(service: Service) -> APIRouter:
    """The routes of the Messages API."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/messages", responses=STREAMS)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Answers a conversation."""
        service.check(body)
        use = tool_use(body, service.tools)
        grammar = grammar_of_turn(use, service.tokenizer.added_tokens, body.schema_asked_for, "output_config")
        turn = await Turn.of(service, body.turn(), use, grammar, identity_of(request))
        return await _MessageAnswer(service.model_name, turn).respond(request, stream=bool(body.stream))

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> Response:
        """Tokens of a conversation."""
        service.check(body)
        use = tool_use(body, service.tools)
        ids = await service.encode_chat(body.chat().messages, use, add_generation_prompt=True)
        return json_response(TokenCount(len(ids)))

    return router


class _MessageAnswer(PartsAnswer):
    def __init__(self, model: str, turn: Turn) -> None:
        super().__init__(f"msg_{uuid.uuid4().hex}", turn)
        self._model = model

    def dialect(self, request: Request) -> Dialect:
        return Dialect(failed=lambda error: [envelope(error, request.scope)], heartbeat=PING)

    def opening(self) -> Iterable[MessageStart]:
        yield MessageStart(Message(self.id, self._model, [], self._usage()))

    def told(self, change: Change, piece: Piece) -> Iterable[BlockStart | BlockDelta | BlockStop]:
        match change:
            case Opened(part):
                yield BlockStart(part.index, _started(part))
            case Grown(part, text):
                yield BlockDelta(part.index, TextDelta(text) if part.call is None else InputDelta(text))
            case Closed(part):
                yield BlockStop(part.index)

    def ending(self, last: Piece) -> Iterable[MessageDelta | MessageStop]:
        yield MessageDelta(StopDelta(*self._stopped_by(last)), self._usage(), self.explanation)
        yield MessageStop()

    def whole(self, last: Piece) -> Message:
        blocks = [_complete(part) for part in self.parts.all]
        stopped_by = self._stopped_by(last)
        return Message(self.id, self._model, blocks, self._usage(), *stopped_by, octavo=self.explanation)

    def _stopped_by(self, last: Piece) -> tuple[str, str | None]:
        if isinstance(last.stop_reason, str):
            return "stop_sequence", last.stop_reason
        return _STOP_REASONS[self.turn.finish_reason(last) or "stop"], None

    def _usage(self) -> MessageUsage:
        usage = self.turn.batch.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(usage.prompt_tokens - cached, cached, usage.completion_tokens)


def _started(part: Part) -> Block:
    return TextBlock("") if part.call is None else ToolUseBlock(part.call.id, part.call.name)


def _complete(part: Part) -> Block:
    if part.call is None:
        return TextBlock(part.text)
    return ToolUseBlock(part.call.id, part.call.name, _object(part.text))


def _object(text: str) -> dict[str, Any]:
    """A call's input. An answer that was cut off ends within it: then it is what had come."""
    try:
        value: dict[str, Any] = from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError:  # numbers of thousands of digits, or half a character's escape: no client could read them either
        return {}
    return value
