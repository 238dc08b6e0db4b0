"""What clients receive: OpenAI's completion and chat objects, as msgspec structs (one is encoded for every token)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.server.explain import Account, Explanation, Unexplained
from octavo.server.logprobs import ChatLogprobs, CompletionLogprobs, PromptLogprob

# In an answer, what happened to it, if it was asked to tell.
Told = Explanation | Unexplained | UnsetType


def json_response(data: msgspec.Struct | dict[str, Any], status: int = 200) -> Response:
    """A whole answer, encoded."""
    return Response(msgspec.json.encode(data), status, media_type="application/json")


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Of the prompt's tokens, those whose KV came from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one HTTP request: every prompt once, every sequence's output."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionChoice(msgspec.Struct, frozen=True):
    """Text of one sequence: all of it, or the next piece of a stream."""

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: CompletionLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True):
    """The answer to ``/v1/completions``; also each chunk of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET
    octavo: Told = UNSET


class Function(msgspec.Struct, frozen=True):
    """A function that is called, or more of its arguments: the text of a JSON object."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A call that begins in a stream, or more of it."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AssistantMessage(msgspec.Struct, frozen=True):
    """What the model said."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One sequence of a chat completion."""

    index: int
    message: AssistantMessage
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """The answer to ``/v1/chat/completions``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET
    octavo: Told = UNSET


class Delta(msgspec.Struct, frozen=True):
    """What is new in a chat stream."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """The next piece of one sequence of a chat stream."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    octavo: Told = UNSET


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of ``/v1/models``."""

    id: str
    created: int
    max_model_len: int | None
    object: Literal["model"] = "model"
    owned_by: str = "octavo"


class ModelList(msgspec.Struct, frozen=True):
    """The answer to ``/v1/models``."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokens(msgspec.Struct, frozen=True):
    """The answer to ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]


class Embedding(msgspec.Struct, frozen=True):
    """One input's vector: numbers, or little-endian float32 bytes in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """The answer to ``/v1/embeddings``; ``data`` holds an encoded `Embedding` for each input."""

    data: list[msgspec.Raw]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class CachePin(msgspec.Struct, frozen=True):
    """A pinned prefix; ``tenant`` is told to administrators."""

    id: str
    num_tokens: int
    num_blocks: int
    expires_in: float
    tenant: str | UnsetType = UNSET
    object: Literal["cache.pin"] = "cache.pin"


class CachePinList(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/cache/pins``."""

    data: list[CachePin]
    object: Literal["list"] = "list"


class Ended(msgspec.Struct, frozen=True):
    """The answer to a ``DELETE``: what is no more."""

    id: str
    object: Literal["cache.pin", "request"]
    deleted: Literal[True] = True


class RequestCard(msgspec.Struct, frozen=True):
    """One entry of ``GET /v1/requests``; ``tenant`` is told to administrators. ``age`` is in seconds."""

    id: str
    age: float
    prompts: int
    tenant: str | UnsetType = UNSET
    object: Literal["request"] = "request"


class RequestList(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/requests``: the first so many, and how many there are."""

    data: list[RequestCard]
    total: int
    object: Literal["list"] = "list"


class RequestStory(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /v1/requests/{id}``: what has happened to a request, prompt by prompt.

    Attributes:
        state: "arriving", "waiting", "swapped", "preempted", "running" or "finished"; of several prompts that of the
            one furthest behind. seconds: since it arrived, or until it ended.
        left_out: Prompts that are not told of.
    """

    id: str
    model: str
    tenant: str | UnsetType = UNSET
    state: str
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    summary: str
    prompts: list[Account]
    left_out: int
    object: Literal["request"] = "request"


class Text(msgspec.Struct, frozen=True):
    """The answer to ``/detokenize``."""

    prompt: str
