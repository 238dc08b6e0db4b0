"""grammar_for: whatever is sampled under it reads back as the calls that were asked for, with valid arguments."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest
import tiny_tokenizer
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken
from tool_texts import TIME, TOOLS, WEATHER, parsed

from octavo.server.tools.definitions import Tool, ToolChoice
from octavo.server.tools.formats import FORMATS, HERMES, LLAMA3, MISTRAL, QWEN3_CODER, ToolFormat
from octavo.server.tools.grammar import grammar_for

REQUIRED, AUTO = ToolChoice("required"), ToolChoice("auto")
EOS = tiny_tokenizer.EOS_ID


class Sampler:
    """Writes at random what a grammar allows."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos: int = EOS) -> None:
        self.tokenizer = tokenizer
        self.added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._eos = eos
        tokens = [tokenizer.id_to_token(id) or "" for id in range(tokenizer.get_vocab_size())]
        self._ending = np.array([token.startswith(('"', "}", "]", "<")) for token in tokens])
        self._compiled = llguidance.LLTokenizer(tokenizer.to_str(), eos_token=eos)

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._compiled, grammar)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def allowed(self, matcher: llguidance.LLMatcher) -> NDArray[np.intp]:
        return np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8))

    def write(self, grammar: str, random_: random.Random, longest: int = 3000) -> str | None:
        """A text, or None where chance does not come to an end. Quotes, brackets and the end are preferred."""
        matcher, ids = self.matcher(grammar), list[int]()
        while len(ids) < longest:
            allowed = self.allowed(matcher)
            assert len(allowed), matcher.get_error()
            if self._eos in allowed and (len(allowed) == 1 or random_.random() < 0.4):
                return self.tokenizer.decode(ids, skip_special_tokens=False)
            ids.append(self._next(allowed[allowed != self._eos], random_))
            assert matcher.consume_token(ids[-1]), matcher.get_error()
        return None

    def _next(self, allowed: NDArray[np.intp], random_: random.Random) -> int:
        ending = allowed[self._ending[allowed]]
        return int(random_.choice(ending if len(ending) and random_.random() < 0.3 else allowed))

    def takes(self, grammar: str, text: str) -> bool:
        """Whether the whole text, as the tokenizer cuts it, is an answer under the grammar."""
        matcher = self.matcher(grammar)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def with_marks() -> tokenizers.Tokenizer:
    """All marks are tokens, some of them special."""
    tokenizer = tiny_tokenizer.byte_level()
    tokenizer.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("</tool_call>", special=False)])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


@pytest.fixture(scope="module", params=[with_marks, tiny_tokenizer.byte_level])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return Sampler(request.param())


@pytest.fixture(scope="module")
def marked() -> Sampler:
    return Sampler(with_marks())


SCALARS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "enum": ["a", "b c", '"}']},
    {"type": "string", "maxLength": 5},
    {"type": "integer", "minimum": -3, "maximum": 100},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["x", 1, None]},
    {"$ref": "#/$defs/point"},
]
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


def random_schema(random_: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of an object with up to three properties."""
    properties = {name: random_value(random_, depth) for name in random_.sample(["a", "b-c", "été", "d e"], 3)}
    required = [name for name in properties if random_.random() < 0.5]
    closed = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return closed if depth else {**closed, "$defs": {"point": POINT}}


def random_value(random_: random.Random, depth: int) -> dict[str, Any]:
    kind = random_.random()
    if kind < 0.2 and depth < 2:
        return random_schema(random_, depth + 1)
    if kind < 0.35:
        return {"type": "array", "items": random_.choice(SCALARS), "maxItems": 3}
    return dict(random_.choice(SCALARS))


def fits(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a value keeps to a schema, for the keywords that `random_schema` uses."""
    schema = POINT if "$ref" in schema else schema
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "object":
        known = isinstance(value, dict) and value.keys() <= schema["properties"].keys()
        return known and value.keys() >= set(schema["required"]) and all(
            fits(value[name], schema["properties"][name]) for name in value
        )  # fmt: skip
    if schema["type"] == "array":
        return isinstance(value, list) and len(value) <= 3 and all(fits(item, schema["items"]) for item in value)
    types = {"string": str, "integer": int, "number": int | float, "boolean": bool, "null": type(None)}
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    return isinstance(value, types[schema["type"]]) and (not isinstance(value, int) or low <= value <= high)


def read_back(format: ToolFormat, text: str, tools: Sequence[Tool]) -> list[tuple[str, Any]]:
    """The calls of an answer that is nothing but calls."""
    content, calls = parsed(format, text, tools)
    assert content == "", text
    return [(name, json.loads(arguments)) for name, arguments in calls]


NAMES = ["f", "f-1", "f-1_b"]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_random_answers_under_random_schemas_are_calls_that_fit(sampler: Sampler, format: ToolFormat) -> None:
    random_, read = random.Random(format.name), 0
    for seed in range(40):
        tools = [Tool(name, parameters=random_schema(random_)) for name in NAMES[: random_.randrange(1, 4)]]
        parallel = seed % 2 == 0
        choice = REQUIRED if seed % 3 else ToolChoice("required", tools[-1].name)
        grammar = grammar_for(format, tools, choice, parallel=parallel, added_tokens=sampler.added)
        assert grammar is not None
        text = sampler.write(grammar, random_)
        if text is None:
            continue
        read += 1
        calls = read_back(format, text, tools)
        assert len(calls) == 1 or (parallel and choice.name is None and calls)
        for name, arguments in calls:
            assert choice.name in (None, name)
            (tool,) = (tool for tool in tools if tool.name == name)
            assert fits(arguments, tool.parameters), (text, tool)
    assert read >= 20


EXAMPLES = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "mistral-args": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
    "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
    "</tool_call>",
}
AND_ANOTHER = {
    "hermes": "\n" + EXAMPLES["hermes"],
    "llama3": "; " + EXAMPLES["llama3"],
    "mistral": "",
    "mistral-args": EXAMPLES["mistral-args"],
    "qwen3-coder": "\n" + EXAMPLES["qwen3-coder"],
}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_a_required_call_is_written_as_templates_write_it(sampler: Sampler, format: ToolFormat) -> None:
    one = EXAMPLES[format.name]
    two = one + AND_ANOTHER[format.name]
    if format is MISTRAL:
        two = one[:-1] + ", " + one.removeprefix("[TOOL_CALLS] [")
    single = grammar_for(format, TOOLS, REQUIRED, parallel=False, added_tokens=sampler.added)
    several = grammar_for(format, TOOLS, REQUIRED, parallel=True, added_tokens=sampler.added)
    named = grammar_for(format, TOOLS, ToolChoice("required", "get_time"), parallel=True, added_tokens=sampler.added)
    assert single is not None
    assert several is not None
    assert named is not None
    assert (sampler.takes(single, one), sampler.takes(single, two)) == (True, False)
    assert (sampler.takes(several, one), sampler.takes(several, two)) == (True, True)
    assert not sampler.takes(named, one)
    for grammar in (single, several, named):
        assert not sampler.takes(grammar, "Paris is sunny.")
        assert not sampler.takes(grammar, one.replace("city", "town").replace("get_weather", "sing"))


