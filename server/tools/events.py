"""What a model's text turns into: content and calls, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from octavo.server.tools.formats import ToolFormat


@dataclass(frozen=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins: the ``index``-th of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of a call's arguments; all of them, joined, are the text of a JSON object."""

    index: int
    text: str


Event = Content | CallStart | ArgumentsDelta


class Output:
    """Collects events.

    Attributes:
        num_calls: Calls begun so far.
    """

    def __init__(self, format: ToolFormat) -> None:
        self.num_calls = 0
        self._format = format
        self._events: list[Event] = []

    def content(self, text: str) -> None:
        """Adds text for the reader."""
        if text:
            self._events.append(Content(text))

    def start(self, name: str) -> None:
        """Begins a call."""
        self._events.append(CallStart(self.num_calls, self._format.new_id(), name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """Adds to the arguments of the call that began last."""
        if text:
            self._events.append(ArgumentsDelta(self.num_calls - 1, text))

    def take(self) -> list[Event]:
        """The events since the last time, neighbours of one kind joined."""
        events, self._events = self._events, []
        return list(_joined(events)) if len(events) > 1 else events


def _joined(events: list[Event]) -> Iterator[Event]:
    # Two calls' arguments are never neighbours: a start lies between them.
    for kind, group in groupby(events, type):
        same = list(group)
        match same[0]:
            case Content():
                yield Content("".join(event.text for event in same if isinstance(event, Content)))
            case ArgumentsDelta(index, _):
                yield ArgumentsDelta(index, "".join(e.text for e in same if isinstance(e, ArgumentsDelta)))
            case _:
                assert kind is CallStart
                yield from same
