"""OpenAI's Responses API: what its clients send and receive, checked against their own types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from api_keys import ADA, GRACE, bearer, some_keys
from fake_engine import FakeEngine
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from tiny_tokenizer import EOS_ID

from octavo import errors
from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.server.keys import Keys
from octavo.server.streaming import EventStream

EventsOf = Callable[[str], list[Any]]
Say = Callable[[str], None]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS}
TIME = {"type": "function", "name": "time"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(eos=EOS_ID, max_model_len=4096)


@pytest.fixture
def prompt(engine: FakeEngine, tokenizer: Tokenizer) -> Callable[[], str]:
    return lambda: tokenizer.decode(unpacked(engine.seen[-1].prompt), skip_special_tokens=False)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def post(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    body = {"input": "Hello", "max_output_tokens": 200, **body}
    return await http.post("/v1/responses", json=body, headers=headers or {})


async def answer(http: httpx.AsyncClient, **body: Any) -> Response:
    response = await post(http, **body)
    assert response.status_code == 200, response.text
    return Response.model_validate(response.json())


async def stream(http: httpx.AsyncClient, events_of: EventsOf, **body: Any) -> list[Any]:
    """A stream's events, each of them valid and numbered, the last of them the only end."""
    text = (await post(http, stream=True, **body)).text
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    events = [STREAM_EVENT.validate_python(event) for event in events_of(text.replace("\ndata: ", "\n\ndata: "))]
    assert names == [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events if event.type in TERMINAL] == [events[-1].type]
    return events


async def test_an_answer(http: httpx.AsyncClient, engine: FakeEngine, say: Say) -> None:
    say("Hello yourself")
    engine.cached_tokens = 3
    response = await answer(http, instructions="Be kind.", metadata={"a": "b"}, user="me", temperature=0.5)
    assert (response.status, response.output_text, response.model) == ("completed", "Hello yourself", "tiny")
    (message,) = response.output
    assert message.type == "message"
    assert (message.status, message.role) == ("completed", "assistant")
    assert (response.instructions, response.metadata, response.user) == ("Be kind.", {"a": "b"}, "me")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 1.0, 200)
    assert (response.error, response.incomplete_details, response.truncation) == (None, None, "disabled")
    usage = response.usage
    assert usage is not None
    assert engine.script is not None
    assert (usage.input_tokens, usage.output_tokens) == (len(unpacked(engine.seen[-1].prompt)), len(engine.script) + 1)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens == 3


async def test_an_empty_answer_has_no_output(http: httpx.AsyncClient, say: Say) -> None:
    say("")
    assert (await answer(http)).output == []


async def test_an_answer_that_is_cut_off(http: httpx.AsyncClient, say: Say, events_of: EventsOf) -> None:
    say("The quick brown fox jumps")
    whole = await answer(http, max_output_tokens=3)
    streamed = (await stream(http, events_of, max_output_tokens=3))[-1].response
    for response in (whole, streamed):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [item.status for item in response.output] == ["incomplete"]


SAID = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "two"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Three", "annotations": []}]},
    {"role": "user", "content": "Four"},
]


async def test_input_is_a_conversation(http: httpx.AsyncClient, prompt: Callable[[], str]) -> None:
    await answer(http, input=SAID, instructions="Rhyme.")
    assert prompt() == "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in [
            ("system", "Rhyme."), ("system", "Be kind."), ("user", "One\ntwo"), ("assistant", "Three"),
            ("user", "Four"),
        ]
    ) + "<|im_start|>assistant\n"  # fmt: skip


async def test_calls_are_items(http: httpx.AsyncClient, say: Say, prompt: Callable[[], str]) -> None:
    say(f"Let me see. {CALL}\n{OTHER}")
    response = await answer(http, tools=[WEATHER, TIME])
    message, *calls = response.output
    assert response.output_text == "Let me see."
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("weather", '{"city": "Köln"}', "completed"), ("time", "{}", "completed"),
    ]  # fmt: skip
    assert len({item.id for item in response.output}) == 3
    assert len({call.call_id for call in calls}) == 2
    assert message.status == response.status == "completed"
    assert "Tells the weather." in prompt()
    assert [tool.name for tool in response.tools] == ["weather", "time"]


async def test_results_go_back_to_the_model(http: httpx.AsyncClient, prompt: Callable[[], str], say: Say) -> None:
    say("Sunny.")
    told = [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Köln"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "b", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "25 degrees"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call", "call_id": "c", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "evening"},
    ]
    assert (await answer(http, input=told, tools=[WEATHER, TIME])).output_text == "Sunny."
    order = ["Hello", "Wait.", '{"city": "Köln"}', "25 degrees", "noon", "evening"]
    assert [text for text in order if text not in prompt()] == []
    assert sorted(order, key=prompt().index) == order


