"""Whatever a small model samples, what it says follows what it was asked to follow."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from schemas import random_schema

from octavo import LLM, SamplingParams
from octavo.engine.llm import RequestOutput
from octavo.errors import InvalidRequestError
from octavo.server.structured import grammar_of

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def llm() -> LLM:
    # A pool that is too small for all, so that some sequences are preempted inside a document.
    return LLM(num_blocks=56, max_num_seqs=32, lookahead=0, watermark_ratio=0.0)


def follow(llm: LLM, fields: list[dict[str, object]], **options: object) -> list[RequestOutput]:
    params = [
        SamplingParams(temperature=1, seed=seed, max_tokens=600, grammar=grammar_of(wanted), **options)
        for seed, wanted in enumerate(fields)
    ]
    # Different from the first token on, so that no two share a block.
    prompts = [
        llm.tokenizer.encode_chat(
            [{"role": "system", "content": f"{seed}."}, {"role": "user", "content": "Invent one."}]
        )
        for seed in range(len(fields))
    ]
    return llm.generate(prompts, params)


def test_documents_of_random_schemas_are_valid(llm: LLM) -> None:
    rng = random.Random(7)
    schemas = [random_schema(rng) for _ in range(200)]
    wanted = [{"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}} for schema in schemas]
    for schema, answer in zip(schemas, follow(llm, wanted), strict=True):
        assert answer.outputs[0].finish_reason == "stop", (schema, answer.text)
        jsonschema.validate(json.loads(answer.text), schema)
    assert llm.stats.num_preemptions > 0


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        ({"structured_outputs": {"regex": r"(ab|c){2,9}\d"}}, re.compile(r"(ab|c){2,9}\d").fullmatch),
        ({"structured_outputs": {"choice": ["yes", "no", "größer"]}}, ["yes", "no", "größer"].__contains__),
        (
            {"structured_outputs": {"grammar": 'start: "(" start ")" | /[a-z]{1,3}/'}},
            re.compile(r"\(*[a-z]{1,3}\)*").fullmatch,
        ),
    ],
)
def test_other_forms_are_followed_by_every_sequence(llm: LLM, wanted: dict[str, object], check: object) -> None:
    for answer in follow(llm, [wanted] * 4, n=3):
        assert [output.text for output in answer.outputs if not check(output.text)] == []
        assert {output.finish_reason for output in answer.outputs} <= {"stop", "length"}


def test_company_changes_nothing_and_is_not_constrained(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=24)
    alone = llm.generate("The capital of France is", greedy)[0].outputs[0].token_ids
    constrained = SamplingParams(temperature=0, max_tokens=24, grammar=grammar_of({"guided_regex": "x{200}"}))
    free, bound = llm.generate(["The capital of France is"] * 2, [greedy, constrained])
    assert free.outputs[0].token_ids == alone
    assert set(bound.text) == {"x"}


def test_what_is_no_schema_is_refused_by_the_engine(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="colour"):
        follow(llm, [{"guided_json": {"type": "colour"}}])
