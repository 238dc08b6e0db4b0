"""/v1/chat/completions: messages, templates, streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer

EventsOf = Callable[[str], list[Any]]
HELLO = [{"role": "user", "content": "Hello"}]


async def chat(http: httpx.AsyncClient, messages: Any = HELLO, **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, **body})


async def test_an_answer(http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.script = tokenizer.encode("Hi there")
    answer = (await chat(http)).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"content": "Hi there", "role": "assistant", "refusal": None}
    assert choice["finish_reason"] == "stop"
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert unpacked(engine.seen[0].prompt) == tokenizer.encode(rendered, add_special_tokens=False)
    assert answer["usage"]["prompt_tokens"] == len(unpacked(engine.seen[0].prompt))


async def test_content_may_come_in_text_parts(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await chat(http, [{"role": "user", "content": parts}], max_tokens=1)
    await chat(http, [{"role": "user", "content": "one\ntwo"}], max_tokens=1)
    assert unpacked(engine.seen[0].prompt) == unpacked(engine.seen[1].prompt)


async def test_developer_is_the_newer_name_of_system(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for role in ("developer", "system"):
        await chat(http, [{"role": role, "content": "Be brief."}, *HELLO], max_tokens=1)
    assert unpacked(engine.seen[0].prompt) == unpacked(engine.seen[1].prompt)


async def test_every_role_is_accepted(http: httpx.AsyncClient) -> None:
    roles = ["system", "developer", "user", "assistant", "tool"]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [{"role": role, "content": "x", "name": "n"} for role in roles]
    messages[3]["tool_calls"], messages[4]["tool_call_id"] = [call], "1"
    assert (await chat(http, messages, max_tokens=1)).status_code == 200


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit(http: httpx.AsyncClient, field: str) -> None:
    answer = (await chat(http, **{field: 3})).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_without_a_limit_the_window_is_one(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await chat(http)).json()
    assert answer["usage"]["total_tokens"] == engine.info.max_model_len


async def test_a_stream(http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, events_of: EventsOf) -> None:
    engine.script = tokenizer.encode("Größe 🙂")
    response = await chat(http, stream=True, n=2, stream_options={"include_usage": True})
    *chunks, usage, done = events_of(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2 * (len(engine.script) + 1)
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in chunks)
    for index in range(2):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in part["delta"] for part in parts[1:])
        assert "".join(part["delta"].get("content", "") for part in parts) == "Größe 🙂"
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]


async def test_token_ids_are_returned_on_request(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf
) -> None:
    whole = (await chat(http, max_tokens=3, return_token_ids=True)).json()
    prompt = unpacked(engine.seen[0].prompt)
    assert whole["prompt_token_ids"] == prompt
    assert whole["choices"][0]["token_ids"] == prompt[:3]
    chunks = events_of((await chat(http, max_tokens=3, return_token_ids=True, stream=True)).text)[:-1]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [prompt, None, None, None]
    assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == prompt[:3]


async def test_the_last_turn_can_be_left_open(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(http, max_tokens=1, add_generation_prompt=False, chat_template_kwargs={"enable_thinking": False})
    assert unpacked(engine.seen[0].prompt)[-2] == engine.eos


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([{"role": "bot", "content": "x"}], "messages[0].role", "system, developer, user, assistant, tool"),
        ([*HELLO, {"role": ["user"], "content": "x"}], "messages[1].role", "unknown role"),
        ([{"content": "x"}], "messages[0].role", "is required"),
        ([{"role": "user"}], "messages[0]", "content is required"),
        ([{"role": "user", "content": 5}], "messages[0].content", "text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}],
         "messages[0].content", "'image_url' is not supported: Octavo reads text only"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content", "text only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content", "must have a text"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "messages", "tool_calls[0]: must be"),
        ([], "messages", "at least 1"),
        ("Hello", "messages", "list"),
        (["Hello"], "messages[0]", "object"),
        ([{"role": "assistant", "content": "x"}], "messages", "an assistant cannot begin"),
        ([{"role": "tool", "content": "x"}], "messages", "must have the tool_call_id"),
        ([{"role": "assistant"}], "messages[0]", "content is required"),
    ],
)  # fmt: skip
async def test_messages_that_are_refused(http: httpx.AsyncClient, messages: Any, param: str, words: str) -> None:
    response = await chat(http, messages)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


async def test_two_limits_that_differ_are_refused(http: httpx.AsyncClient) -> None:
    response = await chat(http, max_tokens=3, max_completion_tokens=4)
    assert response.status_code == 400
    assert "two names of one limit" in response.json()["error"]["message"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_of_nothing_is_refused(http: httpx.AsyncClient, field: str) -> None:
    assert (await chat(http, **{field: 0})).status_code == 400


async def test_template_variables_are_an_allow_list(http: httpx.AsyncClient) -> None:
    for variables in ({"messages": []}, {"bos_token": "x"}, {"enable_thinking": [1]}, 3):
        response = await chat(http, chat_template_kwargs=variables)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chat_template_kwargs"