@pytest.mark.parametrize(
    ("wanted", "same_as"),
    [
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": "none"}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "function", "name": "time"}},
            {"tool_choice": {"type": "function", "function": {"name": "time"}}},
        ),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "c", "schema": PARAMETERS}}, "tools": []},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": PARAMETERS}}, "tools": []},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}, "top_p": 0.5}, {"top_p": 0.5}),
        ({"tools": [], "top_logprobs": 2}, {"tools": [], "logprobs": True, "top_logprobs": 2}),
    ],
)
async def test_what_is_asked_is_a_chats(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, wanted: Any, same_as: Any
) -> None:
    say(CALL)
    await answer(http, **{"tools": [WEATHER, TIME], **wanted})
    tools = [{"type": "function", "function": tool} for tool in (WEATHER, TIME)]
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "tools": tools, **same_as}
    assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
    ours, theirs = engine.seen[-2:]
    assert (ours.prompt, ours.sampling) == (theirs.prompt, theirs.sampling)


@pytest.mark.parametrize("wanted", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
async def test_logprobs(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, events_of: EventsOf, wanted: Any
) -> None:
    say("Größe 🙂 done")
    whole = (await answer(http, **wanted)).output[0].content[0].logprobs
    assert engine.script is not None
    assert len(whole) == len(engine.script) + 1
    assert {len(token.top_logprobs) for token in whole} == {wanted.get("top_logprobs", 0)}
    events = await stream(http, events_of, **wanted)
    deltas = [token for event in events if event.type.endswith("text.delta") for token in event.logprobs]
    assert [token.token for token in deltas] == [token.token for token in whole][: len(deltas)]
    assert events[-1].response.output[0].content[0].logprobs == whole


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────


TEXT_EVENTS = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done",
               "content_part.done", "output_item.done"]  # fmt: skip
CALL_EVENTS = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
               "output_item.done"]  # fmt: skip


@pytest.mark.parametrize("per_delta", [1, 3, 100])
async def test_a_streams_events_are_openais_in_their_order(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, events_of: EventsOf, per_delta: int
) -> None:
    say(f"One moment.\n{CALL}\n{OTHER}")
    engine.per_delta = per_delta
    events = await stream(http, events_of, tools=[WEATHER, TIME])
    created, in_progress, *middle, completed = events
    assert (created.type, in_progress.type) == ("response.created", "response.in_progress")
    assert (created.response.status, created.response.output, created.response.usage) == ("in_progress", [], None)
    order = list(dict.fromkeys((event.output_index, event.type.removeprefix("response.")) for event in middle))
    assert order == [
        *((0, kind) for kind in TEXT_EVENTS), *((index, kind) for index in (1, 2) for kind in CALL_EVENTS),
    ]  # fmt: skip
    done = [event.item for event in middle if event.type == "response.output_item.done"]
    assert done == completed.response.output
    for event in middle:
        assert getattr(event, "item_id", done[event.output_index].id) == done[event.output_index].id
    deltas = ["".join(event.delta for event in middle if event.output_index == i and ".delta" in event.type)
              for i in range(3)]  # fmt: skip
    assert deltas == ["One moment.", '{"city": "Köln"}', "{}"]


async def test_a_stream_says_what_the_whole_says(http: httpx.AsyncClient, say: Say, events_of: EventsOf) -> None:
    say("The quick brown fox")
    whole = await answer(http)
    streamed = (await stream(http, events_of))[-1].response
    assert (streamed.output_text, streamed.usage, streamed.status) == (whole.output_text, whole.usage, whole.status)


@pytest.mark.parametrize("failure", [errors.EngineDeadError("the engine ended"), ValueError("secret")])
async def test_an_error_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, events_of: EventsOf, failure: Exception
) -> None:
    say("The quick brown fox")
    engine.failure = failure
    *_, failed = await stream(http, events_of)
    assert (failed.type, failed.response.status) == ("response.failed", "failed")
    assert failed.response.error.code == "server_error"
    assert "secret" not in failed.response.error.message
    assert [item.status for item in failed.response.output] == ["incomplete"]
    assert (await http.get(f"/v1/responses/{failed.response.id}")).status_code == 404


async def test_a_long_wait_opens_the_stream_and_fails_inside_it(
    http: httpx.AsyncClient, engine: FakeEngine, events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream.__init__, "__kwdefaults__", {"heartbeat": 0.05})
    engine.delay, engine.fail_after, engine.failure = 0.2, 0, errors.QueueFullError("full")
    events = await stream(http, events_of)
    assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1].response.error.code == "rate_limit_exceeded"


