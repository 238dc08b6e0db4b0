"""ToolCallParser: the same content and calls however the text is cut, and nothing of a mark in the content."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_texts import TOOLS, Parsed, cut, parsed

from octavo.server.tools.events import ArgumentsDelta, CallStart, Content
from octavo.server.tools.formats import FORMATS, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, QWEN3_CODER, ToolFormat
from octavo.server.tools.parser import ToolCallParser

EXAMPLES = 30_000 if os.environ.get("OCTAVO_NIGHTLY") == "1" else 1500
PARIS = '{"city": "Paris"}'
ROME = '{"city": "Rome", "days": 3}'
CALL = '{"name": "get_weather", "arguments": ' + PARIS + "}"
LLAMA_CALL = '{"name": "get_weather", "parameters": ' + PARIS + "}"

# Format, text → content, calls.
CASES: dict[str, tuple[ToolFormat, str, Parsed]] = {
    "no call": (HERMES, " Hello <b>you</b> \n", (" Hello <b>you</b> \n", [])),
    "hermes": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", ("", [("get_weather", PARIS)])),
    "text around": (
        HERMES,
        f"I'll look.\n\n<tool_call>\n{CALL}\n</tool_call>\nThere.",
        ("I'll look.\nThere.", [("get_weather", PARIS)]),
    ),
    "several": (
        HERMES,
        f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name":"get_time","arguments":{{}}}}\n</tool_call>\n',
        ("", [("get_weather", PARIS), ("get_time", "{}")]),
    ),
    "braces and marks in strings": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "}\\"</tool_call>{"}}</tool_call>',
        ("", [("get_weather", '{"city": "}\\"</tool_call>{"}')]),
    ),
    "arguments first": (
        HERMES,
        f'<tool_call>{{"arguments": {PARIS}, "name": "get_weather"}}</tool_call>',
        ("", [("get_weather", PARIS)]),
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "get_time"}</tool_call>', ("", [("get_time", "{}")])),
    "escaped name": (
        HERMES,
        '<tool_call>{"name": "get\\u005ftime", "arguments": {}}</tool_call>',
        ("", [("get_time", "{}")]),
    ),
    "arguments twice": (
        HERMES,
        '<tool_call>{"arguments": {}, "arguments": {}, "name": "get_time"}</tool_call>',
        ('<tool_call>{"arguments": {}, "arguments": {}, "name": "get_time"}</tool_call>', []),
    ),
    "arguments in quotes": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
        ("", [("get_weather", PARIS)]),
    ),
    "null for arguments": (
        HERMES,
        '<tool_call>{"arguments": null, "name": "get_time"}</tool_call>',
        ("", [("get_time", "{}")]),
    ),
    "other keys": (
        HERMES,
        f'<tool_call>{{"type": "function", "name": "get_weather", "arguments": {PARIS}, "id": 1}}</tool_call>',
        ("", [("get_weather", PARIS)]),
    ),
    "no closing mark": (HERMES, f"<tool_call>\n{CALL}", ("", [("get_weather", PARIS)])),
    "a list between the marks": (
        HERMES,
        f"<tool_call>[{CALL}, {CALL}]</tool_call>",
        ("", [("get_weather", PARIS)] * 2),
    ),
    "two openings": (HERMES, f"<tool_call><tool_call>{CALL}</tool_call>", ("<tool_call>", [("get_weather", PARIS)])),
    "unknown function": (
        HERMES,
        '<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>',
        ('<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>', []),
    ),
    "arguments that are no object": (
        HERMES,
        '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>',
        ('<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>', []),
    ),
    "arguments in quotes that are no object": (
        HERMES,
        '<tool_call>{"name": "get_time", "arguments": "x"}</tool_call>',
        ('<tool_call>{"name": "get_time", "arguments": "x"}</tool_call>', []),
    ),
    "no JSON": (HERMES, "<tool_call>get weather</tool_call>", ("<tool_call>get weather</tool_call>", [])),
    "JSON ends in the arguments": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": Paris}}</tool_call>',
        ("Paris}}</tool_call>", [("get_weather", '{"city": ')]),
    ),
    "one brace too many": (HERMES, f"<tool_call>{CALL}}}</tool_call>", ("}</tool_call>", [("get_weather", PARIS)])),
    "cut off in the mark": (HERMES, "Well <tool_ca", ("Well <tool_ca", [])),
    "cut off in the name": (HERMES, '<tool_call>{"name": "get_', ('<tool_call>{"name": "get_', [])),
    "cut off in the arguments": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa',
        ("", [("get_weather", '{"city": "Pa')]),
    ),
    "llama3": (LLAMA3, LLAMA_CALL, ("", [("get_weather", PARIS)])),
    "llama3 with its mark": (LLAMA3, f"<|python_tag|>{LLAMA_CALL}", ("", [("get_weather", PARIS)])),
    "llama3 after text": (LLAMA3, f"Let me see.\n{LLAMA_CALL}", ("Let me see.", [("get_weather", PARIS)])),
    "llama3 with several": (
        LLAMA3,
        f'{LLAMA_CALL}; {LLAMA_CALL};\n{LLAMA_CALL}\n{{"name": "get_time", "parameters": {{}}}}',
        ("", [("get_weather", PARIS)] * 3 + [("get_time", "{}")]),
    ),
    "llama3 with several in a sentence": (
        LLAMA3,
        f"So: <|python_tag|>{LLAMA_CALL} {LLAMA_CALL}",
        ("So:", [("get_weather", PARIS)] * 2),
    ),
    "llama3 in a sentence": (LLAMA3, f"Send {LLAMA_CALL}!", (f"Send {LLAMA_CALL}!", [])),
    "llama3 and other JSON": (LLAMA3, '{"city": {"name": "get_time"}}', ('{"city": {"name": "get_time"}}', [])),
    "llama3 and a built-in tool": (
        LLAMA3,
        '<|python_tag|>brave.call(query="x")',
        ('<|python_tag|>brave.call(query="x")', []),
    ),
    "mistral": (
        MISTRAL,
        f'[TOOL_CALLS] [{CALL}, {{"name": "get_time", "arguments": {{}}, "id": "a1b2c3d4e"}}]',
        ("", [("get_weather", PARIS), ("get_time", "{}")]),
    ),
    "mistral and other brackets": (MISTRAL, f"A[0] [TOOL {CALL}", (f"A[0] [TOOL {CALL}", [])),
    "mistral, second call unknown": (
        MISTRAL,
        f'[TOOL_CALLS][{CALL}, {{"name": "sing", "arguments": {{}}}}]',
        (', {"name": "sing", "arguments": {}}]', [("get_weather", PARIS)]),
    ),
    "mistral-args": (
        MISTRAL_ARGS,
        f"Hm.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{ROME}",
        ("Hm.", [("get_weather", PARIS), ("get_weather", ROME)]),
    ),
    "mistral-args whose inner mark was skipped": (
        MISTRAL_ARGS,
        f"[TOOL_CALLS]get_weather{PARIS}",
        ("", [("get_weather", PARIS)]),
    ),
    "mistral-args, unknown function": (MISTRAL_ARGS, "[TOOL_CALLS]sing[ARGS]{}", ("[TOOL_CALLS]sing[ARGS]{}", [])),
    "qwen3-coder": (
        QWEN3_CODER,
        'Now.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nSt. "John\'s"\n\n<b>\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n<parameter=units>\nC\n</parameter>\n</function>\n</tool_call>",
        ("Now.", [("get_weather", '{"city": "St. \\"John\'s\\"\\n\\n<b>", "days": 3, "units": "C"}')]),
    ),
    "qwen3-coder without arguments": (
        QWEN3_CODER,
        "<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
        ("", [("get_time", "{}")]),
    ),
    "qwen3-coder without the outer mark": (
        QWEN3_CODER,
        "<function=get_time>\n<parameter=zone>\n12\n</parameter>\n</function>\n</tool_call>",
        ("", [("get_time", '{"zone": "12"}')]),
    ),
    "qwen3-coder, unknown function": (
        QWEN3_CODER,
        "<tool_call>\n<function=sing>\n</function>",
        ("<tool_call>\n<function=sing>\n</function>", []),
    ),
    "qwen3-coder, cut off in a string": (
        QWEN3_CODER,
        "<function=get_weather><parameter=city>\nPar\n</para",
        ("", [("get_weather", '{"city": "Par\\n</para')]),
    ),
    "qwen3-coder, cut off in a number": (
        QWEN3_CODER,
        "<function=get_weather><parameter=days>\n1",
        ("1", [("get_weather", '{"days": ')]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_text_becomes_content_and_calls(case: str) -> None:
    format, text, expected = CASES[case]
    assert parsed(format, [text]) == expected
    assert parsed(format, text) == expected


# What texts about calls are made of, down to pieces of marks.
FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<", "<tool", "_call>", "[TOOL_CALLS]", "[", "]", "[ARGS]", "[CALL_ID]", "<|"),
    *("<|python_tag|>", "{", "}", "{}", ";", ",", ":", '"', "\\", "\\u00e9", "\n", " ", "\n\n", "é🙂", "0", "-1.5e3"),
    *("get_weather", '{"name": "get_weather", ', '"arguments": ', '"parameters": {', '"city": "Paris"', "true", "nul"),
    *(CALL, LLAMA_CALL, f"[{CALL}]", f"<tool_call>\n{CALL}\n</tool_call>", f"[TOOL_CALLS][{CALL}, "),
    *(f"get_weather[ARGS]{ROME}", "<function=get_weather>\n", "<function=", "</function>"),
    *("<parameter=city>\n", "<parameter=days>", "\n</parameter>\n"),
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=25).map("".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(list(FORMATS.values())), TEXTS, st.lists(st.integers(0, 400), max_size=40))
def test_what_is_found_does_not_depend_on_how_the_text_is_cut(format: ToolFormat, text: str, places: list[int]) -> None:
    whole = parsed(format, [text])
    assert parsed(format, cut(text, places)) == whole
    assert parsed(format, text) == whole


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from([HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS]), TEXTS)
def test_arguments_are_pieces_of_the_text_and_what_is_no_call_stays_as_it_is(format: ToolFormat, text: str) -> None:
    content, calls = parsed(format, [text])
    if not calls:
        assert content == text
    for _, arguments in calls:
        assert arguments in text or arguments == "{}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.builds(
    json.dumps,
    st.dictionaries(st.text(), JSON, max_size=4),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
    separators=st.sampled_from([(",", ":"), (", ", ": ")]),
)


def written(format: ToolFormat, calls: list[str]) -> str:
    if format is MISTRAL_ARGS:
        return "".join(f"[TOOL_CALLS]get_time[ARGS]{arguments}" for arguments in calls)
    objects = [f'{{"name": "get_time", "{format.arguments_key}": {arguments}}}' for arguments in calls]
    if format is MISTRAL:
        return f"[TOOL_CALLS] [{', '.join(objects)}]"
    return "; ".join(objects) if format is LLAMA3 else "\n".join(f"<tool_call>\n{o}\n</tool_call>" for o in objects)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(st.sampled_from([HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS]), st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_any_JSON_comes_through_unchanged(format: ToolFormat, arguments: list[str]) -> None:
    text = written(format, arguments)
    assert parsed(format, text) == ("", [("get_time", one) for one in arguments])


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(st.text(alphabet=st.sampled_from('ab<>/\n =parmet"\\é{') | st.characters(), max_size=60))
def test_any_text_without_its_end_mark_is_a_string_for_qwen3_coder(value: str) -> None:
    if "</parameter>" in value or f"{value}\n</parameter>".index("</parameter>") != len(value) + 1:
        return
    text = f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{value}\n</parameter>\n</function>\n</tool_call>"
    content, [(name, arguments)] = parsed(QWEN3_CODER, text)
    assert (content, name, json.loads(arguments)) == ("", "get_weather", {"city": value})


def test_nothing_of_a_mark_is_shown_before_it_is_known_to_be_none() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push("See \n<tool_") == [Content("See")]
    assert parser.push("call>") == []
    assert parser.push(" no") == []
    assert parser.push("w <") == [Content(" \n<tool_call> now")]
    assert parser.flush() == [Content(" <")]


def test_arguments_are_handed_out_as_they_come() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push('<tool_call>\n{"name": "get_weather", "arguments": ') == []
    (start, delta) = parser.push('{"ci')
    assert isinstance(start, CallStart)
    assert (start.index, start.name, delta) == (0, "get_weather", ArgumentsDelta(0, '{"ci'))
    assert parser.push('ty": "P') == [ArgumentsDelta(0, 'ty": "P')]
    assert parser.push('"}}\n</tool_call>\n') == [ArgumentsDelta(0, '"}')]
    assert parser.flush() == []


def test_values_of_strings_are_handed_out_as_they_come_by_qwen3_coder() -> None:
    parser = ToolCallParser(QWEN3_CODER, TOOLS)
    parser.push("<tool_call>\n<function=get_weather>\n<parameter=city>")
    assert parser.push('\n"Pa') == [ArgumentsDelta(0, '\\"Pa')]
    assert parser.push("ris\n</param") == [ArgumentsDelta(0, "ris")]
    assert parser.push("eter>\n") == [ArgumentsDelta(0, '"')]
    assert parser.push("</function>") == [ArgumentsDelta(0, "}")]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_arguments_may_be_long_and_deep(opening: str) -> None:
    arguments = '{"x": ' + opening * 50_000
    text = '<tool_call>{"name": "get_time", "arguments": ' + arguments
    assert parsed(HERMES, cut(text, range(0, len(text), 7))) == ("", [("get_time", arguments)])
