"""``/v1/chat/completions``: a conversation gets its next turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.errors import InvalidRequestError
from octavo.server.auth import identity_of
from octavo.server.generation import Piece
from octavo.server.logprobs import ChatLogprobs, chat_logprobs
from octavo.server.openapi import STREAMS
from octavo.server.parts import Parts
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    Function,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from octavo.server.routes.answer import Answer
from octavo.server.service import Service
from octavo.server.strict_json import StrictJsonRoute
from octavo.server.structured import document_schema
from octavo.server.tools.events import ArgumentsDelta, CallStart, Content, Event
from octavo.server.tools.use import ToolUse
from octavo.server.turn import Turn


def chat_router(service: Service) -> APIRouter:
    """The route of chat completion."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/chat/completions", responses=STREAMS)
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a conversation."""
        service.check(body)
        use = ToolUse.of(dict(body), service.tools)
        turn = await Turn.of(service, body, use, await _grammar(service, body, use), identity_of(request))
        return await _ChatAnswer(service, body, turn).respond(request)

    return router


async def _grammar(service: Service, body: ChatCompletionRequest, use: ToolUse) -> str | None:
    """What the answer has to follow: a call, a document, or either."""
    asked, document = await service.grammar(body), document_schema(dict(body))
    if use.tools and asked is not None and document is None:
        raise InvalidRequestError(
            "of what an answer can follow, only response_format can be combined with tools", param="tools"
        )
    return use.grammar(service.tokenizer.added_tokens, document) or asked


class _ChatAnswer(Answer[ChatCompletionRequest, ChatChunkChoice]):
    def __init__(self, service: Service, body: ChatCompletionRequest, turn: Turn) -> None:
        super().__init__("chatcmpl", service.model_name, body, turn.batch, service.tokenizer)
        self._turn = turn

    def whole(self, pieces: list[Piece]) -> ChatCompletion:
        return ChatCompletion(
            self.id,
            self.created,
            self.model,
            [self._choice(piece) for piece in pieces],
            self.batch.usage(),
            prompt_token_ids=self.tokens(self.batch.prompt_of(0)),
            prompt_logprobs=self.prompt_logprobs(0),
        )

    def opening(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index, Delta("assistant", ""))

    def delta(self, piece: Piece) -> ChatChunkChoice | None:
        said = _delta(self._turn.read(piece))
        if not (said.content or said.tool_calls or piece.finish_reason or piece.logprobs or self.body.return_token_ids):
            return None  # the text may yet become a call
        return ChatChunkChoice(
            piece.index,
            said,
            self._turn.finish_reason(piece),
            piece.stop_reason,
            self._logprobs(piece),
            self.tokens(piece.token_ids),
        )

    def chunk(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> ChatCompletionChunk:
        opens = any(choice.delta.role is not UNSET for choice in choices)
        prompt_token_ids = self.tokens(self.batch.prompt_of(0)) if opens else UNSET
        return ChatCompletionChunk(
            self.id, self.created, self.model, choices, usage=usage, prompt_token_ids=prompt_token_ids
        )

    def _choice(self, piece: Piece) -> ChatChoice:
        message = _message(self._turn.read(piece))
        return ChatChoice(
            piece.index,
            message,
            self._turn.finish_reason(piece) or "stop",
            piece.stop_reason,
            self._logprobs(piece),
            self.tokens(piece.token_ids),
        )

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return chat_logprobs(self.tokenizer, piece.token_ids, piece.logprobs) if self.body.logprobs else None


def _delta(events: Sequence[Event]) -> Delta:
    content = "".join(event.text for event in events if isinstance(event, Content))
    calls = [_call_delta(event) for event in events if not isinstance(event, Content)]
    return Delta(content=content or UNSET, tool_calls=calls or UNSET)


def _call_delta(event: CallStart | ArgumentsDelta) -> ToolCallDelta:
    if isinstance(event, CallStart):
        return ToolCallDelta(event.index, Function("", event.name), event.id, "function")
    return ToolCallDelta(event.index, Function(event.text))


def _message(events: Sequence[Event]) -> AssistantMessage:
    parts = Parts()
    deque(parts.take(events), maxlen=0)
    content = "".join(part.text for part in parts.all if part.call is None)
    calls = [ToolCall(p.call.id, Function(p.text, p.call.name)) for p in parts.all if p.call is not None]
    return AssistantMessage(content or None, tool_calls=calls) if calls else AssistantMessage(content)
