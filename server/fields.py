"""The forms that clients may give a field in, read strictly: `"n": true` is not 1, `"5"` is not 5, NaN is no number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeGuard

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from octavo.scheduler.sampling import BIASES, MAX_LOGIT_BIAS, MAX_WHOLE
from octavo.server.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_INPUTS,
    MAX_PIN_SECONDS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
)

ROLES: Final = ("system", "developer", "user", "assistant", "tool")

# Variables that a request may set for the chat template; all others are the server's.
TEMPLATE_VARIABLES: Final = ("date_string", "enable_thinking", "reasoning_effort", "thinking")

_TIME: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Prompt = str | list[int]


def fault(message: str) -> PydanticCustomError:
    """What a validator raises: the message follows the field's name."""
    return PydanticCustomError("octavo", "{message}", {"message": message})


def _is_ids(value: object) -> TypeGuard[list[int]]:
    # Compared by exact type, all at once: a prompt may have a million ids, and True is not a token.
    return isinstance(value, list) and set(map(type, value)) == {int}


def _parse_prompts(value: object) -> list[Prompt]:
    """Every accepted form of ``prompt`` as a list of prompts."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise fault("must be a text, a list of texts, a list of token ids, or a list of those; none may be empty")
    if not prompts:
        raise fault("must not be empty")
    return prompts


def _parse_prompt(value: object) -> Prompt:
    """One prompt."""
    if not (isinstance(value, str) or _is_ids(value)):
        raise fault("must be a text or a list of token ids, and not empty")
    return value


def _parse_inputs(value: object) -> list[Prompt]:
    """Every accepted form of ``input``, which holds no empty one."""
    inputs = _parse_prompts(value)
    if "" in inputs:
        raise fault("must not hold an empty text")
    if len(inputs) > MAX_INPUTS:
        raise fault(f"takes at most {MAX_INPUTS} inputs, not {len(inputs)}")
    return inputs


def _parse_retention(value: object) -> float | None:
    """Seconds for which a prompt is to stay in the cache, bounded; None: as long as there is room anyway."""
    if value in (None, "in_memory", "in-memory"):
        return None
    seconds = _seconds_of(value)
    if seconds is None or seconds <= 0:
        raise fault("must be in_memory, a time such as 24h, 30m or 90s, or a number of seconds above 0")
    return float(min(seconds, MAX_PIN_SECONDS))  # which a whole number of any size survives


def _seconds_of(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * _UNIT_SECONDS[match[2]] if match else None


def _parse_stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise fault("must be a text or a list of texts")
    if len(stops) > MAX_STOPS:
        raise fault(f"takes at most {MAX_STOPS} strings, not {len(stops)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise fault(f"strings must have from 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _token_ids(most: int) -> Callable[[object], tuple[int, ...] | None]:
    def parse(value: object) -> tuple[int, ...] | None:
        if value is None:
            return None
        if value == []:
            return ()
        if not _is_ids(value):
            raise fault("must be a list of token ids")
        if len(value) > most:
            raise fault(f"takes at most {most} ids, not {len(value)}")
        return tuple(value)

    return parse


def _parse_logit_bias(value: object) -> tuple[tuple[int, float], ...] | None:
    """Token ids are object keys, so they come as texts."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fault("must be an object of token ids and numbers")
    pairs = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise fault(f"key {shortened(token)} is not a token id")
        if type(bias) not in (int, float) or not math.isfinite(bias):
            raise fault(f"the bias of token {token} must be a number, not {shortened(bias)}")
        pairs.append((int(token), bias))
    return tuple(pairs)


