"""What clients of the Responses API receive."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from octavo.server.logprobs import ChatTokenLogprob
from octavo.server.responses import Told


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text for the reader."""

    text: str
    logprobs: list[ChatTokenLogprob] = []
    annotations: list[None] = []


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """Something that the model said."""

    id: str
    status: str
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str


Item = OutputMessage | FunctionCall


class InputDetails(msgspec.Struct, frozen=True):
    """Of the prompt's tokens, those whose KV came from the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """Of the output's tokens, those that were reasoning: none is told apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function that the model might call."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    strict: bool


class Failure(msgspec.Struct, frozen=True):
    """Why there is no answer, or no more of it."""

    code: str
    message: str


class Reasoning(msgspec.Struct, frozen=True):
    """What was asked of the model's reasoning has no effect."""

    effort: None = None
    summary: None = None


class Incomplete(msgspec.Struct, frozen=True):
    """Why an answer is cut off."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """A response: what was asked, and what came of it so far."""

    id: str
    created_at: int
    model: str
    status: str = "in_progress"
    output: list[Item] = []
    usage: ResponseUsage | None = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[FunctionTool]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: str
    store: bool
    metadata: dict[str, str]
    user: str | None
    reasoning: Reasoning = Reasoning()
    background: bool = False
    object: Literal["response"] = "response"
    octavo: Told = UNSET


class Deleted(msgspec.Struct, frozen=True):
    """The answer to ``DELETE /v1/responses/{id}``."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
