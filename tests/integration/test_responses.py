"""OpenAI's client for responses against the real server process and the default model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from serving import Server

pytestmark = pytest.mark.model

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
HELLO = "My name is Ada. Say hello to me."


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_output_tokens": 24}
    first = client.responses.create(input=HELLO, **asked)
    with client.responses.stream(input="What is my name?", previous_response_id=first.id, **asked) as events:
        *_, last = events
    assert last.type in ("response.completed", "response.incomplete")
    second = last.response
    said = [{"role": "user", "content": HELLO}, *first.output, {"role": "user", "content": "What is my name?"}]
    assert second.output_text == client.responses.create(input=said, **asked).output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= 16
    assert client.responses.retrieve(second.id).output_text == second.output_text


def test_documents_and_calls(client: openai.OpenAI) -> None:
    question = "What is the capital of France?"
    parsed = client.responses.parse(input=question, text_format=Capital, max_output_tokens=32)
    assert isinstance(parsed.output_parsed, Capital)
    asked: dict[str, Any] = {"tools": [WEATHER], "temperature": 0, "max_output_tokens": 64}
    called = client.responses.create(input="How warm is it in Paris?", tool_choice="required", **asked)
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "25 degrees and sunny"}
        for call in called.output
        if call.type == "function_call"
    ]
    assert results
    answered = client.responses.create(input=results, previous_response_id=called.id, **asked | {"tool_choice": "none"})
    assert "25" in answered.output_text
