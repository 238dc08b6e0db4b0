"""What clients send: OpenAI's completions and chat schemas, with the fields that engines' clients add.

Types are strict: `"n": true` is not 1, `"5"` is not 5, NaN is not a number. Fields that Octavo does not know are
ignored and counted; fields that it knows and cannot honour are refused by name, because an answer that silently
disregards them would be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr
from pydantic_core import PydanticCustomError

from octavo.errors import InvalidRequestError
from octavo.scheduler.sampling import SamplingParams
from octavo.server.limits import (
    MAX_CACHE_SALT_CHARS,
    MAX_MESSAGES,
    MAX_PRIORITY,
    MAX_SEQUENCES,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
)

ROLES: Final = ("system", "developer", "user", "assistant", "tool")

# Field → the values that ask for nothing. Any other value asks for what Octavo does not do.
INERT_VALUES: Final[Mapping[str, tuple[object, ...]]] = {
    "allowed_token_ids": (None, []),
    "audio": (None,),
    "bad_words": (None, []),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0, 0.0),
    "prompt_logprobs": (None,),
    "repetition_penalty": (None, 1, 1.0),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "web_search_options": (None,),
}

# Known fields that say nothing about the answer itself.
WITHOUT_EFFECT: Final = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)

# Variables that a request may set for the chat template; all others are the server's.
TEMPLATE_VARIABLES: Final = frozenset({"enable_thinking", "thinking", "reasoning_effort", "date_string"})

_SAMPLING_FIELDS: Final = (
    "n",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop_token_ids",
    "ignore_eos",
)

Prompt = str | list[int]


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("octavo", "{message}", {"message": message})


def _is_ids(value: object) -> TypeGuard[list[int]]:
    # Compared by exact type, all at once: a prompt may have a million ids, and True is not a token.
    return isinstance(value, list) and set(map(type, value)) == {int}


def _parse_prompts(value: object) -> list[Prompt]:
    """Every accepted form of ``prompt`` as a list of prompts."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise _fault("must be a text, a list of texts, a list of token ids, or a list of those; none may be empty")
    if not prompts:
        raise _fault("must not be empty")
    return prompts


