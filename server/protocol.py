"""What clients send: OpenAI's completions and chat schemas, with the fields that engines' clients add.

Types are strict: `"n": true` is not 1, `"5"` is not 5, NaN is not a number. Fields that Octavo does not know are
ignored and counted; fields that it knows and cannot honour are refused by name, because an answer that silently
disregards them would be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator

from octavo.errors import InvalidRequestError
from octavo.scheduler.sampling import MAX_LOGPROBS, SamplingParams
from octavo.server.fields import (
    AllowedTokenIdsField,
    BadWordsField,
    ContentField,
    InputsField,
    LogitBiasField,
    PromptField,
    PromptsField,
    RetentionField,
    RoleField,
    StopField,
    StopTokenIdsField,
    TemplateVariablesField,
    fault,
    shortened,
)
from octavo.server.limits import (
    MAX_CACHE_SALT_CHARS,
    MAX_COMPLETION_LOGPROBS,
    MAX_MESSAGES,
    MAX_PIN_SECONDS,
    MAX_PRIORITY,
    MAX_SEQUENCES,
)
from octavo.server.openapi import (
    CHOICES,
    FUNCTION_CALL,
    FUNCTIONS,
    JSON_SCHEMA,
    RESPONSE_FORMAT,
    STRUCTURED_OUTPUTS,
    TEXT,
    TOKEN_IDS,
    TOOL_CHOICE,
    TOOLS,
    one_of,
    tell_ranges,
)

INERT_VALUES: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (None,),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "suffix": (None, ""),
    "web_search_options": (None,),
}

# Known fields that say nothing about the answer itself. `prompt_cache_key` sends requests that begin alike to the same
# machine elsewhere; here there is one engine, which finds their common beginning by its tokens.
WITHOUT_EFFECT: Final = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)

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
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "prompt_logprobs",
    "length_penalty",
)


ToolsField = Annotated[list[Any], WithJsonSchema(TOOLS)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Request(_Strict):
    """What all bodies that ask for an answer have in common.

    Attributes:
        inert: Field → the values that ask for nothing. Any other value asks for what Octavo does not do.
        without_effect: Known fields that say nothing about the answer itself.
    """

    # Kept, so that what we do not know can be counted and what we cannot do can be refused.
    model_config = ConfigDict(extra="allow")
    inert: ClassVar[Mapping[str, tuple[object, ...]]]
    without_effect: ClassVar[frozenset[str]]

    model: str | None = None

    def check(self) -> None:
        """Refuses what the types alone cannot.

        Raises:
            InvalidRequestError: A field asks for what Octavo does not do, or two fields contradict each other.
        """
        for name, value in self._extra():
            if name in self.inert and not _is_inert(value, self.inert[name]):
                raise InvalidRequestError(
                    f"{name} is not supported yet, got {shortened(value)}", param=name, code="unsupported_parameter"
                )

    def ignored_fields(self) -> list[str]:
        """Names of the fields that Octavo does not know."""
        return [name for name, _ in self._extra() if name not in self.inert and name not in self.without_effect]

    def _extra(self) -> Iterator[tuple[str, Any]]:
        return iter((self.model_extra or {}).items())


def _is_inert(value: object, inert: tuple[object, ...]) -> bool:
    # Equal and of the same type: False == 0 in Python, but "logprobs": 0 asks for the chosen token's.
    return any(type(value) is type(other) and value == other for other in inert)


class OctavoOptions(_Strict):
    """``octavo``: what is asked of Octavo itself. What it does not know there is refused by name."""

    model_config = ConfigDict(extra="forbid")

    explain: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if isinstance(value, dict) and (unknown := sorted(value.keys() - cls.model_fields.keys())):
            named = ", ".join(shortened(name) for name in unknown[:10])
            raise fault(f"there is no {named} in it; accepted is {', '.join(cls.model_fields)}")
        return value


class StreamOptions(_Strict):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ModelRequest(Request):
    """What all requests that the model works at have in common."""

    model_config = ConfigDict(json_schema_extra=tell_ranges)

    inert = INERT_VALUES
    without_effect = WITHOUT_EFFECT

    cache_salt: str | None = Field(default=None, max_length=MAX_CACHE_SALT_CHARS)
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)

    _arrival: float = PrivateAttr(default_factory=time.monotonic)

    @property
    def arrival(self) -> float:
        """When the request was read, on the monotonic clock."""
        return self._arrival


class GenerationRequest(ModelRequest):
    """What completions and chat have in common."""

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
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBiasField = None
    allowed_token_ids: AllowedTokenIdsField = None
    bad_words: BadWordsField = ()
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=1)
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    response_format: Annotated[dict[str, Any], WithJsonSchema(RESPONSE_FORMAT)] | None = None
    structured_outputs: Annotated[dict[str, Any], WithJsonSchema(STRUCTURED_OUTPUTS)] | None = None
    guided_json: Annotated[str | dict[str, Any], WithJsonSchema(JSON_SCHEMA)] | None = None
    guided_regex: Annotated[str, WithJsonSchema(TEXT)] | None = None
    guided_choice: Annotated[list[str], WithJsonSchema(CHOICES)] | None = None
    guided_grammar: Annotated[str, WithJsonSchema(TEXT)] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    prompt_cache_retention: RetentionField = None
    return_token_ids: bool | None = None
    octavo: OctavoOptions | None = None

    @property
    def prompt_only(self) -> bool:
        """Whether no output is asked for."""
        return False

    @property
    def num_sequences(self) -> int:
        """Sequences that run for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell beside each output token; None: no log-probabilities."""
        raise NotImplementedError

    def sampling(self, **overrides: Any) -> SamplingParams:
        """The request's sampling parameters; what it leaves out takes `SamplingParams`' default.

        Raises:
            InvalidRequestError: A value is out of range.
        """
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS} | self._choice() | overrides
        given["logprobs"] = self.num_logprobs
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def _choice(self) -> dict[str, int | None]:
        """How outputs are chosen among several; a beam search has as many beams as it would have sequences."""
        if self.use_beam_search:
            return {"beam_width": self.num_sequences}
        return {"best_of": self.best_of}

    def check(self) -> None:
        super().check()
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", param="stream_options")
        if self.stop and (self.use_beam_search or self.num_sequences > (self.n or 1)):
            raise InvalidRequestError(
                "stop cannot be used with best_of above n or beam search, which choose by tokens; use stop_token_ids",
                param="stop",
            )


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``. ``prompt`` is a list of prompts, whatever form it was sent in."""

    prompt: PromptsField
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_COMPLETION_LOGPROBS)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompt_only(self) -> bool:
        return self.max_tokens == 0 and bool(self.echo)

    def sampling(self, **overrides: Any) -> SamplingParams:
        if self.prompt_only:  # the engine always samples a token, which is not given out then
            overrides["max_tokens"] = 1
        if self.echo and self.prompt_logprobs is None:
            overrides["prompt_logprobs"] = self.logprobs
        return super().sampling(**overrides)

    def check(self) -> None:
        super().check()
        n = self.num_sequences
        if len(self.prompt) * n > MAX_SEQUENCES:
            raise InvalidRequestError(
                f"prompts × n must be at most {MAX_SEQUENCES}, not {len(self.prompt)} × {n}", param="prompt"
            )


