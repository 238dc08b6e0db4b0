"""How one turn becomes a response made of parts, whole or streamed; the API's routes fill in the shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

import msgspec
from fastapi import Request
from msgspec import UNSET
from starlette.responses import Response

from octavo.server.generation import Piece
from octavo.server.middleware import request_id_of
from octavo.server.parts import Change, Parts
from octavo.server.request_log import record_of
from octavo.server.responses import Told, json_response
from octavo.server.streaming import Dialect, open_stream, unless_disconnected
from octavo.server.turn import Turn


class PartsAnswer(ABC):
    """One request's answer.

    Args:
        id: The answer's, as its client sees it.
        turn: What was admitted for it: one sequence.

    Attributes:
        explanation: What happened to it, if its client asks; known at its end.
    """

    def __init__(self, id: str, turn: Turn) -> None:
        self.id = id
        self.turn = turn
        self.parts = Parts()
        self.explanation: Told = UNSET

    async def respond(self, request: Request, *, stream: bool) -> Response:
        """Generates, for as long as the client stays."""
        self.turn.batch.names = (self.id, request_id_of(request))
        record_of(request).answering(self.id, self.turn.batch, streamed=stream)
        if stream:
            return await open_stream(request.receive, self._stream(), self.dialect(request))
        piece = await unless_disconnected(request.receive, self._collect())
        deque(self.changes(piece), maxlen=0)
        return json_response(self.whole(piece))

    async def _collect(self) -> Piece:
        (piece,) = await self.turn.batch.collect()
        self.explanation = await self.turn.batch.explanation()
        return piece

    def changes(self, piece: Piece) -> Iterator[Change]:
        """What a piece changes in the answer's parts."""
        yield from self.parts.take(self.turn.read(piece))
        if piece.finish_reason:
            yield from self.parts.close()

    @abstractmethod
    def dialect(self, request: Request) -> Dialect:
        """How a stream looks."""

    @abstractmethod
    def opening(self) -> Iterable[msgspec.Struct]:
        """What a stream says when the first piece has come."""

    @abstractmethod
    def told(self, change: Change, piece: Piece) -> Iterable[msgspec.Struct]:
        """What a stream says of a change that a piece makes."""

    @abstractmethod
    def ending(self, last: Piece) -> Iterable[msgspec.Struct]:
        """What a stream says at its end."""

    @abstractmethod
    def whole(self, last: Piece) -> msgspec.Struct:
        """The response that is not streamed."""

    async def _stream(self) -> AsyncGenerator[msgspec.Struct, None]:
        last: Piece | None = None
        async with aclosing(self.turn.batch.run()) as pieces:
            async for piece in pieces:
                for event in () if last else self.opening():
                    yield event
                for change in self.changes(piece):
                    for event in self.told(change, piece):
                        yield event
                last = piece
        assert last is not None, "a batch ended without a word"
        self.explanation = await self.turn.batch.explanation()
        for event in self.ending(last):
            yield event