# ── what is stored ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_goes_on(
    http: httpx.AsyncClient, say: Say, prompt: Callable[[], str], events_of: EventsOf, streamed: bool
) -> None:
    say("I am well.")
    first = (await stream(http, events_of, instructions="Be kind."))[-1].response if streamed else (
        await answer(http, instructions="Be kind.")
    )  # fmt: skip
    say("Yes.")
    second = await answer(http, input="Really?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert prompt() == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nI am well.<|im_end|>\n"
        "<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\n"
    )
    await answer(http, input="Good.", previous_response_id=second.id)
    assert prompt().endswith("Really?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
                             "<|im_start|>user\nGood.<|im_end|>\n<|im_start|>assistant\n")  # fmt: skip


async def test_a_call_is_answered_by_its_id_alone(http: httpx.AsyncClient, say: Say, prompt: Callable[[], str]) -> None:
    say(f"Let me see. {CALL}")
    first = await answer(http, tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "25 degrees"}
    say("Sunny.")
    second = await answer(http, tools=[WEATHER], previous_response_id=first.id, input=[result])
    assert second.output_text == "Sunny."
    order = ["Hello", "Let me see.", '{"city": "Köln"}', "25 degrees"]
    assert sorted(order, key=prompt().index) == order


async def test_a_call_that_was_cut_off_is_no_part_of_what_goes_on(
    http: httpx.AsyncClient, say: Say, prompt: Callable[[], str]
) -> None:
    say(f"Let me see. {CALL}")
    first = await answer(http, tools=[WEATHER], max_output_tokens=60)
    assert [item.status for item in first.output] == ["completed", "incomplete"]
    await answer(http, previous_response_id=first.id, input="Go on.")
    assert "<|im_start|>assistant\nLet me see.<|im_end|>\n<|im_start|>user\nGo on." in prompt()


async def test_what_is_stored_can_be_read_and_deleted(http: httpx.AsyncClient, say: Say) -> None:
    say("Yes.")
    created = (await post(http)).json()
    path = f"/v1/responses/{created['id']}"
    assert (await http.get(path)).json() == created
    assert (await http.get(f"{path}?stream=true")).json()["error"]["param"] == "stream"
    deleted = await http.delete(path)
    assert deleted.json() == {"id": created["id"], "object": "response", "deleted": True}
    for gone in (await http.get(path), await http.delete(path)):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "response_not_found")
    refused = await post(http, previous_response_id=created["id"])
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "previous_response_id")


async def test_what_is_not_to_be_stored_is_not(http: httpx.AsyncClient, say: Say) -> None:
    say("Yes.")
    response = (await post(http, store=False)).json()
    assert response["store"] is False
    assert (await http.get(f"/v1/responses/{response['id']}")).status_code == 404


class TestTenants:
    @pytest.fixture
    def keys(self) -> Keys:
        return some_keys()

    async def test_another_tenants_response_does_not_exist(self, http: httpx.AsyncClient) -> None:
        id = (await post(http, bearer(ADA))).json()["id"]
        for refused in (
            await post(http, bearer(GRACE), previous_response_id=id),
            await http.get(f"/v1/responses/{id}", headers=bearer(GRACE)),
            await http.delete(f"/v1/responses/{id}", headers=bearer(GRACE)),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "response_not_found")
        assert (await post(http, bearer(ADA), previous_response_id=id)).status_code == 200


async def test_what_does_not_fit_is_left_out_if_asked(
    http: httpx.AsyncClient, engine: FakeEngine, say: Say, prompt: Callable[[], str]
) -> None:
    say("x")
    said = [{"role": "system", "content": "Be kind."}]
    said += [{"role": "user", "content": f"Turn {number} " + "x y " * 200} for number in range(8)]
    refused = await post(http, input=said)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    response = await answer(http, input=said, instructions="Rhyme.", truncation="auto")
    assert response.truncation == "auto"
    told = [f"Turn {number}" in prompt() for number in range(8)]
    assert told == sorted(told)
    assert told[-1]
    assert not told[0]
    assert all(text in prompt() for text in ("Rhyme.", "Be kind."))
    per_turn = len(unpacked(engine.seen[-1].prompt)) // sum(told)
    assert len(unpacked(engine.seen[-1].prompt)) + per_turn + 200 > engine.info.max_model_len
    alone = [{"role": "user", "content": "x y " * 2000}]
    assert (await post(http, input=alone, truncation="auto")).status_code == 400


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────


IMAGE = {"type": "input_image", "image_url": "https://octavo.example/x.png"}


