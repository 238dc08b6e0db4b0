"""An answer as a list of parts, texts and calls: Anthropic's content blocks, and the output items of Responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from octavo.server.tools.events import ArgumentsDelta, CallStart, Content, Event


@dataclass
class Part:
    """A text or a call.

    Attributes:
        index: Its place in the answer.
        call: How the call begins; None for a text.
        pieces: The text, or the call's arguments, as they came.
    """

    index: int
    call: CallStart | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Opened:
    """A part begins."""

    part: Part


@dataclass(frozen=True)
class Grown:
    """More of the part that began last."""

    part: Part
    text: str


@dataclass(frozen=True)
class Closed:
    """The part is complete, or as complete as it will be."""

    part: Part


Change = Opened | Grown | Closed


class Parts:
    """Puts parts together. One is open at a time.

    Attributes:
        all: The parts so far.
    """

    def __init__(self) -> None:
        self.all: list[Part] = []
        self._open: Part | None = None

    def take(self, events: Iterable[Event]) -> Iterator[Change]:
        """What a model's events change."""
        for event in events:
            match event:
                case Content(text) if text:
                    if self._open is None or self._open.call is not None:
                        yield from self._begin(None)
                    yield from self._grow(text)
                case CallStart():
                    yield from self._begin(event)
                case ArgumentsDelta(_, text):
                    yield from self._grow(text)

    def close(self) -> Iterator[Change]:
        """Ends the part that is open."""
        if self._open is not None:
            yield Closed(self._open)
        self._open = None

    def _begin(self, call: CallStart | None) -> Iterator[Change]:
        before, self._open = self._open, Part(len(self.all), call)
        self.all.append(self._open)
        if before is not None:
            yield Closed(before)
        yield Opened(self._open)

    def _grow(self, text: str) -> Iterator[Change]:
        assert self._open is not None
        self._open.pieces.append(text)
        yield Grown(self._open, text)