def _parse_stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _fault("must be a text or a list of texts")
    if len(stops) > MAX_STOPS:
        raise _fault(f"takes at most {MAX_STOPS} strings, not {len(stops)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise _fault(f"strings must have from 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _parse_stop_token_ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value == []:
        return ()
    if not _is_ids(value):
        raise _fault("must be a list of token ids")
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise _fault(f"takes at most {MAX_STOP_TOKEN_IDS} ids, not {len(value)}")
    return tuple(value)


def _parse_role(value: object) -> str:
    if value not in ROLES:
        raise _fault(f"unknown role {_short(value)}; accepted are {', '.join(ROLES)}")
    # Templates of open models know "system"; OpenAI renamed it for its own newer ones.
    return "system" if value == "developer" else str(value)


def _parse_content(value: object) -> str:
    """Text as it is; text parts joined by newlines."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise _fault("must be a text or a list of text parts")
    return "\n".join(map(_parse_part, value))


def _parse_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _fault(f"part of type {_short(kind)} is not supported: Octavo reads text only")
    text = part["text"] if isinstance(part, dict) and "text" in part else None
    if not isinstance(text, str):
        raise _fault("a text part must have a text")
    return text


def _parse_absent(value: object) -> None:
    if value:
        raise _fault("is not supported")


def _parse_template_kwargs(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value.keys() <= TEMPLATE_VARIABLES:
        raise _fault(f"must be an object with no other keys than {', '.join(sorted(TEMPLATE_VARIABLES))}")
    if not all(isinstance(variable, str | int | float) for variable in value.values()):
        raise _fault("values must be texts, numbers or booleans")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


PromptsField = Annotated[
    list[Prompt],
    PlainValidator(_parse_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
StopField = Annotated[tuple[str, ...], PlainValidator(_parse_stop, json_schema_input_type=str | list[str] | None)]
StopTokenIdsField = Annotated[
    tuple[int, ...] | None, PlainValidator(_parse_stop_token_ids, json_schema_input_type=list[int] | None)
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class StreamOptions(_Strict):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(_Strict):
    """What completions and chat have in common."""

    # Kept, so that what we do not know can be counted and what we cannot do can be refused.
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: StopField = ()
    stop_token_ids: StopTokenIdsField = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    cache_salt: str | None = Field(default=None, max_length=MAX_CACHE_SALT_CHARS)
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    return_token_ids: bool | None = None

    _arrival: float = PrivateAttr(default_factory=time.monotonic)

    @property
    def arrival(self) -> float:
        """When the request was read, on the monotonic clock."""
        return self._arrival

    def sampling(self, **overrides: Any) -> SamplingParams:
        """The request's sampling parameters; what it leaves out takes `SamplingParams`' default.

        Raises:
            InvalidRequestError: A value is out of range.
        """
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS} | overrides
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def check(self) -> None:
        """Refuses what the types alone cannot.

        Raises:
            InvalidRequestError: A field asks for what Octavo does not do, or two fields contradict each other.
        """
        for name, value in self._extra():
            if name in INERT_VALUES and not _is_inert(name, value):
                raise InvalidRequestError(
                    f"{name} is not supported yet, got {_short(value)}", param=name, code="unsupported_parameter"
                )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", param="stream_options")

    def ignored_fields(self) -> list[str]:
        """Names of the fields that Octavo does not know."""
        return [name for name, _ in self._extra() if name not in INERT_VALUES and name not in WITHOUT_EFFECT]

    def _extra(self) -> Iterator[tuple[str, Any]]:
        return iter((self.model_extra or {}).items())


def _is_inert(name: str, value: object) -> bool:
    # Equal and of the same type: False == 0 in Python, but "logprobs": 0 asks for the chosen token's.
    return any(type(value) is type(inert) and value == inert for inert in INERT_VALUES[name])


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``. ``prompt`` is a list of prompts, whatever form it was sent in."""

    prompt: PromptsField
    echo: bool | None = None
    best_of: int | None = None

    def check(self) -> None:
        super().check()
        n = self.n or 1
        if self.best_of not in (None, n):
            raise InvalidRequestError(
                f"best_of other than n is not supported yet: best_of is {self.best_of}, n is {n}",
                param="best_of",
                code="unsupported_parameter",
            )
        if len(self.prompt) * n > MAX_SEQUENCES:
            raise InvalidRequestError(
                f"prompts × n must be at most {MAX_SEQUENCES}, not {len(self.prompt)} × {n}", param="prompt"
            )


class ChatMessage(_Strict):
    """One turn of a conversation; ``content`` is plain text, whatever form it was sent in."""

    role: Annotated[str, PlainValidator(_parse_role, json_schema_input_type=Literal[ROLES])]
    content: Annotated[str, PlainValidator(_parse_content, json_schema_input_type=str | list[dict[str, Any]] | None)]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[None, PlainValidator(_parse_absent, json_schema_input_type=None)] = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: absent fields are absent."""
        return self.model_dump(exclude_none=True)


class ChatCompletionRequest(GenerationRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: Annotated[
        dict[str, Any], PlainValidator(_parse_template_kwargs, json_schema_input_type=dict[str, Any] | None)
    ] = {}

    @property
    def output_limit(self) -> int | None:
        """The largest number of output tokens, under either of its names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequestError(
                f"max_tokens ({self.max_tokens}) and max_completion_tokens ({self.max_completion_tokens}) are two "
                "names of one limit; send one of them",
                param="max_tokens",
            )


class TokenizeRequest(_Strict):
    """The body of ``POST /tokenize``: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(_Strict):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool = False
