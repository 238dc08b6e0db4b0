"""``/v1/chat/completions``: a conversation gets its next turn."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.server.generation import Piece
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    Usage,
)
from octavo.server.routes.answer import Answer
from octavo.server.service import Service
from octavo.server.strict_json import StrictJsonRoute


def chat_router(service: Service) -> APIRouter:
    """The route of chat completion."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/chat/completions")
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a conversation."""
        service.check(body)
        sampling = body.sampling(max_tokens=body.output_limit)
        prompt = await service.encode_chat(
            body.messages, add_generation_prompt=body.add_generation_prompt, **body.chat_template_kwargs
        )
        batch = service.batch(body, [prompt], sampling)
        return await _ChatAnswer("chatcmpl", service.model_name, body, batch).respond(request)

    return router


class _ChatAnswer(Answer[ChatCompletionRequest, ChatChunkChoice]):
    def whole(self, pieces: list[Piece]) -> ChatCompletion:
        return ChatCompletion(
            self.id,
            self.created,
            self.model,
            [self._choice(piece) for piece in pieces],
            self.batch.usage(),
            prompt_token_ids=self.tokens(self.batch.prompt_of(0)),
        )

    def opening(self) -> Iterable[ChatChunkChoice]:
        return (ChatChunkChoice(index, Delta("assistant", "")) for index in range(self.batch.size))

    def delta(self, piece: Piece) -> ChatChunkChoice:
        return ChatChunkChoice(
            piece.index,
            Delta(content=piece.text or UNSET),
            piece.finish_reason,
            piece.stop_reason,
            token_ids=self.tokens(piece.token_ids),
        )

    def chunk(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> ChatCompletionChunk:
        opens = any(choice.delta.role is not UNSET for choice in choices)
        prompt_token_ids = self.tokens(self.batch.prompt_of(0)) if opens else UNSET
        return ChatCompletionChunk(
            self.id, self.created, self.model, choices, usage=usage, prompt_token_ids=prompt_token_ids
        )

    def _choice(self, piece: Piece) -> ChatChoice:
        return ChatChoice(
            piece.index,
            AssistantMessage(piece.text),
            piece.finish_reason or "stop",
            piece.stop_reason,
            token_ids=self.tokens(piece.token_ids),
        )