@pytest.mark.parametrize(
    ("wanted", "param", "message"),
    [
        ({"input": None}, "input", "input: must be a text or a list of items, not None"),
        ({"input": []}, "input", "from 1 to 4096 messages, not 0"),
        ({"input": ["x"]}, "input", "input[0]: must be an object"),
        ({"input": [{"type": "reasoning"}]}, "input", "input[0]: an item of type 'reasoning' is not supported"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input", "input[0].role"),
        ({"input": [{"role": "user"}]}, "input", "input[0].content: must be a text"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input", "input[0].content[0]: a part of type 'input_"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input", "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "messages", "no call before"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input", "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
        ({"temperature": 3}, "temperature", "temperature"),
        ({"stream": "yes"}, "stream", "stream"),
        ({"truncation": "some"}, "truncation", "truncation"),
        ({"top_logprobs": 21}, "top_logprobs", "top_logprobs"),
        ({"top_logprobs": 1, "tools": [TIME]}, "top_logprobs", "cannot be combined with tools"),
        ({"metadata": {"a": 5}}, "metadata.a", "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "metadata"),
        ({"background": True}, "background", "background is not supported"),
        ({"conversation": "conv_1"}, "conversation", "conversation is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0]: a tool of type 'web_search' is not supported"),
        ({"tools": [{"type": "function", "name": "f g"}]}, "tools", "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "tool_choice.type must be function"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "parallel_tool_calls"),
        ({"text": {"format": {"type": "xml"}}}, "text", "text.format.type must be text"),
        ({"text": {"format": "json"}}, "text", "text.format.type must be text"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text", "must have a name and a schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["x" * 70_000]}}}}, None, ""),
    ],
)  # fmt: skip
async def test_what_is_refused(
    http: httpx.AsyncClient, wanted: dict[str, Any], param: str | None, message: str
) -> None:
    response = await post(http, **wanted)
    assert 400 <= response.status_code < 500
    error = response.json()["error"]
    assert message in error["message"]
    assert param is None or error["param"] == param


async def test_what_has_no_effect_passes(http: httpx.AsyncClient, say: Say) -> None:
    say("x")
    asked = {"reasoning": {"effort": "high"}, "max_tool_calls": 3, "service_tier": "auto", "background": False}
    response = await answer(http, **asked)
    assert response.reasoning is not None
    assert response.reasoning.effort is None
    assert "octavo_http_ignored_fields_total 0.0" in (await http.get("/metrics")).text


# ── the official client ───────────────────────────────────────────────────────────────────────────────────────


class City(BaseModel):
    city: str


def test_the_client(client: openai.OpenAI, say: Say) -> None:
    say("Größe 🙂 done")
    created = client.responses.create(model="tiny", input="Hello")
    assert created.output_text == "Größe 🙂 done"
    assert client.responses.retrieve(created.id) == created
    with client.responses.stream(model="tiny", input="And?", previous_response_id=created.id) as events:
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Größe 🙂 done"
        assert events.get_final_response().output_text == "Größe 🙂 done"
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_the_client_parses_documents_and_calls(client: openai.OpenAI, engine: FakeEngine, say: Say) -> None:
    say('{"city": "Köln"}')
    parsed = client.responses.parse(model="tiny", input="Hello", text_format=City)
    assert parsed.output_parsed == City(city="Köln")
    assert engine.seen[-1].sampling.grammar is not None
    with client.responses.stream(model="tiny", input="Hello", text_format=City) as events:
        assert events.get_final_response().output_parsed == City(city="Köln")
    say(CALL)
    tool = openai.pydantic_function_tool(City, name="weather")["function"]
    called = client.responses.parse(model="tiny", input="Hello", tools=[{"type": "function", **tool}])
    assert called.output[0].parsed_arguments == {"city": "Köln"}


async def test_the_async_client_calls_functions(async_client: openai.AsyncOpenAI, say: Say) -> None:
    say(CALL)
    asked: dict[str, Any] = {"model": "tiny", "tools": [WEATHER]}
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    async with async_client.responses.stream(input=messages, **asked) as events:
        called = await events.get_final_response()
    (call,) = called.output
    messages += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "25 degrees"}]
    say("Sunny.")
    answered = await async_client.responses.create(input=messages, **asked)
    assert answered.output_text == "Sunny."
    messages += [*answered.output, {"role": "user", "content": "Thanks"}]
    assert (await async_client.responses.create(input=messages, store=False, **asked)).output_text == "Sunny."
    assert (await async_client.responses.retrieve(answered.id)).output_text == "Sunny."
    await async_client.responses.delete(answered.id)
