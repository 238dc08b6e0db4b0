"""Grammars made to cost: each is refused or compiled in bounded time, and those that come after it are served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from tiny_tokenizer import EOS_ID, write_tokenizer

from octavo.engine import grammar_trial
from octavo.engine.grammar_compiler import GrammarTokenizer
from octavo.engine.grammars import Grammars
from octavo.errors import InvalidRequestError
from octavo.scheduler.rows import Rows

SOUND = LLMatcher.grammar_from_regex("red|green")


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammars]:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_trial, "MAX_COMPILE_SECONDS", 60)  # a busy machine is no reason to fail
        yield Grammars(Rows(4, 64), GrammarTokenizer(folder, 512, [EOS_ID]))


def rules(count: int, body: str, last: str) -> str:
    return "\n".join(["start: r0", *(f"r{n}: " + body.replace("next", f"r{n + 1}") for n in range(count)), last])


def wide(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


RECURSIVE = {
    "$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}},
    "$ref": "#/$defs/n",
}

REGEXES = {
    "nested stars": "(((a+)+)+)+b",
    "ambiguous stars": "(a|a|aa|aaa)*" * 200,
    "nested counts": "(((.{1,1000}){1,1000}){1,1000}){1,1000}",
    "exponential automaton": "(a|b)*a(a|b){500}",
    "thousands of words": "|".join(f"word{number}" for number in range(7000)),
}
LARKS = {
    "left recursion": 'start: start start | "a" |',
    "recursion without an end": "start: a\na: b\nb: a",
    "ambiguity": 'start: e\ne: e e | e e e | "a" |',
    "doubling rules": rules(60, "next next", 'r60: "y"'),
    "thousands of rules": rules(2000, 'next next | "x"', 'r2000: "y"'),
    "doubling terminals": rules(40, "next next", 'r40: "y"').replace("r", "R").replace("staRt", "start"),
}
SCHEMAS: dict[str, Any] = {
    "thousands of properties": {"properties": {f"p{number}": {"type": "string"} for number in range(1000)}},
    "thousands of values": {"enum": [f"value{number}" for number in range(5000)]},
    "doubling objects": wide(7),
    "recursive": RECURSIVE,
    "long items": {"type": "array", "items": {"type": "string"}, "minItems": 10**7},
    "long text": {"type": "string", "maxLength": 10**9},
    "pattern": {"type": "string", "pattern": "^(.*a.{25})$"},
}
BOMBS = (
    {name: LLMatcher.grammar_from_regex(text) for name, text in REGEXES.items()}
    | {name: LLMatcher.grammar_from_lark(text) for name, text in LARKS.items()}
    | {name: LLMatcher.grammar_from_json_schema(json.dumps(schema)) for name, schema in SCHEMAS.items()}
)


@pytest.mark.parametrize("name", BOMBS)
def test_a_grammar_made_to_cost_does_not(grammars: Grammars, name: str) -> None:
    with suppress(InvalidRequestError):  # some are too large, which is found out in time
        grammars.check(BOMBS[name])
    trial = grammars._trial._process
    assert trial is not None
    assert trial.poll() is None
    grammars.check(SOUND)


def test_one_that_takes_too_long_is_given_up_and_the_next_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial, "MAX_COMPILE_SECONDS", 1)
    grammars = Grammars(Rows(4, 64), GrammarTokenizer(write_tokenizer(tmp_path), 512, [EOS_ID]))
    minutes = LLMatcher.grammar_from_regex(".?" * 32_000)
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="takes more than 1 s to compile"):
            grammars.check(minutes)
        grammars.check(SOUND)


def test_a_trial_that_was_killed_fails_nobody(tmp_path: Path) -> None:
    trial = grammar_trial.GrammarTrial(GrammarTokenizer(write_tokenizer(tmp_path), 512, [EOS_ID]))
    trial.check(SOUND)
    assert trial._process is not None
    trial._process.kill()
    trial._process.wait()
    trial.check(SOUND)


@pytest.mark.filterwarnings("error")
def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    trial = grammar_trial.GrammarTrial(GrammarTokenizer(write_tokenizer(tmp_path), 512, [EOS_ID]))
    trial.check(SOUND)
    process = trial._process
    del trial
    assert process is not None
    assert process.poll() is not None
