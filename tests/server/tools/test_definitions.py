"""What clients declare: every bound, each with the field that is at fault."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.server.tools.definitions import (
    Tool,
    ToolChoice,
    parse_parallel_tool_calls,
    parse_tool_choice,
    parse_tools,
    refuse_replaced,
)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def nested(levels: int) -> dict[str, Any]:
    return {"not": nested(levels - 1)} if levels else {}


def test_tools_are_read() -> None:
    sent = [function(description="Does it", parameters=SCHEMA, strict=True), function(name="g-2_X", strict=None)]
    first, second = parse_tools(sent)
    assert first == Tool("f", "Does it", SCHEMA, True)
    assert second == Tool("g-2_X")
    assert first.for_template() == function(description="Does it", parameters=SCHEMA)
    assert second.for_template() == function(name="g-2_X", parameters={"type": "object", "properties": {}})


@pytest.mark.parametrize("value", [None, []])
def test_no_tools(value: object) -> None:
    assert parse_tools(value) == ()


def test_a_schema_without_a_type_is_an_objects() -> None:
    sent = {"properties": {}}
    (tool,) = parse_tools([function(parameters=sent)])
    assert tool.parameters == {"type": "object", "properties": {}}
    assert sent == {"properties": {}}


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({}, "tools: must be a list"),
        ([function(name=f"f{n}") for n in range(129)], "at most 128 functions, not 129"),
        ([function(), function(name="g"), function()], "'f' is there more than once"),
        (["f"], r"tools\[0\]: must be an object of type 'function'"),
        ([function(), {"type": "web_search"}], r"tools\[1\]: must be an object of type 'function'"),
        ([{"type": "function", "name": "f"}], r"tools\[0\]: must have a function"),
        ([function(name=None)], r"tools\[0\].function.name: .* not None"),
        ([function(name="a b")], "not 'a b'"),
        ([function(name="f\n")], r"not 'f\\n'"),
        ([function(name="")], "from 1 to 64"),
        ([function(name="x" * 65)], "from 1 to 64"),
        ([function(name="é")], "not 'é'"),
        ([function(description=1)], "description: must be a text"),
        ([function(description="x" * 4097)], "at most 4096 characters, not 4097"),
        ([function(strict=1)], "strict: must be true or false, not 1"),
        ([function(parameters=[])], "parameters: must be a JSON schema"),
        ([function(parameters={"type": "array"})], "of an object, not of type 'array'"),
        ([function(parameters={"properties": []})], "properties must be an object"),
        ([function(parameters={"required": [1]})], "required must be a list of texts"),
        ([function(parameters=nested(16))], "more than 16 levels deep"),
        ([function(parameters={"title": "x" * 65536})], r"tools\[0\].* at most 65536 bytes of JSON, not 65564"),
        (
            [function(name=f"f{n}", parameters={"title": "x" * 60_000}) for n in range(5)],
            "all schemas together take at most 262144 bytes of JSON, not 300140",
        ),
    ],
)
def test_tools_out_of_bounds_are_refused(tools: object, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_tools(tools)
    assert caught.value.param == "tools"


def test_tools_at_the_bounds_are_taken() -> None:
    assert len(parse_tools([function(name=f"f{n}", description="x" * 4096) for n in range(128)])) == 128
    parse_tools([function(name="x" * 64, parameters={"type": "object", **nested(15)})])


@pytest.mark.parametrize(
    ("value", "tools", "choice"),
    [
        (None, (), ToolChoice("none")),
        (None, (Tool("f"),), ToolChoice("auto")),
        ("none", (), ToolChoice("none")),
        ("none", (Tool("f"),), ToolChoice("none")),
        ("required", (Tool("f"),), ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, (Tool("f"),), ToolChoice("required", "f")),
    ],
)
def test_a_choice_is_read(value: object, tools: tuple[Tool, ...], choice: ToolChoice) -> None:
    assert parse_tool_choice(value, tools) == choice


@pytest.mark.parametrize(
    ("value", "tools", "message"),
    [
        ("any", (Tool("f"),), "must be none, auto, required or a function, not 'any'"),
        (True, (Tool("f"),), "not True"),
        ("auto", (), "'auto' needs tools"),
        ("required", (), "'required' needs tools"),
        ({"type": "function", "function": {"name": "g"}}, (Tool("f"),), "names 'g', which is not among the tools"),
        ({"type": "function", "name": "f"}, (Tool("f"),), "must be of the form"),
        ({"type": "allowed_tools", "function": {"name": "f"}}, (Tool("f"),), "must be of the form"),
    ],
)
def test_other_choices_are_refused(value: object, tools: tuple[Tool, ...], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_tool_choice(value, tools)
    assert caught.value.param == "tool_choice"


def test_parallel_calls_are_allowed_unless_forbidden() -> None:
    assert [parse_parallel_tool_calls(value) for value in (None, True, False)] == [True, True, False]
    with pytest.raises(InvalidRequestError, match="must be true or false, not 1"):
        parse_parallel_tool_calls(1)


@pytest.mark.parametrize(
    ("fields", "new"), [({"functions": [{}]}, "tools"), ({"function_call": "auto"}, "tool_choice")]
)
def test_what_tools_replaced_is_refused_by_name(fields: dict[str, object], new: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"was replaced by {new}") as caught:
        refuse_replaced(fields)
    assert caught.value.param in fields


def test_what_asks_for_nothing_is_not_refused() -> None:
    refuse_replaced({"functions": [], "function_call": "none", "n": 1})
