"""What a model may write, as a grammar in llguidance's Lark dialect.

Each function's schema is a grammar of its own behind the literal text that leads to it. So its ``$ref``s keep their
root, and what surrounds the arguments is written exactly as models were taught to write it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo.server.tools.definitions import Tool, ToolChoice
from octavo.server.tools.formats import Layout, ToolFormat
from octavo.server.tools.xml_calls import is_text

# As templates print JSON: on one line. Where white space is free, small models write nothing else.
_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Of one answer that has to call: a small model would otherwise call until its window is full.
MAX_CALLS: Final = 16
_TEXT: Final = r"/(.|\n)*/"


def grammar_for(
    format: ToolFormat,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool,
    added_tokens: Mapping[str, int],
) -> str | None:
    """The grammar of an answer, or None where an answer is free.

    It is free if the model need not call, may call several times, and no function is ``strict``. If only the first
    holds, text is free until a call opens, and from there on the function's schema holds; a call that is to be the
    only one ends the answer. A schema that is not strict is kept as far as llguidance knows its keywords; in a strict
    one it refuses what it does not know, when the grammar is compiled.

    Args:
        format: How this model writes calls.
        tools: The functions that there are.
        choice: Whether the model calls, and which.
        parallel: Several calls may come. Without it, and if the choice names a function, one at most.
        added_tokens: The tokenizer's added tokens, special or not: text → id. A mark that is one of them is that
            token in the grammar, since for llguidance such tokens are no text; other marks are text.
    """
    free = choice.mode == "auto"
    if choice.mode == "none" or (free and parallel and not any(tool.strict for tool in tools)):
        return None
    offered = [tool for tool in tools if choice.name in (None, tool.name)]
    several = parallel and choice.name is None
    marks = _Marks(format, added_tokens)
    start = marks.free(several) if free else marks.required(several)
    return "\n".join(["%llguidance {}", *start, *_calls(format, offered, marks), ""])


@dataclass(frozen=True)
class _Marks:
    """Rules for what surrounds a ``call``: an ``answer`` is calls with their marks, ``opening`` the mark before."""

    format: ToolFormat
    added_tokens: Mapping[str, int]

    def required(self, several: bool) -> Iterator[str]:
        yield f"start: {self._answer(several)}"
        yield f"opening: {self.of(self.format.opening)}"

    def free(self, several: bool) -> Iterator[str]:
        """Text, and calls from wherever they open."""
        mark = self.of(self.format.opening)
        if self.format.bare:
            # A brace at the very beginning opens a call; any other may belong to an example.
            yield f"start: TEXT | {self._answer(several)}"
            yield r"TEXT: /\s*([^\s{](.|\n)*)?/"
            yield f"opening: {mark}"
            return
        array = self.format.layout is Layout.ARRAY
        yield "start: answer* rest" if several else "start: answer | rest"
        yield f"answer: {self._answer(several and array)}"
        if self.format.opening in self.added_tokens:
            other = f"<[^{self.added_tokens[self.format.opening]}]>"
            yield f"opening: {other}* {mark}"
            yield f"rest: {other}*"
        else:
            yield f"opening[lazy]: {_TEXT} {mark}"
            yield f"rest: {_TEXT}"

    def of(self, mark: str) -> str:
        """A mark as a token, if it is one, or as text."""
        return f"<[{self.added_tokens[mark]}]>" if mark in self.added_tokens else _literal(mark)

    def _answer(self, several: bool) -> str:
        match self.format.layout:
            case Layout.ARRAY:
                return f'opening " "? "[" {_repeated("call", ", ", several)} "]"'
            case Layout.NAMED:
                return f"(opening call){f'{{1,{MAX_CALLS}}}' if several else ''}"
            case _ if self.format.bare:
                return f"opening? {_repeated('call', '; ', several)}"
            case _:
                closing = self.of(self.format.closing)
                return _repeated(rf'(opening "\n" call "\n" {closing})', "\n", several)


def _repeated(item: str, separator: str, several: bool) -> str:
    return f"{item} ({_literal(separator)} {item}){{0,{MAX_CALLS - 1}}}" if several else item


def _calls(format: ToolFormat, tools: Sequence[Tool], marks: _Marks) -> Iterator[str]:
    yield "call: " + " | ".join(f"call_{number}" for number in range(len(tools)))
    for number, tool in enumerate(tools):
        match format.layout:
            case Layout.XML:
                yield from _xml_call(number, tool)
                continue
            case Layout.NAMED:
                yield f"call_{number}: {_literal(tool.name)} {marks.of('[ARGS]')} arguments_{number}"
            case _:
                head = f'{{"name": "{tool.name}", "{format.arguments_key}": '
                yield f'call_{number}: {_literal(head)} arguments_{number} "}}"'
        yield f"arguments_{number}: {_json(tool.parameters, tool.strict)}"


def _xml_call(number: int, tool: Tool) -> Iterator[str]:
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    names = list(dict.fromkeys([*properties, *required]))
    parts = [f"value_{number}_{place}{'' if name in required else '?'}" for place, name in enumerate(names)]
    head = _literal(f"<function={tool.name}>\n")
    yield f'call_{number}: {" ".join([head, *parts])} "</function>"'
    for place, name in enumerate(names):
        rule, head = f"value_{number}_{place}", _literal(f"<parameter={name}>\n")
        yield rf'{rule}: {head} {rule}_text "\n"'
        yield from _xml_value(f"{rule}_text", properties.get(name), tool)


def _xml_value(rule: str, schema: object, tool: Tool) -> Iterator[str]:
    """A value up to the mark at its end. Strings have no quotes, and nothing of their schema is kept but ``enum``."""
    end = _literal("\n</parameter>")
    if isinstance(schema, dict) and not is_text(schema):
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        yield f"{rule}: {rule}_json {end}"
        yield f"{rule}_json: {_json({**definitions, **schema}, tool.strict)}"
    elif isinstance(schema, dict) and isinstance(schema.get("enum"), list):
        yield f"{rule}: ({' | '.join(_literal(str(value)) for value in schema['enum'])}) {end}"
    else:
        yield rf"{rule}[lazy]: /(.|\n)*<\/parameter>/"


def _json(schema: Mapping[str, Any], strict: bool) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {**_SPACING, "lenient": not strict}})


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
