"""Tools over HTTP: what the model is told, what its answer must follow, and how its calls reach the client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from pydantic import BaseModel
from tiny_tokenizer import EOS_ID

from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer

EventsOf = Callable[[str], list[Any]]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
HELLO = [{"role": "user", "content": "Hello"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(eos=EOS_ID, max_model_len=4096)


async def chat(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"messages": HELLO, "tools": [WEATHER, TIME], **body})


async def choice_of(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await chat(http, **body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def gathered(events: list[Any]) -> tuple[str, list[dict[str, Any]], list[str]]:
    """A stream's content, its calls put together as clients do it, and its finish reasons."""
    assert events[-1] == "[DONE]"
    content, calls, reasons = "", list[dict[str, Any]](), list[str]()
    for event in events[:-1]:
        for choice in event["choices"]:
            content += choice["delta"].get("content", "")
            reasons += filter(None, [choice["finish_reason"]])
            for delta in choice["delta"].get("tool_calls", ()):
                if delta["index"] == len(calls):
                    name, arguments = delta["function"]["name"], ""
                    calls.append({"id": delta["id"], "type": delta["type"], "name": name, "arguments": arguments})
                else:
                    assert delta.keys() == {"index", "function"}
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return content, calls, reasons


async def test_a_call(http: httpx.AsyncClient, say: Callable[[str], None]) -> None:
    say(f"Let me see. {CALL}")
    choice = await choice_of(http)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


async def test_calls_alone_have_no_content(http: httpx.AsyncClient, say: Callable[[str], None]) -> None:
    say(f"{CALL}\n{OTHER}")
    message = (await choice_of(http))["message"]
    assert message["content"] is None
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


async def test_an_answer_without_a_call_is_an_answer(http: httpx.AsyncClient, say: Callable[[str], None]) -> None:
    say("A <tool_call> is no call.")
    choice = await choice_of(http)
    assert choice["message"] == {"content": "A <tool_call> is no call.", "role": "assistant", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_a_call_that_is_cut_off_ends_by_length(http: httpx.AsyncClient, say: Callable[[str], None]) -> None:
    say(CALL)
    assert (await choice_of(http, max_tokens=30))["finish_reason"] == "length"


@pytest.mark.parametrize("per_delta", [1, 3, 100])
async def test_a_stream_says_the_same(
    http: httpx.AsyncClient, engine: FakeEngine, say: Callable[[str], None], events_of: EventsOf, per_delta: int
) -> None:
    say(f"One moment.\n{CALL}\n{OTHER}")
    engine.per_delta = per_delta
    content, calls, reasons = gathered(events_of((await chat(http, stream=True)).text))
    assert content == "One moment."
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("weather", {"city": "Köln"}), ("time", {}),
    ]  # fmt: skip
    assert reasons == ["tool_calls"]


async def test_siblings_call_on_their_own(
    http: httpx.AsyncClient, say: Callable[[str], None], events_of: EventsOf
) -> None:
    say(CALL)
    whole = (await chat(http, n=2)).json()["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in whole] == [1, 1]
    events = events_of((await chat(http, n=2, stream=True)).text)
    for index in range(2):
        own = [
            {**event, "choices": [choice for choice in event["choices"] if choice["index"] == index]}
            for event in events[:-1]
        ]
        assert gathered([*own, "[DONE]"])[1][0]["arguments"] == '{"city": "Köln"}'


async def test_the_model_is_told_of_its_tools_unless_it_must_not_call(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, say: Callable[[str], None]
) -> None:
    say(CALL)
    await chat(http)
    assert "Tells the weather." in tokenizer.decode(unpacked(engine.seen[-1].prompt))
    choice = await choice_of(http, tool_choice="none")
    assert "Tells the weather." not in tokenizer.decode(unpacked(engine.seen[-1].prompt))
    assert choice["message"]["content"] == CALL
    counted = await http.post("/tokenize", json={"messages": HELLO, "tools": [WEATHER, TIME]})
    assert counted.json()["tokens"] == unpacked(engine.seen[-2].prompt)


async def test_results_go_back_to_the_model(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, say: Callable[[str], None]
) -> None:
    say("Sunny.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    told = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "25 degrees"},
    ]
    assert (await choice_of(http, messages=told))["message"]["content"] == "Sunny."
    prompt = tokenizer.decode(unpacked(engine.seen[-1].prompt))
    assert '{"city": "Köln"}' in prompt
    assert "25 degrees" in prompt


async def test_what_has_to_be_called_constrains_the_answer(
    http: httpx.AsyncClient, engine: FakeEngine, say: Callable[[str], None]
) -> None:
    say(CALL)
    grammars = []
    for wanted in (
        {},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "time"}}},
        {"response_format": {"type": "json_object"}},
        {"parallel_tool_calls": False},
    ):
        assert (await chat(http, **wanted)).status_code == 200
        grammars.append(engine.seen[-1].sampling.grammar)
    free, required, named, either, single = grammars
    assert free is None
    assert "weather" in required
    assert "weather" not in named
    assert "octavo_document" in either
    assert "octavo_document" not in required
    assert len({required, named, either, single}) == 4


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "stocks"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"guided_regex": "a+"}, "tools"),
    ],
)
async def test_what_is_refused(http: httpx.AsyncClient, wanted: dict[str, Any], param: str) -> None:
    response = await chat(http, **wanted)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class Weather(BaseModel):
    """Where to look."""

    city: str


def test_openais_client_parses_calls(url: str, engine: FakeEngine, say: Callable[[str], None]) -> None:
    say(CALL)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    tool = openai.pydantic_function_tool(Weather, name="weather")
    parsed = client.chat.completions.parse(model="tiny", messages=HELLO, tools=[tool])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=[tool]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")
    assert engine.seen[-1].sampling.grammar is not None  # the client declares its tools as strict


def test_openais_client_parses_documents(url: str, engine: FakeEngine, say: Callable[[str], None]) -> None:
    say('{"city": "Köln"}')
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    parsed = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Köln")
    assert engine.seen[-1].sampling.grammar is not None
