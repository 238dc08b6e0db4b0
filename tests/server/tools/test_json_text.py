"""read_value: complete exactly where a JSON document is, and never beyond what can still become one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.tools.json_text import is_json, read_value
from octavo.server.tools.source import Source

PIECES = st.sampled_from(
    [*'{}[]:,"\\-+.eE019 \n\tutrfnalsb/', "true", "null", "false", '"a"', '"a":', "1.5e-3", "\\u00e9", "é"]
)


def read(text: str) -> tuple[bool, str]:
    """Whether a value was read to its end, and what was taken; in one piece and by characters it is the same."""
    whole, by_characters = read_pieces([text]), read_pieces(text)
    assert whole == by_characters
    return whole


def read_pieces(pieces: Iterable[str]) -> tuple[bool, str]:
    source = Source()
    reading = read_value(source)
    next(reading)
    try:
        for piece in filter(None, pieces):
            source.feed(piece)
            next(reading)
        source.end()
        next(reading)
    except StopIteration as end:
        return end.value, source.drain()
    raise AssertionError("goes on beyond the end")


def library_takes(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    with suppress(ValueError):
        json.loads(text, parse_constant=refuse)
        return True
    return False


@settings(max_examples=3000, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_agrees_with_the_library(text: str) -> None:
    complete, taken = read(text)
    assert text.startswith(taken)
    if complete:
        assert library_takes(taken)
    assert is_json(text) == library_takes(text) == (complete and taken.rstrip() == text.rstrip(" \t\r\n"))


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("[1, 2}", "[1, 2"),
        ('{"a" 1}', '{"a" '),
        ('{"a": 01}', '{"a": 0'),
        ('["a\nb"]', '["a'),
        (r'["\x"]', '["\\'),
        (r'["\u12g4"]', r'["\u12'),
        ("[tru]", "[tru"),
        ("[1.]", "[1."),
        ("[NaN]", "["),
        ("[1,]", "[1,"),
        ('{"a": 1,}', '{"a": 1,'),
        ("{1: 2}", "{"),
        ("[", "["),
        ("", ""),
    ],
)
def test_stops_before_the_character_that_spoils_it(text: str, taken: str) -> None:
    assert read(text) == (False, taken)
