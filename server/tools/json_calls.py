"""Calls whose arguments are JSON, in any of the forms in which models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from octavo.server.tools.events import Output
from octavo.server.tools.formats import ToolFormat
from octavo.server.tools.json_text import is_json, read_punctuation, read_string, read_value
from octavo.server.tools.source import Reading, Source

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_ARGUMENTS: Final = ("arguments", "parameters")  # models know both words and mix them up
_NOT_NEEDED: Final = ("id", "type")


@dataclass
class _Call:
    """What is known of a call that is being read; ``arguments`` are kept only if they come before the name."""

    name: str = ""
    arguments: str = ""
    started: bool = False


class JsonCalls:
    """Reads calls from their opening on.

    What belongs to a call is handed out or forgotten; what is left in the source is not part of one. All layouts
    are read in every format, since models of one family are trained on another's output.

    Args:
        source: Where the text comes from.
        output: Where calls go.
        format: The marks.
        names: The functions that there are.
    """

    def __init__(self, source: Source, output: Output, format: ToolFormat, names: Collection[str]) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._names = names

    def read(self) -> Reading[None]:
        """Reads what one opening opens."""
        source = self._source
        bare = self._format.bare and source.here == "{"
        if not bare and not (yield from source.take_one_of(self._format.opening)):
            return
        if (yield from self._body()):
            source.drain()
            if self._format.closing:
                yield from self._closing()

    def _body(self) -> Reading[bool]:
        match (yield from self._source.past_space()):
            case "[":
                return (yield from self._array())
            case "{":
                return (yield from self._objects())
            case _:
                return (yield from self._named())

    def _closing(self) -> Reading[None]:
        yield from self._source.past_space()
        if (yield from self._source.take_one_of(self._format.closing)):
            self._source.drain()

    def _array(self) -> Reading[bool]:
        self._source.take()
        while True:
            if (yield from self._source.past_space()) != "{" or not (yield from self._object()):
                return False
            self._source.drain()
            if (yield from self._source.past_space()) == "]":
                self._source.take()
                return True
            if not (yield from read_punctuation(self._source, ",")):
                return False

    def _objects(self) -> Reading[bool]:
        """Objects with semicolons between them, as Llama writes several calls."""
        while (yield from self._object()):
            if not self._format.bare:
                return True
            self._source.drain()
            if (yield from self._source.past_space()) != ";":
                return False  # but nothing more than white space was taken
            self._source.take()
            if (yield from self._source.past_space()) != "{":
                return False
        return False

    def _object(self) -> Reading[bool]:
        """An object with a name and arguments, in whichever order; without arguments it calls with none.

        Until it is certain that it is a call, nothing is handed out.
        """
        source, call = self._source, _Call()
        source.take()
        while (yield from self._member(call)):
            if (yield from source.past_space()) == "}":
                source.take()
                if call.name and not call.started:
                    self._start(call, "{}")
                return call.started
            if not (yield from read_punctuation(source, ",")):
                return False
        return False

    def _member(self, call: _Call) -> Reading[bool]:
        """A key and its value; False if they are not JSON or make the object something else than a call."""
        source = self._source
        key = yield from self._key()
        first = yield from source.past_space()
        if key is not None and (call.started or key in _NOT_NEEDED):
            return (yield from read_value(source))
        if key == "name" and not call.name:
            call.name = yield from self._name()
            if call.name and call.arguments:
                self._start(call, call.arguments)
            return bool(call.name)
        if key not in _ARGUMENTS or call.arguments:
            return False
        if call.name and first == "{":
            self._start(call)
            return (yield from self._stream())
        mark = source.mark
        if (yield from read_value(source)):
            call.arguments = _object_text(source.since(mark))
        if call.name and call.arguments:
            self._start(call, call.arguments)
        return bool(call.arguments)

    def _named(self) -> Reading[bool]:
        source = self._source
        name = yield from self._run(_NAME)
        if name not in self._names:
            return False
        while (yield from source.past_space()) == "[":
            mark = yield from source.take_one_of("[CALL_ID]", "[ARGS]")
            if not mark:
                return False
            if mark == "[CALL_ID]":
                yield from self._run(_NAME)
        if source.here != "{":
            return False
        self._start(_Call(name))
        return (yield from self._stream())

    def _run(self, pattern: re.Pattern[str]) -> Reading[str]:
        mark = self._source.mark
        while (self._source.here or (yield from self._source.more())) and self._source.take_run(pattern):
            pass
        return self._source.since(mark)

    def _key(self) -> Reading[str | None]:
        yield from self._source.past_space()
        key = yield from self._string()
        return key if (yield from read_punctuation(self._source, ":")) else None

    def _string(self) -> Reading[str | None]:
        mark = self._source.mark
        return json.loads(self._source.since(mark)) if (yield from read_string(self._source)) else None

    def _name(self) -> Reading[str]:
        """A string that names a function; otherwise ""."""
        name = yield from self._string()
        return name if name is not None and name in self._names else ""

    def _start(self, call: _Call, arguments: str = "") -> None:
        call.started = True
        self._source.drain()
        self._output.start(call.name)
        self._output.arguments(arguments)

    def _stream(self) -> Reading[bool]:
        """Hands an object out while it comes, as far as it is JSON."""
        self._source.on_wait = self._output.arguments
        complete = yield from read_value(self._source)
        self._source.on_wait = None
        self._output.arguments(self._source.drain())
        return complete


def _object_text(value: str) -> str:
    """The text of an object, also where a model has put it in quotes or written null for none; otherwise ""."""
    if value == "null":
        return "{}"
    text = json.loads(value) if value.startswith('"') else value
    return text if text.lstrip().startswith("{") and is_json(text) else ""
