"""``/v1/completions``: text continues text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.engine.tokenizer import Tokenizer
from octavo.server.generation import Batch, Piece
from octavo.server.protocol import CompletionRequest
from octavo.server.responses import Completion, CompletionChoice, Usage
from octavo.server.routes.answer import Answer
from octavo.server.service import Service, with_default_limit
from octavo.server.strict_json import StrictJsonRoute

DEFAULT_MAX_TOKENS: Final = 16  # OpenAI's


def completions_router(service: Service) -> APIRouter:
    """The route of text completion."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/completions")
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continues one prompt or several."""
        service.check(body)
        sampling = body.sampling()
        # Many short prompts are as much work as a long one.
        size = sum(map(len, body.prompt))
        prompts = [await service.encode_prompt(prompt, size=size) for prompt in body.prompt]
        room = service.engine_info().max_model_len
        batch = service.batch(body, prompts, with_default_limit(sampling, prompts, DEFAULT_MAX_TOKENS, room))
        return await _CompletionAnswer(service.model_name, body, batch, service.tokenizer).respond(request)

    return router


class _CompletionAnswer(Answer[CompletionRequest, CompletionChoice]):
    def __init__(self, model: str, body: CompletionRequest, batch: Batch, tokenizer: Tokenizer) -> None:
        super().__init__("cmpl", model, body, batch)
        self._tokenizer = tokenizer

    def whole(self, pieces: list[Piece]) -> Completion:
        choices = [self._choice(piece, prompt=self._echo(piece.index)) for piece in pieces]
        return self.chunk(choices, self.batch.usage())

    def opening(self) -> Iterable[CompletionChoice]:
        if not (self.body.echo or self.body.return_token_ids):
            return
        for index in range(self.batch.size):
            prompt_token_ids = self.tokens(self.batch.prompt_of(index))
            yield CompletionChoice(index, self._echo(index), prompt_token_ids=prompt_token_ids)

    def delta(self, piece: Piece) -> CompletionChoice:
        return CompletionChoice(
            piece.index, piece.text, piece.finish_reason, piece.stop_reason, token_ids=self.tokens(piece.token_ids)
        )

    def chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None = UNSET) -> Completion:
        return Completion(self.id, self.created, self.model, choices, usage=usage)

    def _choice(self, piece: Piece, prompt: str) -> CompletionChoice:
        return CompletionChoice(
            piece.index,
            prompt + piece.text,
            piece.finish_reason,
            piece.stop_reason,
            token_ids=self.tokens(piece.token_ids),
            prompt_token_ids=self.tokens(self.batch.prompt_of(piece.index)),
        )

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        prompt = self.body.prompt[index // self.batch.n]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special_tokens=False)
