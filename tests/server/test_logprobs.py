"""Log-probabilities in OpenAI's forms, whole and streamed, of outputs and of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from octavo.engine.tokenizer import Tokenizer

EventsOf = Callable[[str], list[Any]]
HELLO = [{"role": "user", "content": "Hello"}]


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    response = await http.post(path, json={"model": "tiny", **body})
    assert response.status_code == 200, response.text
    return response


async def complete(http: httpx.AsyncClient, **body: Any) -> Any:
    return (await post(http, "/v1/completions", **body)).json()["choices"][0]


async def test_a_chats_tokens(http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.script = tokenizer.encode("größe")
    answer = (await post(http, "/v1/chat/completions", messages=HELLO, logprobs=True, top_logprobs=2)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in content[:-1] for byte in token["bytes"]).decode() == "größe"
    assert [len(token["top_logprobs"]) for token in content] == [2] * len(content)
    assert content[0]["logprob"] == -1.0
    assert content[0]["top_logprobs"][1]["token"] == content[0]["token"]
    assert answer["choices"][0]["logprobs"]["refusal"] is None


async def test_without_top_logprobs_there_are_only_the_tokens_own(http: httpx.AsyncClient) -> None:
    answer = (await post(http, "/v1/chat/completions", messages=HELLO, logprobs=True, max_tokens=1)).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_a_streamed_chats_tokens_are_those_of_the_whole(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, events_of: EventsOf
) -> None:
    engine.script = tokenizer.encode("größe 🙂 x")
    asked = {"messages": HELLO, "logprobs": True, "top_logprobs": 1}
    whole = (await post(http, "/v1/chat/completions", **asked)).json()["choices"][0]["logprobs"]["content"]
    events = events_of((await post(http, "/v1/chat/completions", stream=True, **asked)).text)[:-1]
    streamed = [choice["logprobs"] for event in events for choice in event["choices"]]
    assert [token for part in streamed if part for token in part["content"]] == whole


async def test_a_completions_columns(http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.script = tokenizer.encode("The fox")
    choice = await complete(http, prompt="Hi", logprobs=1, max_tokens=len(engine.script))
    columns = choice["logprobs"]
    assert "".join(columns["tokens"]) == choice["text"] == "The fox"
    starts, tokens = columns["text_offset"], columns["tokens"]
    assert all(choice["text"][start:].startswith(token) for start, token in zip(starts, tokens, strict=True))
    assert columns["token_logprobs"] == [-1.0] * len(engine.script)
    # The token itself is always told, beside the likeliest one.
    assert [top[token] for top, token in zip(columns["top_logprobs"], tokens, strict=True)] == [-1.0] * len(tokens)
    assert {len(top) for top in columns["top_logprobs"]} == {2}


async def test_parts_of_characters_are_told_apart(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = tokenizer.encode("👾")  # in no text that the tokenizer was trained on
    choice = await complete(http, prompt="Hi", logprobs=0, max_tokens=len(engine.script))
    data = "".join(choice["logprobs"]["tokens"]).replace("bytes:", "").replace("\\x", "")
    assert bytes.fromhex(data).decode() == "👾"


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_an_echoed_prompt_has_its_own(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, max_tokens: int
) -> None:
    """What lm-eval's local-completions sends."""
    ids = tokenizer.encode("The quick fox")
    choice = await complete(http, prompt=[ids], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    columns = choice["logprobs"]
    assert len(columns["tokens"]) == len(ids) + max_tokens
    assert columns["token_logprobs"] == [None] + [-1.0] * (len(ids) - 1 + max_tokens)
    assert columns["top_logprobs"][0] is None
    assert choice["text"].startswith("The quick fox")
    assert (choice["text"] == "The quick fox") == (max_tokens == 0)
    assert choice["finish_reason"] == "length"
    usage = (await post(http, "/v1/completions", prompt="Hi", echo=True, max_tokens=max_tokens)).json()["usage"]
    assert usage["completion_tokens"] == max_tokens


async def test_nothing_but_an_echo_may_have_no_tokens(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 0})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


async def test_a_streamed_echo(http: httpx.AsyncClient, tokenizer: Tokenizer, events_of: EventsOf) -> None:
    asked = {"prompt": ["The fox", "It runs"], "echo": True, "logprobs": 2, "max_tokens": 3}
    whole = (await post(http, "/v1/completions", **asked)).json()["choices"]
    events = events_of((await post(http, "/v1/completions", stream=True, **asked)).text)[:-1]
    for index, expected in enumerate(whole):
        parts = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert "".join(part["text"] for part in parts) == expected["text"]
        for column, values in expected["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][column]] == values


async def test_logprobs_end_with_the_stop_string(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script, engine.per_delta = tokenizer.encode("The quick brown fox"), 50
    choice = await complete(http, prompt="Hi", logprobs=0, max_tokens=50, stop="quick", return_token_ids=True)
    assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"]) < len(engine.script)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_prompt_logprobs_by_that_name(http: httpx.AsyncClient, tokenizer: Tokenizer, path: str) -> None:
    asked = {"prompt": "The fox"} if path == "/v1/completions" else {"messages": HELLO}
    answer = (await post(http, path, **asked, prompt_logprobs=1, max_tokens=1, return_token_ids=True)).json()
    holder = answer["choices"][0] if "prompt" in asked else answer
    ids, told = holder["prompt_token_ids"], holder["prompt_logprobs"]
    assert told[0] is None
    assert [list(map(int, place)) for place in told[1:]] == [[id, id + 1] for id in ids[1:]]
    assert told[1][str(ids[1])] == {"logprob": -1.0, "rank": 2, "decoded_token": tokenizer.decode([ids[1]])}


async def test_top_logprobs_need_logprobs(http: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "top_logprobs": 2}
    assert "needs logprobs" in (await http.post("/v1/chat/completions", json=body)).text
