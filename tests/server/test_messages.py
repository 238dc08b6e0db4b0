"""Anthropic's Messages API: what its clients send and receive, checked against their own types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, MessageParam, MessageTokensCount, RawMessageStreamEvent, ToolParam
from api_keys import ADA, WRONG, some_keys
from fake_engine import FakeEngine
from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from tiny_tokenizer import EOS_ID

from octavo import errors
from octavo.config import ServerConfig
from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.lifecycle import Lifecycle
from octavo.server.streaming import EventStream

Say = Callable[[str], None]

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME: ToolParam = {"name": "time", "input_schema": {"type": "object"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(eos=EOS_ID, max_model_len=4096)


@pytest.fixture
def prompt(engine: FakeEngine, tokenizer: Tokenizer) -> Callable[[], str]:
    return lambda: tokenizer.decode(unpacked(engine.seen[-1].prompt), skip_special_tokens=False)


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def post(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/messages", json={"messages": HELLO, "max_tokens": 200, **body})


async def answer(http: httpx.AsyncClient, **body: Any) -> Message:
    response = await post(http, **body)
    assert response.status_code == 200, response.text
    return Message.model_validate(response.json(), strict=True)


def check_error(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    told = response.json()
    assert told == {
        "type": "error",
        "error": {"type": kind, "message": told["error"]["message"]},
        "request_id": response.headers["request-id"],
    }
    return str(told["error"]["message"])


def named_events(text: str) -> list[tuple[str, Any]]:
    """Names and data of a stream's events."""
    told = []
    for event in text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        told.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return told


async def test_an_answer(http: httpx.AsyncClient, engine: FakeEngine, say: Say) -> None:
    say("Hello yourself")
    engine.cached_tokens = 3
    message = await answer(http)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello yourself"}]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "tiny")
    assert message.id.startswith("msg_")
    told = message.usage
    sent = engine.seen[-1]
    assert (told.cache_read_input_tokens, told.cache_creation_input_tokens) == (3, 0)
    assert told.input_tokens + 3 == len(unpacked(sent.prompt))
    assert engine.script is not None
    assert told.output_tokens == len(engine.script) + 1


async def test_an_empty_answer_has_no_content(http: httpx.AsyncClient, say: Say) -> None:
    say("")
    assert (await answer(http)).content == []


async def test_parameters_reach_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await answer(http, max_tokens=7, temperature=0.5, top_p=0.25, top_k=9, metadata={"user_id": "me"})
    sampling = engine.seen[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.25, 9)


@pytest.mark.parametrize(
    ("wanted", "reason", "sequence", "text"),
    [
        ({"max_tokens": 2}, "max_tokens", None, None),
        ({"stop_sequences": ["lazy", "fox"]}, "stop_sequence", "fox", "The quick brown "),
    ],
)
async def test_why_it_ended(
    http: httpx.AsyncClient, say: Say, wanted: Any, reason: str, sequence: str | None, text: str | None
) -> None:
    say("The quick brown fox jumps")
    message = await answer(http, **wanted)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert text is None or message.content[0].to_dict()["text"] == text
    streamed = named_events((await post(http, **wanted, stream=True)).text)
    assert streamed[-2][1]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


SYSTEM = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "!"}]


@pytest.mark.parametrize(("system", "text"), [("Be kind.", "Be kind."), (SYSTEM, "Be kind.\n!")])
async def test_instructions_come_first(
    http: httpx.AsyncClient, prompt: Callable[[], str], system: Any, text: str
) -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    await answer(http, system=system, messages=[{"role": "user", "content": parts}])
    assert prompt() == (
        f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nOne\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_calls_become_blocks(http: httpx.AsyncClient, say: Say, prompt: Callable[[], str]) -> None:
    say(f"Let me see. {CALL}\n{OTHER}")
    message = await answer(http, tools=[WEATHER, TIME])
    text, *calls = (block.to_dict() for block in message.content)
    assert text == {"type": "text", "text": "Let me see."}
    assert len({call.pop("id") for call in calls}) == 2
    assert calls == [
        {"type": "tool_use", "name": "weather", "input": {"city": "Köln"}},
        {"type": "tool_use", "name": "time", "input": {}},
    ]
    assert message.stop_reason == "tool_use"
    assert "Tells the weather." in prompt()


async def test_a_call_that_is_cut_off_has_what_had_come(http: httpx.AsyncClient, say: Say) -> None:
    say(CALL.replace("Köln", "Sevilla"))
    seen = set()
    for most in range(30, 70):
        message = await answer(http, tools=[WEATHER], max_tokens=most)
        assert message.stop_reason == "max_tokens"
        seen |= {str(block.to_dict()["input"]) for block in message.content if block.type == "tool_use"}
    assert {"{'city': 'S'}", "{'city': 'Sevilla'}"} <= seen


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"a": ' + "[" * 300 + "]" * 300 + "}"])
async def test_input_that_nobody_can_read_is_empty(http: httpx.AsyncClient, say: Say, arguments: str) -> None:
    say(CALL.replace('{"city": "Köln"}', arguments))
    assert (await answer(http, tools=[WEATHER], max_tokens=2000)).content[0].to_dict()["input"] == {}


async def test_results_go_back_to_the_model(http: httpx.AsyncClient, prompt: Callable[[], str], say: Say) -> None:
    say("Sunny.")
    calls = [
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Köln"}},
        {"type": "tool_use", "id": "b", "name": "time", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "25 degrees"}]},
        {"type": "tool_result", "tool_use_id": "b", "content": "no clock", "is_error": True},
        {"type": "text", "text": "Well?"},
    ]
    told = [*HELLO, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    assert (await answer(http, messages=told, tools=[WEATHER, TIME])).content[0].to_dict()["text"] == "Sunny."
    order = ["Hello", "Wait.", '{"city": "Köln"}', "25 degrees", "Error: no clock", "Well?"]
    assert [text for text in order if text not in prompt()] == []
    assert sorted(order, key=prompt().index) == order


@pytest.mark.parametrize(
    ("choice", "same_as"),
    [
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "time"}, {"tool_choice": {"type": "function", "function": {"name": "time"}}}),
        ({"type": "auto"}, {}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}),
        ({"type": "none"}, {"tool_choice": "none"}),
    ],
)
async def test_tool_choice_is_a_chats(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, choice: Any, same_as: Any
) -> None:
    say(CALL)
    await answer(http, tools=[WEATHER, TIME], tool_choice=choice)
    tools = [{"type": "function", "function": {**tool, "parameters": tool["input_schema"]}} for tool in (WEATHER, TIME)]
    chat = {"messages": HELLO, "tools": tools, "max_tokens": 200, **same_as}
    assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
    ours, theirs = engine.seen[-2:]
    assert (ours.prompt, ours.sampling) == (theirs.prompt, theirs.sampling)


