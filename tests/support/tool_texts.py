"""Tools, texts in which models call them, and what a parser made of such a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from octavo.server.tools.definitions import Tool
from octavo.server.tools.events import ArgumentsDelta, CallStart, Content
from octavo.server.tools.formats import ToolFormat
from octavo.server.tools.parser import ToolCallParser

WEATHER = Tool(
    "get_weather",
    "The weather at a place",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"enum": ["C", "F"]}},
        "required": ["city"],
    },
)
TIME = Tool("get_time")
TOOLS = (WEATHER, TIME)

Parsed = tuple[str, list[tuple[str, str]]]


def cut(text: str, at: Iterable[int]) -> list[str]:
    """A text in pieces that end at the given places."""
    places = [0, *sorted({place for place in at if place <= len(text)}), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def parsed(format: ToolFormat, pieces: Iterable[str], tools: Sequence[Tool] = TOOLS) -> Parsed:
    """Content, and calls as (name, text of the arguments), after all pieces; events are checked for their order."""
    parser = ToolCallParser(format, tools)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.flush()
    content, calls, ids = [], [], set()
    for event in events:
        match event:
            case Content(text):
                content.append(text)
            case CallStart(index, id, name):
                assert index == len(calls)
                calls.append((name, ""))
                ids.add(id)
            case ArgumentsDelta(index, text):
                assert index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    assert len(ids) == len(calls) == parser.num_calls
    return "".join(content), calls
