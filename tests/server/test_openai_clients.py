"""The official Python client, sync and async, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from fake_engine import FakeEngine
from openai.types.chat import ChatCompletionMessageParam

from octavo import errors
from octavo.engine.tokenizer import Tokenizer

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TEXT = "Größe 🙂 done"


@pytest.fixture
def sync_client(url: str, engine: FakeEngine, tokenizer: Tokenizer) -> Iterator[openai.OpenAI]:
    engine.script = tokenizer.encode(TEXT)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url: str, engine: FakeEngine, tokenizer: Tokenizer) -> AsyncIterator[openai.AsyncOpenAI]:
    engine.script = tokenizer.encode(TEXT)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_whole_answers(sync_client: openai.OpenAI) -> None:
    chat = sync_client.chat.completions.create(model="tiny", messages=HELLO)
    assert chat.choices[0].message.content == TEXT
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    completion = sync_client.completions.create(model="tiny", prompt="x", max_tokens=100, n=2)
    assert [choice.text for choice in completion.choices] == [TEXT, TEXT]


def test_streams(sync_client: openai.OpenAI) -> None:
    parts = sync_client.completions.create(model="tiny", prompt="x", max_tokens=100, stream=True)
    assert "".join(part.choices[0].text for part in parts) == TEXT
    with sync_client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        *deltas, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == TEXT
    assert usage.usage is not None


def test_the_stream_helper(sync_client: openai.OpenAI) -> None:
    with sync_client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].finish_reason == "stop"


async def test_async(async_client: openai.AsyncOpenAI) -> None:
    chat = await async_client.chat.completions.create(model="tiny", messages=HELLO)
    assert chat.choices[0].message.content == TEXT
    chunks = await async_client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == TEXT


def test_models(sync_client: openai.OpenAI) -> None:
    assert [model.id for model in sync_client.models.list()] == ["tiny"]
    assert sync_client.models.retrieve("tiny").owned_by == "octavo"


def test_errors_become_the_clients_own(sync_client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError, match="huge") as missing:
        sync_client.chat.completions.create(model="huge", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sync_client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert bad.value.param == "temperature"
    engine.refusal = errors.QueueFullError("full")
    with pytest.raises(openai.RateLimitError, match="full"):
        sync_client.chat.completions.create(model="tiny", messages=HELLO, stream=True)


def test_an_error_in_mid_stream_is_raised(sync_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.failure = errors.EngineDeadError("the engine ended")
    with pytest.raises(openai.APIError, match="the engine ended"):
        list(sync_client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
