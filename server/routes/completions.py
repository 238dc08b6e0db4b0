"""``/v1/completions``: text continues text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.engine.messages import TokenLogprob
from octavo.engine.tokenizer import Tokenizer
from octavo.server.auth import identity_of
from octavo.server.generation import Batch, Piece
from octavo.server.logprobs import CompletionLogprobs, completion_logprobs
from octavo.server.openapi import STREAMS
from octavo.server.protocol import CompletionRequest
from octavo.server.responses import Completion, CompletionChoice, Usage
from octavo.server.routes.answer import Answer
from octavo.server.service import Service, with_default_limit
from octavo.server.strict_json import StrictJsonRoute

DEFAULT_MAX_TOKENS: Final = 16  # OpenAI's

ScoredToken = tuple[int, TokenLogprob | None]


def completions_router(service: Service) -> APIRouter:
    """The route of text completion."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/v1/completions", responses=STREAMS)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continues one prompt or several."""
        service.check(body)
        sampling = service.sampling(body, await service.grammar(body))
        # Many short prompts are as much work as a long one.
        size = sum(map(len, body.prompt))
        encoded = [await service.encode_prompt(prompt, size=size) for prompt in body.prompt]
        prompts = service.truncated(body, encoded)
        room = service.engine_info().max_model_len
        sampling = with_default_limit(sampling, prompts, DEFAULT_MAX_TOKENS, room)
        batch = service.batch(body, prompts, sampling, identity_of(request))
        return await _CompletionAnswer(service.model_name, body, batch, service.tokenizer).respond(request)

    return router


class _CompletionAnswer(Answer[CompletionRequest, CompletionChoice]):
    def __init__(self, model: str, body: CompletionRequest, batch: Batch, tokenizer: Tokenizer) -> None:
        super().__init__("cmpl", model, body, batch, tokenizer)
        self._offsets: dict[int, int] = {}  # choice -> where its next token begins in its text

    def whole(self, pieces: list[Piece]) -> Completion:
        return self.chunk([self._choice(piece) for piece in pieces], self.batch.usage())

    def opening(self, index: int) -> CompletionChoice | None:
        body = self.body
        if not (body.echo or body.return_token_ids or body.prompt_logprobs is not None):
            return None
        return CompletionChoice(
            index,
            self._echo(index),
            logprobs=self._logprobs(index, self._echoed_tokens(index)),
            prompt_token_ids=self.tokens(self.batch.prompt_of(index)),
            prompt_logprobs=self.prompt_logprobs(index),
        )

    def delta(self, piece: Piece) -> CompletionChoice | None:
        if not (piece.text or piece.finish_reason or piece.logprobs or self.body.return_token_ids):
            return None
        return CompletionChoice(
            piece.index,
            piece.text,
            piece.finish_reason,
            piece.stop_reason,
            self._logprobs(piece.index, list(zip(piece.token_ids, piece.logprobs, strict=False))),
            self.tokens(piece.token_ids),
        )

    def chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None = UNSET) -> Completion:
        return Completion(self.id, self.created, self.model, choices, usage=usage)

    def _choice(self, piece: Piece) -> CompletionChoice:
        scored = [*self._echoed_tokens(piece.index), *zip(piece.token_ids, piece.logprobs, strict=False)]
        return CompletionChoice(
            piece.index,
            self._echo(piece.index) + piece.text,
            piece.finish_reason,
            piece.stop_reason,
            self._logprobs(piece.index, scored),
            self.tokens(piece.token_ids),
            self.tokens(self.batch.prompt_of(piece.index)),
            self.prompt_logprobs(piece.index),
        )

    def _echoed_tokens(self, index: int) -> list[ScoredToken]:
        """The prompt's tokens, if they are part of the answer, with their log-probabilities."""
        if not self.body.echo or self.body.logprobs is None:
            return []
        return list(zip(self.batch.prompt_of(index), self.batch.prompt_logprobs_of(index), strict=True))

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        ids, logprobs = [id for id, _ in scored], [logprob for _, logprob in scored]
        start = self._offsets.get(index, 0)
        told, self._offsets[index] = completion_logprobs(self.tokenizer, ids, logprobs, start)
        return told

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        prompt = self.body.prompt[index // self.batch.n]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, skip_special_tokens=False)
