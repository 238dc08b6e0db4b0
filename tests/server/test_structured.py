"""What clients may ask an answer to follow: every way to ask, as llguidance then reads it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import llguidance
import pytest
from fake_engine import FakeEngine

from octavo.errors import InvalidRequestError
from octavo.server.limits import MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH
from octavo.server.structured import document_schema, grammar_of

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def bytewise() -> llguidance.LLTokenizer:
    """Every byte is a token."""
    return llguidance.LLTokenizer("byte")


def accepts(tokenizer: llguidance.LLTokenizer, grammar: str | None, text: str) -> bool:
    """Whether a text, taken byte by byte, is all that the grammar asks for."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, ['{"a": [1]}', "{}"], ["[1]", '{"a": }']),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            ['{"n": 5}', '{"n":5}', '{\n  "n": 5\n}'],
            ['{"n": "5"}', "{}", '{"n": 5, "m": 6}', '{"n":' + " " * 40 + "5}", '{"n": 5.5}'],
        ),
        ({"structured_outputs": {"json": SCHEMA}}, ['{"n": 5}'], ["{}"]),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, ['{"n": 5}'], ["{}"]),
        ({"structured_outputs": {"json_object": True}}, ["{}"], ["5"]),
        ({"structured_outputs": {"regex": r"\d{2,3}"}}, ["12", "123"], ["1", "1234", "a"]),
        ({"structured_outputs": {"choice": ["a|b", 'say "x"', "(", "é"]}}, ["a|b", 'say "x"', "(", "é"], ["a", "b"]),
        ({"structured_outputs": {"grammar": 'start: "a" start | "b"'}}, ["b", "aab"], ["a", "ba"]),
        ({"structured_outputs": {"grammar": 'root ::= "a" root | "b"'}}, ["b", "aab"], ["a", "ba"]),
        ({"guided_json": SCHEMA}, ['{"n": 5}'], ["{}"]),
        ({"guided_regex": "x+"}, ["xx"], [""]),
        ({"guided_choice": ["yes", "no"]}, ["yes", "no"], ["maybe"]),
        ({"guided_grammar": 'start: "x"'}, ["x"], ["y"]),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": True}}}, ["1", '{"a": [1]}'], ["a"]),
        ({"guided_json": {"const": 1, "x-guidance": "what is no object"}}, ["1"], ["2"]),
        ({"guided_json": {"oneOf": [{"const": 1}, {"const": "one"}]}}, ["1", '"one"'], ["2"]),
    ],
)
def test_every_way_to_ask(
    bytewise: llguidance.LLTokenizer, fields: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    grammar = grammar_of(fields)
    assert [text for text in good if not accepts(bytewise, grammar, text)] == []
    assert [text for text in bad if accepts(bytewise, grammar, text)] == []


@pytest.mark.parametrize(
    "fields", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": {"json_object": False}}]
)
def test_asking_for_nothing(fields: dict[str, Any]) -> None:
    assert grammar_of(fields) is None


def nested(levels: int) -> dict[str, Any]:
    return {} if levels == 1 else {"items": nested(levels - 1)}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("guided_json", {"description": "x" * MAX_GRAMMAR_BYTES}, "bytes"),
        ("guided_json", nested(MAX_SCHEMA_DEPTH + 1), "levels"),
        ("guided_json", "{", "not JSON"),
        ("guided_json", "[" * 100_000, "not JSON"),
        ("guided_regex", "x" * (MAX_GRAMMAR_BYTES + 1), "bytes"),
        ("guided_regex", "", "not empty"),
        ("guided_choice", ["x"] * (MAX_CHOICES + 1), "at most"),
        ("guided_choice", [], "list of texts"),
        ("guided_choice", ["a", ""], "list of texts"),
        ("guided_json", "false", "JSON schema"),
        ("guided_grammar", "root ::= (", "GBNF"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": False}}, "JSON schema, not False"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}, "schema"),
        ("structured_outputs", {"xml": "x"}, "exactly one"),
    ],
)
def test_what_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        grammar_of({field: value})
    assert (refusal.value.param or "").startswith(field)


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_a_document_beside_tools_has_the_same_schema(schema: Any) -> None:
    document = document_schema({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
    assert document is not None
    assert document.items() >= SCHEMA.items()


def test_bounds_are_met_exactly() -> None:
    assert grammar_of({"guided_regex": "x" * MAX_GRAMMAR_BYTES})
    assert grammar_of({"guided_json": nested(MAX_SCHEMA_DEPTH)})
    assert grammar_of({"guided_choice": ["x"] * MAX_CHOICES})


async def test_a_request_takes_its_grammar_along(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "guided_regex": "a+"}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert engine.seen[-1].sampling.grammar == grammar_of({"guided_regex": "a+"})
    twice = {**body, "response_format": {"type": "json_object"}}
    refusal = (await http.post("/v1/chat/completions", json=twice)).json()["error"]
    assert "send one" in refusal["message"]
    for conflicting in ({"min_tokens": 1}, {"ignore_eos": True}, {"use_beam_search": True}):
        response = await http.post("/v1/chat/completions", json=body | conflicting)
        assert (response.status_code, "grammar decides" in response.text) == (400, True)
