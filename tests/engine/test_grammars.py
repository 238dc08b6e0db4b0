"""Grammars: masks follow the tokens, survive forks and preemption, and fail alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories import make_request
from llguidance import LLMatcher
from tiny_tokenizer import EOS_ID, write_tokenizer

from octavo.engine.grammar_compiler import GrammarTokenizer
from octavo.engine.grammars import Grammars
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError
from octavo.scheduler.request import Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams

VOCAB = 512  # more than the tokenizer's, as models pad
COLOURS = LLMatcher.grammar_from_regex("red|green")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Bench:
    """Rows of sequences under grammars, and what may come next in each."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer(folder)
        self.rows = Rows(4, 64)
        self.grammars = Grammars(self.rows, GrammarTokenizer(folder, VOCAB, [EOS_ID]))

    def start(self, text: str = "", *, key: int = 0, index: int = 0, grammar: str | None = COLOURS) -> int:
        prompt = np.array([5, 6], dtype=np.int32)
        request = make_request(key, sampling=SamplingParams(grammar=grammar), limit=64)
        request.prompt = prompt
        output = np.array(self.tokenizer.encode(text), dtype=np.int32)
        return self.rows.occupy(Sequence(request, index, np.concatenate([prompt, output])), 0)

    def say(self, row: int, text: str) -> None:
        for token in self.tokenizer.encode(text):
            self.rows.append(row, token)

    def allowed(self, *rows: int) -> list[set[str]]:
        """What may come next in each constrained row; the end of the output as ``$``."""
        masks = self.grammars.begin(np.array(rows, dtype=np.int32))
        assert masks is not None
        return [
            {"$" if token == EOS_ID else self.tokenizer.decode([token]) for token in np.flatnonzero(mask)}
            for mask in masks.result().numpy()
        ]


@pytest.fixture
def bench(folder: Path) -> Bench:
    return Bench(folder)


def test_masks_follow_the_output(bench: Bench) -> None:
    row, free = bench.start(), bench.start(key=1, grammar=None)
    assert bench.allowed(free, row) == [{"r", "re", "g", "gr"} & bench.allowed(row)[0]]
    bench.say(row, "g")
    assert all("reen".startswith(text) for text in bench.allowed(row)[0])
    bench.say(row, "reen")
    assert bench.allowed(row) == [{"$"}]


def test_without_constrained_rows_there_is_nothing_to_do(bench: Bench) -> None:
    assert bench.grammars.begin(np.array([bench.start(grammar=None)], dtype=np.int32)) is None


def test_siblings_go_their_own_ways(bench: Bench) -> None:
    first, second = bench.start(), bench.start(index=1)
    bench.say(first, "r")
    bench.say(second, "g")
    after_r, after_g = bench.allowed(first, second)
    assert all("ed".startswith(text) for text in after_r)
    assert all("reen".startswith(text) for text in after_g)


def test_a_sequence_that_comes_back_goes_on_where_it_was(bench: Bench) -> None:
    row = bench.start("gree")
    expected = bench.allowed(row)
    assert expected == [{"n"}]
    bench.rows.vacate(bench.rows.owner[row])
    assert bench.allowed(bench.start("gree")) == expected
    for key in range(1, 20):  # as many others as make it forget
        row = bench.start("r", key=key)
        bench.allowed(row)
        bench.rows.vacate(bench.rows.owner[row])
    assert bench.allowed(bench.start("gree")) == expected
    # A step that failed is computed again, and a search that starts over has fewer tokens than before.
    assert bench.allowed(bench.start("gr")) != expected


def test_an_output_that_breaks_the_grammar_fails_alone(bench: Bench) -> None:
    broken, sound = bench.start("blue", key=1), bench.start("gree", key=2)
    assert bench.allowed(broken, sound)[1] == {"n"}
    assert list(bench.grammars.take_failures()) == [bench.rows.stream[broken]]
    assert bench.grammars.take_failures() == {}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: missing", "missing"),
        (LLMatcher.grammar_from_json_schema({"type": "colour"}), "colour"),
        (LLMatcher.grammar_from_regex("(?=x)"), "look"),
        ("", "Empty grammar"),
    ],
)
def test_what_is_no_grammar_is_refused(bench: Bench, grammar: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        bench.grammars.check(grammar)
    assert isinstance(bench.grammars.prepare(grammar).exception(), InvalidRequestError)


def test_a_tokenizer_that_llguidance_cannot_read_is_the_requests_trouble_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    grammars = Grammars(Rows(1, 8), GrammarTokenizer(tmp_path, VOCAB, [EOS_ID]))
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        grammars.check(COLOURS)


def test_compiled_grammars_are_kept_within_a_bound(bench: Bench) -> None:
    for number in range(100):
        bench.grammars.check(LLMatcher.grammar_from_regex(f"x{number}"))
    assert len(bench.grammars._compiled) == 64
