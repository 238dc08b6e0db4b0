"""Finds calls in a model's text, while it comes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from octavo.server.tools.definitions import Tool
from octavo.server.tools.events import Event, Output
from octavo.server.tools.formats import Layout, ToolFormat
from octavo.server.tools.json_calls import JsonCalls
from octavo.server.tools.source import SPACE, Reading, Source
from octavo.server.tools.xml_calls import XmlCalls


class ToolCallParser:
    """Turns text into content and calls. What it finds does not depend on how the text is cut.

    - Arguments are handed out as they come, exactly as the model wrote them (Qwen3-Coder's are made into JSON).
    - A call starts for the client when its function is known and its arguments begin. What comes before is held
      back; if it turns out to be no call (a broken mark, an unknown function, no JSON), it is content, unchanged.
    - If arguments stop being JSON after that, or the text ends in them, the call stays, with its arguments up to
      there: they do not parse, which a client has to expect also of an answer that was cut off. What the model
      wrote from there on is content.
    - White space before a call, and after the last one, is no content.

    Work is proportional to the text's length: nothing is read twice.

    Args:
        format: How this model writes calls.
        tools: The functions that it may call.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        by_name = {tool.name: tool for tool in tools}
        self._source = Source()
        self._output = Output(format)
        self._calls = (
            XmlCalls(self._source, self._output, format, by_name)
            if format.layout is Layout.XML
            else JsonCalls(self._source, self._output, format, by_name.keys())
        )
        self._format = format
        firsts = re.escape(format.opening[0] + ("{" if format.bare else ""))
        self._plain = re.compile(rf"[^{firsts}]*[^ \t\r\n{firsts}]")
        self._reading = self._read()
        next(self._reading)

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""
        return self._output.num_calls

    def push(self, text: str) -> list[Event]:
        """Takes the next piece of text and returns what is now certain."""
        if text:
            self._source.feed(text)
            next(self._reading)
        return self._output.take()

    def flush(self) -> list[Event]:
        """Returns what was held back, once no more text comes."""
        self._source.end()
        with suppress(StopIteration):
            next(self._reading)
        return self._output.take()

    def _read(self) -> Reading[None]:
        source, output = self._source, self._output
        fresh_line, after_call = True, False
        while character := source.here or (yield from source.more()):
            if space := source.take_run(SPACE):
                # It waits for what follows: before a call it is not shown.
                fresh_line = fresh_line or "\n" in space
                continue
            if character == self._format.opening[0] or (character == "{" and self._format.bare and fresh_line):
                before = output.num_calls
                yield from self._calls.read()
                if output.num_calls > before:
                    fresh_line = after_call = True
                if not source.since(0).strip(" \t\r\n"):
                    continue
            elif not source.take_run(self._plain):
                source.take()
            fresh_line = after_call = False
            output.content(source.drain())
        if not after_call:
            output.content(source.drain())