async def test_counted_tokens_are_those_of_the_prompt(http: httpx.AsyncClient, engine: FakeEngine, say: Say) -> None:
    say("x")
    body = {"messages": HELLO, "system": "Be kind.", "tools": [WEATHER]}
    counted = await http.post("/v1/messages/count_tokens", json=body)
    await answer(http, **body)
    assert MessageTokensCount.model_validate(counted.json()).input_tokens == len(unpacked(engine.seen[-1].prompt))
    assert len(engine.seen) == 1


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per_delta", [1, 3, 100])
async def test_a_streams_events_are_anthropics_in_their_order(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, per_delta: int
) -> None:
    say(f"One moment.\n{CALL}\n{OTHER}")
    engine.per_delta = per_delta
    told = named_events((await post(http, tools=[WEATHER, TIME], stream=True)).text)
    for name, event in told:
        STREAM_EVENT.validate_python(event)
        assert name == event["type"]
    order = [f"{name} {event['index']}" if "index" in event else name for name, event in told]
    assert list(dict.fromkeys(order)) == [
        "message_start",
        *(f"content_block_{what} {index}" for index in range(3) for what in ("start", "delta", "stop")),
        "message_delta",
        "message_stop",
    ]
    assert told[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert engine.script is not None
    assert told[-2][1]["usage"]["output_tokens"] == len(engine.script) + 1


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(errors.EngineDeadError("the engine ended"), "overloaded_error"), (ValueError("secret"), "api_error")],
)
async def test_an_error_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, engine: FakeEngine, failure: Exception, kind: str
) -> None:
    engine.failure = failure
    response = await post(http, stream=True)
    told = named_events(response.text)
    assert [name for name, _ in told if name in ("error", "message_stop")] == ["error"]
    error = told[-1][1]
    assert error["error"]["type"] == kind
    assert error["request_id"] == response.headers["request-id"]
    assert "secret" not in response.text


async def test_silence_is_filled_with_pings(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream.__init__, "__kwdefaults__", {"heartbeat": 0.02})
    say("Hi")
    engine.delay = 0.1
    told = named_events((await post(http, stream=True)).text)
    assert told[0] == ("ping", {"type": "ping"})
    assert told[-1][0] == "message_stop"


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────

IMAGE = {"type": "image", "source": {"type": "url", "url": "https://octavo.example/x.png"}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "x"}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "maximum context length is 4096"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": "x" * 2000}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]: must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]: must be an object with a role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: must be a text or a list"),
        (user(IMAGE), "messages[0].content[0]: a block of type 'image' is not supported here: Octavo reads text only"),
        (user({"type": "document"}), "text only"),
        (user({**RESULT, "content": [IMAGE]}), "messages[0].content[0].content[0]: a block of type 'image'"),
        (user({"type": "tool_use", "id": "a", "name": "f", "input": {}}), "'tool_use' is not supported here"),
        (user({"type": "text"}), "messages[0].content[0].text: must be a text"),
        (user({"type": "tool_result", "content": "x"}), "must have the tool_use_id"),
        (user(RESULT), "no call before the result"),
        (user("x"), "messages[0].content[0]"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Sure"}]}, "messages[1]: ends the conversation"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]},
            "messages[1].content[0].input: must be an object",
        ),
        ({"system": [IMAGE]}, "system[0]: a block of type 'image'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking: type must be disabled or adaptive"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers is not supported"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]: a tool of type 'web_search"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is required"),
        ({"tools": ["f"]}, "tools[0]: must be an object"),
        ({"tools": [{"name": "f g", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [TIME], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "g"}}, "'g', which is not among the tools"),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "disable_parallel_tool_use"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format must be of type json_schema"),
    ],
)  # fmt: skip
async def test_what_is_refused(http: httpx.AsyncClient, wanted: dict[str, Any], message: str) -> None:
    assert message in check_error(await post(http, **wanted), 400, "invalid_request_error")