class ChatMessage(_Strict):
    """One turn of a conversation; ``content`` is plain text, whatever form it was sent in."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]})

    role: RoleField
    content: ContentField = ""
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if "content" not in self.model_fields_set and not (self.role == "assistant" and self.tool_calls):
            raise fault("content is required")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: absent fields are absent."""
        return self.model_dump(exclude_none=True)


class ChatCompletionRequest(GenerationRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: TemplateVariablesField = {}
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: ToolsField = None
    tool_choice: Annotated[str | dict[str, Any], WithJsonSchema(TOOL_CHOICE)] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any], WithJsonSchema(FUNCTIONS)] | None = None
    function_call: Annotated[str | dict[str, Any], WithJsonSchema(FUNCTION_CALL)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

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
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", param="top_logprobs")


class TokenizeRequest(_Strict):
    """The body of ``POST /tokenize``: a prompt or a conversation."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [one_of("prompt", "messages"), one_of("messages", "prompt")]})

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    tools: ToolsField = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(_Strict):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: Annotated[list[int], WithJsonSchema(TOKEN_IDS)]
    skip_special_tokens: bool = False


class EmbeddingRequest(ModelRequest):
    """The body of ``POST /v1/embeddings``. ``input`` is a list of inputs, whatever form it was sent in.

    By default an input's embedding is its last token's hidden state, since in a causal model that token alone has seen
    all others; models that were trained for embeddings by another rule say so, most often ``mean``.
    """

    input: InputsField
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    pooling: Literal["last", "mean"] = "last"
    normalize: bool = True
    truncate_prompt_tokens: int | None = Field(default=None, ge=1)


class PinRequest(ModelRequest):
    """The body of ``POST /v1/cache/pins``: a prompt or the beginning of a conversation, and for how many seconds."""

    prompt: PromptField | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    tools: ToolsField = None
    ttl: float = Field(gt=0, le=MAX_PIN_SECONDS)
