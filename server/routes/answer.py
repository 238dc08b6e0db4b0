"""How a batch of generations becomes one response, whole or streamed; completions and chat fill in the shapes."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec
from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.engine.tokenizer import Tokenizer
from octavo.server.generation import Batch, Piece
from octavo.server.logprobs import PromptLogprob, prompt_logprobs
from octavo.server.middleware import request_id_of
from octavo.server.protocol import GenerationRequest
from octavo.server.request_log import record_of
from octavo.server.responses import Told, Usage, json_response
from octavo.server.streaming import open_stream, unless_disconnected

BodyT = TypeVar("BodyT", bound=GenerationRequest)
ChoiceT = TypeVar("ChoiceT", bound=msgspec.Struct)


class Answer(ABC, Generic[BodyT, ChoiceT]):
    """One request's answer.

    Args:
        prefix: What the answer's id begins with.
        model: The model's name, as clients use it.
        body: The request.
        batch: What was admitted for it.
        tokenizer: Names tokens, where log-probabilities are asked for.
    """

    def __init__(self, prefix: str, model: str, body: BodyT, batch: Batch, tokenizer: Tokenizer) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.body = body
        self.batch = batch
        self.tokenizer = tokenizer
        options = body.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = self._usage_at_end and bool(options and options.continuous_usage_stats)

    async def respond(self, request: Request) -> Response:
        """Generates, for as long as the client stays."""
        self.batch.names = (self.id, request_id_of(request))
        record_of(request).answering(self.id, self.batch, streamed=bool(self.body.stream))
        if self.body.stream:
            return await open_stream(request.receive, self._stream())
        pieces, told = await unless_disconnected(request.receive, self._collect())
        return json_response(explained(self.whole(pieces), told))

    async def _collect(self) -> tuple[list[Piece], Told]:
        pieces = await self.batch.collect()
        return pieces, await self.batch.explanation()

    @abstractmethod
    def whole(self, pieces: list[Piece]) -> msgspec.Struct:
        """The response that is not streamed: each piece is a finished sequence."""

    @abstractmethod
    def opening(self, index: int) -> ChoiceT | None:
        """What a stream says of a choice before its first generated text, if anything."""

    @abstractmethod
    def delta(self, piece: Piece) -> ChoiceT | None:
        """What a stream says for one piece, if anything."""

    @abstractmethod
    def chunk(self, choices: list[ChoiceT], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """One event of a stream."""

    def tokens(self, ids: list[int]) -> list[int] | UnsetType:
        """Token ids, if the client asked for them."""
        return ids if self.body.return_token_ids else UNSET

    def prompt_logprobs(self, index: int) -> list[dict[int, PromptLogprob] | None] | UnsetType:
        """Log-probabilities of the prompt that a choice continues, if the client asked for them by that name."""
        if self.body.prompt_logprobs is None:
            return UNSET
        return prompt_logprobs(self.tokenizer, self.batch.prompt_of(index), self.batch.prompt_logprobs_of(index))

    async def _stream(self) -> AsyncGenerator[msgspec.Struct, None]:
        async with aclosing(self.batch.run()) as pieces:
            opened: set[int] = set()
            async for piece in pieces:
                if piece.index not in opened:
                    opened.add(piece.index)
                    if (choice := self.opening(piece.index)) is not None:
                        yield self.chunk([choice], self._usage_so_far())
                if (choice := self.delta(piece)) is not None:
                    yield self.chunk([choice], self._usage_so_far())
        told = await self.batch.explanation()
        if self._usage_at_end or told is not UNSET:
            yield explained(self.chunk([], self.batch.usage() if self._usage_at_end else UNSET), told)

    def _usage_so_far(self) -> Usage | UnsetType | None:
        if self._usage_always:
            return self.batch.usage()
        return None if self._usage_at_end else UNSET


def explained(answer: msgspec.Struct, told: Told) -> msgspec.Struct:
    """The answer with what happened to it, if that was asked for."""
    return answer if told is UNSET else msgspec.structs.replace(answer, octavo=told)
