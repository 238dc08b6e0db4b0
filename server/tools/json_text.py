"""Reads JSON as it comes, strictly, and takes nothing beyond the value: not even the character that spoils it."""

from __future__ import annotations

import re
from typing import Final

from octavo.server.tools.source import Reading, Source

_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]+')
_HEX: Final = "0123456789abcdefABCDEF"
_LITERALS: Final = {"t": "true", "f": "false", "n": "null"}

_DIGITS: Final = "0123456789"
_EXPONENT: Final = {"e": "e", "E": "e"}
# Where in a number one is → the next character → where one is then.
_NUMBER: Final[dict[str, dict[str, str]]] = {
    "start": {"-": "minus", "0": "zero"} | dict.fromkeys("123456789", "integer"),
    "minus": {"0": "zero"} | dict.fromkeys("123456789", "integer"),
    "zero": {".": "point"} | _EXPONENT,
    "integer": {".": "point"} | _EXPONENT | dict.fromkeys(_DIGITS, "integer"),
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": _EXPONENT | dict.fromkeys(_DIGITS, "fraction"),
    "e": {"+": "sign", "-": "sign"} | dict.fromkeys(_DIGITS, "exponent"),
    "sign": dict.fromkeys(_DIGITS, "exponent"),
    "exponent": dict.fromkeys(_DIGITS, "exponent"),
}
_NUMBER_MAY_END: Final = frozenset({"zero", "integer", "fraction", "exponent"})


def read_value(source: Source) -> Reading[bool]:
    """Takes a value. False where the text cannot go on as JSON: what is taken then is the beginning of a value."""
    due: list[str] = []  # the brackets that close what is open, the innermost last
    while True:
        opening = yield from source.past_space()
        if opening in ("{", "["):
            source.take()
            due.append("}" if opening == "{" else "]")
            if (yield from source.past_space()) != due[-1]:
                if opening == "{" and not (yield from read_key(source)):
                    return False
                continue
        elif not (yield from _read_scalar(source, opening)):
            return False
        # A value is complete, and with it perhaps some of those around it.
        while due and (yield from source.past_space()) == due[-1]:
            source.take()
            due.pop()
        if not due:
            return True
        if not (yield from read_punctuation(source, ",")):
            return False
        if due[-1] == "}" and not (yield from read_key(source)):
            return False


def is_json(text: str) -> bool:
    """Whether a text is one value, by the rules of `read_value`."""
    source = Source()
    source.feed(text)
    source.end()
    try:
        next(read_value(source))
    except StopIteration as found:
        return bool(found.value) and not text[len(source.drain()) :].strip(" \t\r\n")
    raise AssertionError("waits for more than all")


def read_key(source: Source) -> Reading[bool]:
    """Takes a member's key and the colon after it."""
    yield from source.past_space()
    return (yield from read_string(source)) and (yield from read_punctuation(source, ":"))


def read_punctuation(source: Source, character: str) -> Reading[bool]:
    """Takes a comma, a colon or a bracket, and the white space before it."""
    if (yield from source.past_space()) != character:
        return False
    source.take()
    return True


def read_string(source: Source) -> Reading[bool]:
    """Takes a string."""
    if (source.here or (yield from source.more())) != '"':
        return False
    source.take()
    while True:
        source.take_run(_PLAIN)
        character = source.here or (yield from source.more())
        if character == '"':
            source.take()
            return True
        if character == "\\":
            source.take()
            if not (yield from _read_escape(source)):
                return False
        elif character < " ":  # also the end
            return False


def _read_escape(source: Source) -> Reading[bool]:
    character = source.here or (yield from source.more())
    if not character or character not in '"\\/bfnrtu':
        return False
    source.take()
    for _ in range(4 if character == "u" else 0):
        digit = source.here or (yield from source.more())
        if not digit or digit not in _HEX:
            return False
        source.take()
    return True


def _read_scalar(source: Source, first: str) -> Reading[bool]:
    if first == '"':
        return (yield from read_string(source))
    if first in _LITERALS:
        return bool((yield from source.take_one_of(_LITERALS[first])))
    state = "start"
    while (character := source.here or (yield from source.more())) in _NUMBER[state]:
        state = _NUMBER[state][character]
        source.take()
    return state in _NUMBER_MAY_END
