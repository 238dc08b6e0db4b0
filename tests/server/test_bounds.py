"""Every bound from both sides: what is just within it is accepted, what is just beyond it is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from raw_http import Connect, read_answer
from tiny_tokenizer import EOS_ID

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.scheduler.sampling import BIASES, MAX_LOGIT_BIAS, MAX_LOGPROBS, RANGES, Range
from octavo.server import limits
from octavo.server.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_CACHE_SALT_CHARS,
    MAX_CHOICES,
    MAX_COMPLETION_LOGPROBS,
    MAX_GRAMMAR_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_JSON_DEPTH,
    MAX_MESSAGES,
    MAX_PRIORITY,
    MAX_SCHEMA_DEPTH,
    MAX_SEQUENCES,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
)

VOCAB = 512
BODY_BYTES = 1024 * 1024
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "x"}


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    """Its window is wider than any bound, and its answers are short all the same."""
    engine = FakeEngine(vocab_size=VOCAB, max_model_len=2**40, eos=EOS_ID)
    engine.script = tokenizer.encode("fox")
    return engine


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(port=0, max_body_bytes=BODY_BYTES, allowed_hosts=("octavo", "x"))


def neighbours(accepted: Range) -> Iterator[tuple[Any, Any]]:
    """(within, beyond) at both ends: the next whole number, or the next one that there is."""
    if accepted.whole:
        yield accepted.low, accepted.low - 1
        yield accepted.high, accepted.high + 1
    elif accepted.above:
        yield math.nextafter(accepted.low, math.inf), accepted.low
        yield accepted.high, math.nextafter(accepted.high, math.inf)
    else:
        yield accepted.low, math.nextafter(accepted.low, -math.inf)
        yield accepted.high, math.nextafter(accepted.high, math.inf)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


def biases(count: int, bias: float = 1.0) -> dict[str, float]:
    return {str(token): bias for token in range(count)}


# (field, a value just within the bound, one just beyond it) of a completion.
RANGED = [
    (name, within, beyond)
    for name, accepted in RANGES.items()
    if name not in ("beam_width", "logprobs")  # not a field, and with a bound of its own below
    for within, beyond in neighbours(accepted)
]
COUNTED = [
    ("logprobs", 0, -1),
    ("logprobs", MAX_COMPLETION_LOGPROBS, MAX_COMPLETION_LOGPROBS + 1),
    ("priority", MAX_PRIORITY, MAX_PRIORITY + 1),
    ("priority", -MAX_PRIORITY, -MAX_PRIORITY - 1),
    ("truncate_prompt_tokens", 1, 0),
    ("stop", ["x"] * MAX_STOPS, ["x"] * (MAX_STOPS + 1)),
    ("stop", "x" * MAX_STOP_CHARS, "x" * (MAX_STOP_CHARS + 1)),
    ("stop", "x", ""),
    ("stop_token_ids", [5] * MAX_STOP_TOKEN_IDS, [5] * (MAX_STOP_TOKEN_IDS + 1)),
    ("stop_token_ids", [0, VOCAB - 1], [VOCAB]),
    ("stop_token_ids", [0], [-1]),
    ("allowed_token_ids", [5] * MAX_ALLOWED_TOKEN_IDS, [5] * (MAX_ALLOWED_TOKEN_IDS + 1)),
    ("allowed_token_ids", [0, VOCAB - 1], [VOCAB]),
    ("allowed_token_ids", [0], [-1]),
    ("bad_words", ["x"] * MAX_BAD_WORDS, ["x"] * (MAX_BAD_WORDS + 1)),
    ("bad_words", ["x" * MAX_BAD_WORD_CHARS], ["x" * (MAX_BAD_WORD_CHARS + 1)]),
    ("bad_words", ["x"], [""]),
    ("logit_bias", biases(MAX_LOGIT_BIAS), biases(MAX_LOGIT_BIAS + 1)),
    ("logit_bias", {str(VOCAB - 1): 1}, {str(VOCAB): 1}),
    *(("logit_bias", biases(1, within), biases(1, beyond)) for within, beyond in neighbours(BIASES)),
    ("cache_salt", "x" * MAX_CACHE_SALT_CHARS, "x" * (MAX_CACHE_SALT_CHARS + 1)),
    ("guided_regex", "x" * MAX_GRAMMAR_BYTES, "x" * (MAX_GRAMMAR_BYTES + 1)),
    ("guided_grammar", "x" * MAX_GRAMMAR_BYTES, "x" * (MAX_GRAMMAR_BYTES + 1)),
    ("guided_json", {"const": "x" * (MAX_GRAMMAR_BYTES - 13)}, {"const": "x" * (MAX_GRAMMAR_BYTES - 12)}),
    ("guided_json", nested(MAX_SCHEMA_DEPTH), nested(MAX_SCHEMA_DEPTH + 1)),
    ("guided_choice", ["x"] * MAX_CHOICES, ["x"] * (MAX_CHOICES + 1)),
    ("prompt", ["x"] * MAX_SEQUENCES, ["x"] * (MAX_SEQUENCES + 1)),
    ("prompt", [0, VOCAB - 1], [VOCAB]),
    ("prompt", [0], [-1]),
]


def shown(value: object) -> str:
    if isinstance(value, str | list | dict) and len(value) > 24:
        return f"{type(value).__name__}{len(value)}"
    return str(value)


async def check_both_sides(
    http: httpx.AsyncClient, path: str, field: str, within: dict[str, Any], beyond: dict[str, Any]
) -> None:
    accepted = await http.post(path, json=within)
    assert accepted.status_code == 200, accepted.text
    refused = await http.post(path, json=beyond)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field


@pytest.mark.parametrize(("field", "within", "beyond"), [*RANGED, *COUNTED], ids=shown)
async def test_a_bound_of_a_completion(http: httpx.AsyncClient, field: str, within: Any, beyond: Any) -> None:
    given: dict[str, Any] = {"prompt": "x"}
    await check_both_sides(http, COMPLETIONS, field, given | {field: within}, given | {field: beyond})


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("messages", [USER], []),
        ("messages", [USER] * MAX_MESSAGES, [USER] * (MAX_MESSAGES + 1)),
        ("top_logprobs", 0, -1),
        ("top_logprobs", MAX_LOGPROBS, MAX_LOGPROBS + 1),
        ("max_tokens", 1, 0),
    ],
    ids=shown,
)
async def test_a_bound_of_a_conversation(http: httpx.AsyncClient, field: str, within: Any, beyond: Any) -> None:
    given: dict[str, Any] = {"messages": [USER], "logprobs": True}
    await check_both_sides(http, CHAT, field, given | {field: within}, given | {field: beyond})


async def test_sequences_are_counted_over_all_prompts(http: httpx.AsyncClient) -> None:
    given: dict[str, Any] = {"n": MAX_SEQUENCES // 8}
    within, beyond = given | {"prompt": ["x"] * 8}, given | {"prompt": ["x"] * 9}
    await check_both_sides(http, COMPLETIONS, "prompt", within, beyond)


async def test_tokens_to_decode_are_in_the_vocabulary(http: httpx.AsyncClient) -> None:
    for beyond in (-1, VOCAB):
        await check_both_sides(http, "/detokenize", "tokens", {"tokens": [0, VOCAB - 1]}, {"tokens": [beyond]})


@pytest.mark.parametrize(("depth", "status"), [(MAX_JSON_DEPTH, 200), (MAX_JSON_DEPTH + 1, 400)])
async def test_how_deep_a_body_may_be(http: httpx.AsyncClient, depth: int, status: int) -> None:
    body = b'{"prompt": "x", "metadata": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    response = await http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status


@pytest.mark.parametrize(("size", "status"), [(BODY_BYTES, 200), (BODY_BYTES + 1, 413)])
async def test_how_large_a_body_may_be(http: httpx.AsyncClient, size: int, status: int) -> None:
    body = b'{"prompt": "x"}'.ljust(size)
    response = await http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status


@pytest.mark.parametrize(("count", "status"), [(MAX_HEADERS, 200), (MAX_HEADERS + 1, 431)])
def test_how_many_headers_there_may_be(connect: Connect, count: int, status: int) -> None:
    connection = connect()
    more = b"".join(b"x-%d: y\r\n" % number for number in range(count - 2))
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + more + b"\r\n")
    assert read_answer(connection)[0] == status


@pytest.mark.parametrize(("size", "status"), [(MAX_HEADER_BYTES, 200), (MAX_HEADER_BYTES + 1, 431)])
def test_how_large_headers_may_be(connect: Connect, size: int, status: int) -> None:
    connection = connect()
    rest = size - len(b"/health" + b"hostx" + b"connectionclose" + b"x")  # as counted: without what separates them
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"y" * rest + b"\r\n\r\n")
    assert read_answer(connection)[0] == status


def test_no_bound_is_left_out(request: pytest.FixtureRequest) -> None:
    elsewhere = {
        "MAX_CONNECTIONS",  # test_connection.py
        "MAX_INPUTS",  # test_embeddings.py
        "MAX_PIN_SECONDS",  # test_pins.py
        "MAX_METADATA_PAIRS",  # test_responses.py, as the next two
        "MAX_METADATA_KEY_CHARS",
        "MAX_METADATA_VALUE_CHARS",
        "MAX_STORED_RESPONSES",  # test_response_store.py, as the next one
        "MAX_STORED_BYTES",
        "MAX_ENDED_REQUESTS",  # test_open_requests.py
        "MAX_EXPLAINED",  # test_requests.py, as the next one
        "MAX_LISTED_REQUESTS",
        "MAX_IDLE_REQUEST_LINES",  # test_request_log.py
        "MAX_PENDING_SPANS",  # test_tracing.py, as the next three; of queues as such the last one
        "MAX_SPANS_AT_ONCE",
        "MAX_TOLD_STORIES",
        "MAX_QUEUED_SPANS",
        "MAX_LIVE_VIEWERS",  # test_live.py, as the next two
        "MAX_LIVE_BEHIND",
        "MAX_LIVE_PREEMPTIONS",
        "MAX_BLOCK_ID",  # test_ui.py
    }
    bounds = {name for name in vars(limits) if name.startswith("MAX_")}
    assert bounds - elsewhere == bounds & vars(request.module).keys()
