"""Parameters two by two: every pair of values occurs in some request, and each answer keeps all promises at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from pairwise import pairwise

from octavo.engine.tokenizer import Tokenizer

ABSENT = object()

PARAMETERS: dict[str, list[Any]] = {
    "prompt": ["The fox", ["The fox", "It runs"], "ids"],
    "stream": [ABSENT, True],
    "n": [ABSENT, 2],
    "best_of": [ABSENT, 3],
    "max_tokens": [ABSENT, 1, 40],
    "temperature": [ABSENT, 0, 2],
    "top_p": [ABSENT, 0.5],
    "top_k": [ABSENT, -1, 5],
    "min_p": [ABSENT, 0.1],
    "seed": [ABSENT, 7],
    "stop": [ABSENT, "lazy", ["fox", "dog"]],
    "include_stop_str_in_output": [ABSENT, True],
    "stop_token_ids": [ABSENT, [300]],
    "min_tokens": [ABSENT, 1],
    "ignore_eos": [ABSENT, True],
    "presence_penalty": [ABSENT, 1.5],
    "frequency_penalty": [ABSENT, -2],
    "repetition_penalty": [ABSENT, 1.1],
    "logit_bias": [ABSENT, {"5": 3, "6": -100}],
    "allowed_token_ids": [ABSENT, [5, 6]],
    "bad_words": [ABSENT, ["lazy"]],
    "logprobs": [ABSENT, 0, 3],
    "prompt_logprobs": [ABSENT, 1],
    "echo": [ABSENT, True],
    "guided_regex": [ABSENT, "a+"],
    "use_beam_search": [ABSENT, True],
    "return_token_ids": [ABSENT, True],
    "truncate_prompt_tokens": [ABSENT, 2],
    "skip_special_tokens": [ABSENT, False],
    "priority": [ABSENT, -3],
    "cache_salt": [ABSENT, "x"],
    "stream_options": [ABSENT, {"include_usage": True}],
    "user": [ABSENT, "ada"],
}

COMBINATIONS = [  # every pair occurs several times, in different company
    {name: value for name, value in chosen.items() if value is not ABSENT}
    for seed in range(5)
    for chosen in pairwise(PARAMETERS, seed)
]


def contradiction(body: dict[str, Any]) -> str | None:
    """The field that the server has to name, if the request contradicts itself; the server may name another one."""
    chooses = body.get("use_beam_search") or body.get("best_of", 1) > body.get("n", 1)
    if "stream_options" in body and "stream" not in body:
        return "stream_options"
    if chooses and "stop" in body:
        return "stop"
    if chooses and "logprobs" in body:
        return "logprobs"
    if "guided_regex" in body and ("min_tokens" in body or "ignore_eos" in body or "use_beam_search" in body):
        return "grammar"
    return None


def made_consistent(body: dict[str, Any]) -> dict[str, Any]:
    """The same request without what contradicts the rest."""
    body = dict(body)
    while (fault := contradiction(body)) is not None:
        body.pop({"grammar": "guided_regex"}.get(fault, fault))
    return body


def test_every_pair_is_there() -> None:
    assert len(COMBINATIONS) >= 60
    for first, second in combinations(PARAMETERS, 2):
        pairs = product(PARAMETERS[first], PARAMETERS[second])
        there = [(body.get(first, ABSENT), body.get(second, ABSENT)) for body in COMBINATIONS]
        assert [pair for pair in pairs if pair not in there] == []


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
async def test_an_answer_keeps_all_promises(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    events_of: Callable[[str], list[Any]],
    number: int,
) -> None:
    engine.script = tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    engine.per_delta = 1 + number % 4
    body = dict(COMBINATIONS[number])
    if body["prompt"] == "ids":
        body["prompt"] = tokenizer.encode("The fox")
    if contradiction(body):
        refusal = await http.post("/v1/completions", json=body)
        assert refusal.status_code == 400, refusal.text
        assert refusal.json()["error"]["param"]
    body = made_consistent(body)
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, (body, response.text)
    choices = gathered(events_of(response.text)) if body.get("stream") else response.json()["choices"]

    prompts = 2 if isinstance(body["prompt"], list) and isinstance(body["prompt"][0], str) else 1
    assert sorted(choice["index"] for choice in choices) == list(range(prompts * body.get("n", 1)))
    for choice in choices:
        check_choice(body, choice)
    sampling = engine.seen[-1].sampling
    assert sampling.beam_width == (max(body.get("n", 1), body.get("best_of", 1)) if "use_beam_search" in body else 0)
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ):
        assert name not in body or getattr(sampling, name) == body[name]


def check_choice(body: dict[str, Any], choice: dict[str, Any]) -> None:
    """What one choice promises."""
    assert choice["finish_reason"] in ("stop", "length")
    if "stop" in body and choice["finish_reason"] == "stop" and choice["stop_reason"]:
        kept = choice["text"].endswith(choice["stop_reason"])
        assert kept == bool(body.get("include_stop_str_in_output"))
    if "return_token_ids" in body:
        assert len(choice["token_ids"]) <= body.get("max_tokens", 16)
        assert choice["prompt_token_ids"]
        assert "truncate_prompt_tokens" not in body or len(choice["prompt_token_ids"]) == 2
    if "logprobs" in body:
        columns = choice["logprobs"]
        assert len({len(column) for column in columns.values()}) == 1
        if "return_token_ids" in body:
            echoed = len(choice["prompt_token_ids"]) if "echo" in body else 0
            assert len(columns["tokens"]) == echoed + len(choice["token_ids"])
    else:
        assert choice["logprobs"] is None
    assert ("prompt_logprobs" in choice) == ("prompt_logprobs" in body)


def gathered(events: list[Any]) -> list[dict[str, Any]]:
    """A stream's choices as the whole answer would have them."""
    assert events[-1] == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        assert event["id"] == events[0]["id"]
        for part in event["choices"]:
            whole = choices.setdefault(part["index"], {"index": part["index"], "text": "", "logprobs": None})
            assert whole.get("finish_reason") is None, "nothing follows a finish reason"
            whole["text"] += part["text"]
            whole |= {name: part[name] for name in ("finish_reason", "stop_reason")}
            whole |= {name: part[name] for name in ("prompt_token_ids", "prompt_logprobs") if name in part}
            if "token_ids" in part:
                whole["token_ids"] = whole.get("token_ids", []) + part["token_ids"]
            if part["logprobs"] is not None:
                before = whole["logprobs"] or {name: [] for name in part["logprobs"]}
                whole["logprobs"] = {name: before[name] + column for name, column in part["logprobs"].items()}
    return list(choices.values())