def _parse_bad_words(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise fault("must be a list of texts")
    if len(value) > MAX_BAD_WORDS:
        raise fault(f"takes at most {MAX_BAD_WORDS} texts, not {len(value)}")
    if not all(0 < len(word) <= MAX_BAD_WORD_CHARS for word in value):
        raise fault(f"texts must have from 1 to {MAX_BAD_WORD_CHARS} characters")
    return tuple(value)


def _parse_role(value: object) -> str:
    if value not in ROLES:
        raise fault(f"unknown role {shortened(value)}; accepted are {', '.join(ROLES)}")
    # Templates of open models know "system"; OpenAI renamed it for its own newer ones.
    return "system" if value == "developer" else str(value)


def _parse_content(value: object) -> str:
    """Text as it is; text parts joined by newlines."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise fault("must be a text or a list of text parts")
    return "\n".join(map(_parse_part, value))


def _parse_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise fault(f"part of type {shortened(kind)} is not supported: Octavo reads text only")
    text = part["text"] if isinstance(part, dict) and "text" in part else None
    if not isinstance(text, str):
        raise fault("a text part must have a text")
    return text


def _parse_template_kwargs(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value.keys() <= set(TEMPLATE_VARIABLES):
        raise fault(f"must be an object with no other keys than {', '.join(TEMPLATE_VARIABLES)}")
    if not all(isinstance(variable, str | int | float) for variable in value.values()):
        raise fault("values must be texts, numbers or booleans")
    return value


def shortened(value: object) -> str:
    """A value as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# What /openapi.json says of these fields: the accepted forms with their bounds, as the functions above check them.
_TokenId = Annotated[int, Field(ge=0, le=MAX_WHOLE)]
_PromptText = Annotated[str, Field(min_length=1)]
_PromptIds = Annotated[list[_TokenId], Field(min_length=1)]
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_BadWord = Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)]
_BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Bias = Annotated[float, Field(ge=BIASES.low, le=BIASES.high)]


_TextPart = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
    ),
]


def _ids_form(most: int) -> Any:
    return Annotated[list[_TokenId], Field(max_length=most)] | None


PromptsField = Annotated[
    list[Prompt],
    PlainValidator(
        _parse_prompts,
        json_schema_input_type=_PromptText
        | _PromptIds
        | Annotated[list[_PromptText], Field(min_length=1)]
        | Annotated[list[_PromptIds], Field(min_length=1)],
    ),
]
StopField = Annotated[
    tuple[str, ...],
    PlainValidator(
        _parse_stop, json_schema_input_type=_Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None
    ),
]
PromptField = Annotated[Prompt, PlainValidator(_parse_prompt, json_schema_input_type=_PromptText | _PromptIds)]
InputsField = Annotated[
    list[Prompt],
    PlainValidator(
        _parse_inputs,
        json_schema_input_type=_PromptText
        | _PromptIds
        | Annotated[list[_PromptText], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[_PromptIds], Field(min_length=1, max_length=MAX_INPUTS)],
    ),
]
RetentionField = Annotated[float | None, PlainValidator(_parse_retention, json_schema_input_type=str | float | None)]
StopTokenIdsField = Annotated[
    tuple[int, ...] | None,
    PlainValidator(_token_ids(MAX_STOP_TOKEN_IDS), json_schema_input_type=_ids_form(MAX_STOP_TOKEN_IDS)),
]
AllowedTokenIdsField = Annotated[
    tuple[int, ...] | None,
    PlainValidator(_token_ids(MAX_ALLOWED_TOKEN_IDS), json_schema_input_type=_ids_form(MAX_ALLOWED_TOKEN_IDS)),
]
LogitBiasField = Annotated[
    tuple[tuple[int, float], ...] | None,
    PlainValidator(
        _parse_logit_bias,
        json_schema_input_type=Annotated[dict[_BiasedToken, _Bias], Field(max_length=MAX_LOGIT_BIAS)] | None,
    ),
]
BadWordsField = Annotated[
    tuple[str, ...],
    PlainValidator(
        _parse_bad_words,
        json_schema_input_type=Annotated[list[_BadWord], Field(max_length=MAX_BAD_WORDS)] | None,
    ),
]
RoleField = Annotated[str, PlainValidator(_parse_role, json_schema_input_type=Literal[ROLES])]
ContentField = Annotated[str, PlainValidator(_parse_content, json_schema_input_type=str | list[_TextPart] | None)]
TemplateVariablesField = Annotated[
    dict[str, Any],
    PlainValidator(
        _parse_template_kwargs,
        json_schema_input_type=dict[Literal[TEMPLATE_VARIABLES], str | bool | float] | None,  # type: ignore[valid-type]
    ),
]
