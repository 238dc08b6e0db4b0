"""Calls as Qwen3-Coder writes them: arguments between marks of their own, which are made into JSON as they come.

<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from octavo.server.tools.definitions import Tool
from octavo.server.tools.events import Output
from octavo.server.tools.formats import ToolFormat
from octavo.server.tools.json_text import is_json
from octavo.server.tools.source import Reading, Source

_NAME: Final = re.compile(r"[^<>\n]+")
_TEXT: Final = re.compile(r"[^\n<]+")
_FUNCTION: Final = "<function="
_END_FUNCTION: Final = "</function>"
_PARAMETER: Final = "<parameter="
_END_PARAMETER: Final = "</parameter>"


class XmlCalls:
    """Reads calls from their opening on; models now and then leave ``<tool_call>`` out.

    A value becomes a string where its schema says so or where there is none; elsewhere it is taken as JSON, and as
    a string if it is no JSON.

    Args:
        source: Where the text comes from.
        output: Where calls go.
        format: The marks.
        tools: The functions that there are, by name.
    """

    def __init__(self, source: Source, output: Output, format: ToolFormat, tools: Mapping[str, Tool]) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._tools = tools

    def read(self) -> Reading[None]:
        """Reads what one opening opens."""
        source = self._source
        opening = yield from source.take_one_of(self._format.opening, _FUNCTION)
        if opening == self._format.opening:
            yield from source.past_space()
            if not (yield from source.take_one_of(_FUNCTION)):
                return
        if opening and (yield from self._function()):
            source.drain()
            yield from source.past_space()
            if (yield from source.take_one_of(self._format.closing)):
                source.drain()

    def _function(self) -> Reading[bool]:
        tool = self._tools.get((yield from self._name()))
        if tool is None:
            return False
        self._source.drain()
        self._output.start(tool.name)
        properties, separator = tool.parameters.get("properties", {}), "{"
        while (mark := (yield from self._inner_mark())) == _PARAMETER:
            key = yield from self._name()
            if not key:
                return False
            self._source.drain()
            self._output.arguments(f"{separator}{_quoted(key)}: ")
            separator = ", "
            if not (yield from self._value(properties.get(key))):
                return False
        if mark:
            self._output.arguments("{}" if separator == "{" else "}")
        return bool(mark)

    def _inner_mark(self) -> Reading[str]:
        yield from self._source.past_space()
        return (yield from self._source.take_one_of(_PARAMETER, _END_FUNCTION))

    def _name(self) -> Reading[str]:
        """What stands before the next ">"; "" if there is none on this line."""
        source = self._source
        mark = source.mark
        while (character := source.here or (yield from source.more())) and source.take_run(_NAME):
            pass
        name = source.since(mark)
        if character != ">":
            return ""
        source.take()
        return name

    def _value(self, schema: object) -> Reading[bool]:
        if is_text(schema):
            self._output.arguments('"')
            complete = yield from self._text(streamed=True)
            self._output.arguments('"' if complete is not None else "")
            return complete is not None
        text = yield from self._text(streamed=False)
        if text is not None:
            self._output.arguments(text if is_json(text) else _quoted(text))
        return text is not None

    def _text(self, streamed: bool) -> Reading[str | None]:
        """The text up to the parameter's end, without the line breaks around it; None if the end does not come."""
        source = self._source
        if (source.here or (yield from source.more())) == "\n":
            source.take()
            source.drain()
        pieces: list[str] = []
        while source.here or (yield from source.more()):
            ended = not source.take_run(_TEXT) and (
                yield from source.take_one_of(f"\n{_END_PARAMETER}", _END_PARAMETER)
            )
            if ended:
                source.drain()
                return "".join(pieces)
            text = source.drain()
            if streamed:
                self._output.arguments(_quoted(text)[1:-1])
            else:
                pieces.append(text)
        # The end of the answer: what was held for its sake is shown.
        self._output.content("".join(pieces))
        return None


def is_text(schema: object) -> bool:
    """Whether a value is a string and written without quotes: where the schema says so, or says nothing."""
    if not isinstance(schema, dict):
        return True
    choices = schema.get("enum")
    return schema.get("type") == "string" or (isinstance(choices, list) and all(isinstance(c, str) for c in choices))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