@pytest.mark.parametrize("wanted", [{"thinking": {"type": "adaptive"}}, {"service_tier": "auto"}, {"speed": "fast"}])
async def test_what_asks_for_nothing_passes(http: httpx.AsyncClient, say: Say, wanted: dict[str, Any]) -> None:
    say("x")
    await answer(http, **wanted)
    assert "octavo_http_ignored_fields_total 0.0" in (await http.get("/metrics")).text


async def test_errors_are_anthropics_on_these_routes_alone(
    http: httpx.AsyncClient, engine: FakeEngine, lifecycle: Lifecycle
) -> None:
    check_error(await post(http, model="huge"), 404, "not_found_error")
    check_error(await http.get("/v1/messages"), 405, "invalid_request_error")
    check_error(await http.post("/v1/messages/batches", json={}), 404, "not_found_error")
    declared = {"content-type": "application/json"}
    check_error(await http.post("/v1/messages", content=b"{", headers=declared), 400, "invalid_request_error")
    check_error(await http.post("/v1/messages/count_tokens", json={}), 400, "invalid_request_error")
    check_error(await http.post("/v1/messages", content=b"{}"), 415, "invalid_request_error")
    check_error(await post(http, system="x" * 70_000), 413, "request_too_large")
    forged = await http.post("/v1/messages", json={}, headers={"host": "evil.example"})
    check_error(forged, 403, "permission_error")
    assert "request_id" not in (await http.get("/v1/messagesx")).json()
    engine.refusal = errors.QueueFullError("full")
    for stream in (False, True):
        response = await post(http, stream=stream)
        check_error(response, 429, "rate_limit_error")
        assert response.headers["retry-after"] == "1"
    engine.refusal = ZeroDivisionError("secret")
    assert "secret" not in check_error(await post(http), 500, "api_error")
    lifecycle.stop()
    check_error(await post(http), 503, "overloaded_error")


async def test_a_key_is_needed(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app: FastAPI = build_app(engine, tokenizer, ServerConfig(), model_name="tiny", keys=some_keys())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http:
        for headers in ({}, {"x-api-key": WRONG}):
            check_error(await http.post("/v1/messages", json={}, headers=headers), 401, "authentication_error")
        body = {"messages": HELLO, "max_tokens": 1}
        assert (await http.post("/v1/messages", json=body, headers={"x-api-key": ADA})).status_code == 200
    assert engine.seen[-1].tenant == "ada"


# ── the official client ───────────────────────────────────────────────────────────────────────────────────────


class City(BaseModel):
    city: str


def test_the_client(client: anthropic.Anthropic, say: Say) -> None:
    say("Größe 🙂 done")
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 200}
    message = client.messages.create(**asked)
    assert message.content[0].to_dict()["text"] == "Größe 🙂 done"
    assert message._request_id
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "Größe 🙂 done"
        final = stream.get_final_message()
    assert (final.usage, final.stop_reason) == (message.usage, "end_turn")
    assert client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens == message.usage.input_tokens


def test_the_client_parses_documents(client: anthropic.Anthropic, engine: FakeEngine, say: Say) -> None:
    say('{"city": "Köln"}')
    parsed = client.messages.parse(model="tiny", messages=HELLO, max_tokens=200, output_format=City)
    assert parsed.parsed_output == City(city="Köln")
    assert engine.seen[-1].sampling.grammar is not None


async def test_the_async_client_calls_tools(async_client: anthropic.AsyncAnthropic, say: Say) -> None:
    say(f"Let me see. {CALL}")
    messages = list(HELLO)
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "tools": [WEATHER]}
    async with async_client.messages.stream(messages=messages, **asked) as stream:
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    assert {"text", "input_json", "content_block_stop", "message_stop"} <= set(kinds)
    call = message.content[1]
    assert call.type == "tool_use"
    assert call.input == {"city": "Köln"}
    say("Sunny.")
    messages += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "25 degrees"}]},
    ]
    answered = await async_client.messages.create(messages=messages, **asked)
    assert answered.content[0].to_dict()["text"] == "Sunny."


def test_errors_become_the_clients_own(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 200}
    with pytest.raises(anthropic.NotFoundError, match="huge") as missing:
        client.messages.create(**asked | {"model": "huge"})
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**asked, extra_body={"temperature": 3})
    engine.refusal = errors.QueueFullError("full")
    with pytest.raises(anthropic.RateLimitError, match="full"):
        client.messages.create(**asked, stream=True)
    engine.refusal, engine.failure = None, errors.EngineDeadError("the engine ended")
    with pytest.raises(anthropic.APIStatusError, match="the engine ended"):
        list(client.messages.create(**asked, stream=True))
