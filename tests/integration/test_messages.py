"""Anthropic's client against the real server process and the default model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from serving import Server

pytestmark = pytest.mark.model

ASKED: dict[str, Any] = {
    "model": "any",
    "max_tokens": 32,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"model": None, "temperature": 0},
}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_a_stream_says_what_the_whole_says(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        streamed = stream.get_final_message()
    assert "Paris" in whole.content[0].to_dict()["text"]
    assert [block.to_dict()["text"] for block in streamed.content] == [
        block.to_dict()["text"] for block in whole.content
    ]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert streamed.usage.cache_read_input_tokens


def test_a_call_goes_out_and_its_result_comes_back(client: anthropic.Anthropic) -> None:
    asked = ASKED | {"max_tokens": 64, "tools": [WEATHER]}
    called = client.messages.create(**asked, tool_choice={"type": "tool", "name": "weather"})
    (call,) = called.content
    assert call.type == "tool_use"
    assert call.input in ({"city": "Paris"}, {"city": "Rome"})
    assert called.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "25 degrees and sunny"}
    messages = [
        *ASKED["messages"],
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    answered = client.messages.create(**asked | {"messages": messages})
    assert "25" in answered.content[0].to_dict()["text"]
