"""How a batch of generations becomes one response, whole or streamed; completions and chat fill in the shapes."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec
from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.server.generation import Batch, Piece
from octavo.server.protocol import GenerationRequest
from octavo.server.responses import Usage
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
    """

    def __init__(self, prefix: str, model: str, body: BodyT, batch: Batch) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.body = body
        self.batch = batch
        options = body.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = self._usage_at_end and bool(options and options.continuous_usage_stats)

    async def respond(self, request: Request) -> Response:
        """Generates, for as long as the client stays."""
        if self.body.stream:
            return await open_stream(request.receive, self._stream())
        pieces = await unless_disconnected(request.receive, self.batch.collect())
        return Response(msgspec.json.encode(self.whole(pieces)), media_type="application/json")

    @abstractmethod
    def whole(self, pieces: list[Piece]) -> msgspec.Struct:
        """The response that is not streamed: each piece is a finished sequence."""

    @abstractmethod
    def opening(self) -> Iterable[ChoiceT]:
        """What a stream says before the first generated text."""

    @abstractmethod
    def delta(self, piece: Piece) -> ChoiceT:
        """What a stream says for one piece."""

    @abstractmethod
    def chunk(self, choices: list[ChoiceT], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """One event of a stream."""

    def tokens(self, ids: list[int]) -> list[int] | UnsetType:
        """Token ids, if the client asked for them."""
        return ids if self.body.return_token_ids else UNSET

    async def _stream(self) -> AsyncGenerator[msgspec.Struct, None]:
        async with aclosing(self.batch.run()) as pieces:
            opened = False
            async for piece in pieces:
                if not opened:
                    opened = True
                    for choice in self.opening():
                        yield self.chunk([choice], self._usage_so_far())
                if piece.text or piece.finish_reason or self.body.return_token_ids:
                    yield self.chunk([self.delta(piece)], self._usage_so_far())
        if self._usage_at_end:
            yield self.chunk([], self.batch.usage())

    def _usage_so_far(self) -> Usage | UnsetType | None:
        if self._usage_always:
            return self.batch.usage()
        return None if self._usage_at_end else UNSET