def test_a_mark_that_is_a_token_must_be_that_token(marked: Sampler) -> None:
    grammar = grammar_for(MISTRAL, TOOLS, REQUIRED, parallel=True, added_tokens=marked.added)
    assert grammar is not None
    assert marked.allowed(marked.matcher(grammar)).tolist() == [marked.added["[TOOL_CALLS]"]]


STRICT = (replace(WEATHER, strict=True), TIME)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_with_a_strict_function_text_is_free_and_calls_are_not(
    sampler: Sampler, format: ToolFormat, parallel: bool
) -> None:
    grammar = grammar_for(format, STRICT, AUTO, parallel=parallel, added_tokens=sampler.added)
    assert grammar is not None
    call = EXAMPLES[format.name]
    assert sampler.takes(grammar, "")
    assert sampler.takes(grammar, "Paris, {never} <b>dull</b>\n[0]")
    assert sampler.takes(grammar, call)
    assert not sampler.takes(grammar, call.replace("city", "town"))
    assert not sampler.takes(grammar, call.replace("get_weather", "sing"))
    if format is not LLAMA3:
        assert sampler.takes(grammar, f"Let me see: {call}")
        assert sampler.takes(grammar, f"{call} and {call}") is parallel
        assert not sampler.takes(grammar, f"Let me see: {call.replace('city', 'town')}")


def test_free_text_may_have_other_tokens_that_are_no_text(marked: Sampler) -> None:
    grammar = grammar_for(HERMES, STRICT, AUTO, parallel=True, added_tokens=marked.added)
    assert grammar is not None
    assert marked.takes(grammar, f"<think>Paris, then.\n{EXAMPLES['hermes']}")


@pytest.mark.parametrize("choice", [AUTO, ToolChoice("none")])
def test_an_answer_that_may_be_anything_has_no_grammar(choice: ToolChoice) -> None:
    assert grammar_for(HERMES, TOOLS, choice, parallel=True, added_tokens={}) is None


def test_calls_that_must_not_be_several_are_held_to_one() -> None:
    grammar = grammar_for(HERMES, TOOLS, AUTO, parallel=False, added_tokens={})
    sampler = Sampler(tiny_tokenizer.byte_level())
    assert grammar is not None
    assert sampler.takes(grammar, f"So: {EXAMPLES['hermes']}")
    assert not sampler.takes(grammar, f"{EXAMPLES['hermes']}\n{EXAMPLES['hermes']}")


@pytest.mark.parametrize("strict", [True, False])
def test_an_unknown_keyword_is_refused_where_the_schema_is_strict(sampler: Sampler, strict: bool) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "format": "sonnet"}}}
    tool = Tool("f", parameters=parameters, strict=strict)
    grammar = grammar_for(HERMES, [tool], REQUIRED, parallel=False, added_tokens={})
    error = llguidance.LLMatcher.validate_grammar(grammar)
    assert ("sonnet" in error and not error.startswith("WARNING")) is strict


@pytest.mark.model
@pytest.mark.parametrize("format", [HERMES, QWEN3_CODER], ids=lambda format: format.name)
def test_random_answers_of_the_real_tokenizer_are_calls_that_fit(format: ToolFormat) -> None:
    found = next((Path.home() / ".cache" / "octavo").rglob("tokenizer.json"), None)
    if found is None:
        pytest.skip("the default model is not in the cache")
    tokenizer = tokenizers.Tokenizer.from_file(str(found))
    sampler, random_, read = Sampler(tokenizer, tokenizer.token_to_id("<|im_end|>")), random.Random(3), 0
    for _ in range(25):
        tool = Tool("f", parameters=random_schema(random_))
        grammar = grammar_for(format, [tool], REQUIRED, parallel=False, added_tokens=sampler.added)
        assert grammar is not None
        if (text := sampler.write(grammar, random_, longest=400)) is not None:
            read += 1
            [(_, arguments)] = read_back(format, text, [tool])
            assert fits(arguments, tool.parameters)
    assert read >= 10
