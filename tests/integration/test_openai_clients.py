"""openai-python against the real server process: sync, async, streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from pydantic import BaseModel, Field
from serving import Server

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"


def test_stream_equals_the_whole(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_stream_helper(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=QUESTION, temperature=0, max_tokens=16) as stream:
        for _ in stream:
            pass
        assert "Paris" in (stream.get_final_completion().choices[0].message.content or "")


async def test_conversations_at_once_say_what_they_say_alone(async_client: openai.AsyncOpenAI, model: str) -> None:
    async def talk(name: str) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = []
        for turn in (f"My name is {name}. Say hello to me.", "What is my name?"):
            messages.append({"role": "user", "content": turn})
            answer = await async_client.chat.completions.create(
                model=model, messages=messages, temperature=0, max_tokens=20
            )
            messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
        return messages

    names = ["Ada", "Grace", "Alan"]
    together = await asyncio.gather(*map(talk, names))
    assert together == [await talk(name) for name in names]
    assert len({str(conversation) for conversation in together}) == len(names)


async def test_async_stream(async_client: openai.AsyncOpenAI, model: str) -> None:
    stream = await async_client.completions.create(
        model=model, prompt="one, two, three,", temperature=0, max_tokens=8, stream=True
    )
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert "four" in text


def test_a_multi_turn_conversation_hits_the_prefix_cache(client: openai.OpenAI, model: str) -> None:
    messages: list[dict[str, str]] = [{"role": "user", "content": "Tell me a very short story about a fox. " * 4}]
    first = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=32)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content or ""},
        {"role": "user", "content": "And then?"},
    ]
    second = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=8)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 16


def test_errors_arrive_as_the_clients_own(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.completions.create(model="no-such-model", prompt="x")
    with pytest.raises(openai.BadRequestError, match="9000"):
        client.completions.create(model=model, prompt="x", max_tokens=9000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=model, prompt="x", temperature=3)


class Place(BaseModel):
    """Where something is."""

    city: str = Field(max_length=20)
    population: int = Field(ge=0, le=10**8)


def test_structured_output_and_calls_are_parsed(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "temperature": 1, "max_tokens": 120}
    parsed = client.chat.completions.parse(**asked, response_format=Place, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    tool = openai.pydantic_function_tool(Place, name="look_up")
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        called = client.chat.completions.parse(
            **asked, tools=[tool], tool_choice=choice, parallel_tool_calls=False, seed=2
        )
        (call,) = called.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, Place)


def test_what_cannot_be_followed_is_refused_by_the_engine(client: openai.OpenAI, model: str) -> None:
    unknown = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}
    with pytest.raises(openai.BadRequestError, match="colour"):
        client.chat.completions.create(model=model, messages=QUESTION, response_format=unknown)


def test_logprobs_over_the_process_boundary(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "prompt": "The capital of France is", "temperature": 0}
    answer = client.completions.create(**asked, max_tokens=4, logprobs=2, echo=True)
    columns = answer.choices[0].logprobs
    assert columns is not None
    assert columns.token_logprobs is not None
    assert columns.token_logprobs[0] is None
    assert all(-30 < logprob < 0 for logprob in columns.token_logprobs[1:])
    scored = client.completions.create(**asked, max_tokens=0, logprobs=2, echo=True)
    prompt = scored.choices[0].logprobs.token_logprobs
    assert prompt[1:] == pytest.approx(columns.token_logprobs[1 : len(prompt)], abs=1e-4)
    assert scored.usage.completion_tokens == 0
