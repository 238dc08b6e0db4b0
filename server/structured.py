"""Structured output: what clients may ask an answer to follow, as a grammar for llguidance.

response_format      OpenAI's: {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": …}}
structured_outputs   vLLM's: {"json": …}, {"json_object": true}, {"regex": …}, {"choice": […]} or {"grammar": …}
guided_…             its older names: guided_json, guided_regex, guided_choice, guided_grammar
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from llguidance import LLMatcher, gbnf_to_lark

from octavo.errors import InvalidRequestError
from octavo.server.fields import shortened
from octavo.server.limits import MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH
from octavo.server.strict_json import deeper_than

# What may stand between a document's parts: left to itself, a small model fills the rest of its window with blanks.
# "oneOf" is read as "anyOf": where it matters, its alternatives exclude each other by themselves.
_JSON: Final[Any] = {"whitespace_pattern": r" ?|\n {0,16}", "coerce_one_of": True}


def grammar_of(fields: Mapping[str, Any]) -> str | None:
    """The grammar that a request's fields ask for; None if they ask for none.

    Args:
        fields: The body's fields by name, `FIELDS` among them.

    Raises:
        InvalidRequestError: A field is malformed or too large, or there are two.
    """
    asked = {name: value for name in FIELDS if (value := fields.get(name)) is not None}
    found = [(name, text) for name, value in asked.items() if (text := FIELDS[name](name, value)) is not None]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise InvalidRequestError(f"{names} both say what the answer must follow; send one", param=found[1][0])
    return found[0][1] if found else None


def text_size(fields: Mapping[str, Any]) -> int:
    """Characters of the grammar that `grammar_of` would have to read; llama.cpp's form takes a while."""
    outputs = fields.get("structured_outputs") or {}
    return sum(len(text) for text in (fields.get("guided_grammar"), outputs.get("grammar")) if isinstance(text, str))


def document_schema(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that ``response_format`` asks for, with how its documents are written; None if it asks for none.

    Args:
        fields: As for `grammar_of`, which has accepted them.
    """
    wanted = fields.get("response_format")
    if wanted is None or wanted["type"] == "text":
        return None
    if wanted["type"] != "json_schema":
        return document_of({"type": "object"})
    return document_of(_schema("response_format.json_schema.schema", wanted["json_schema"]["schema"]))


def document_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema, with how its documents are written."""
    return {**schema, "x-guidance": _JSON}


def json_grammar(schema: Mapping[str, Any], param: str) -> str:
    """The grammar of a JSON schema.

    Raises:
        InvalidRequestError: It is too large or too deep; whether it is a schema shows when it is compiled.
    """
    _bounded(json.dumps(schema), param)
    if deeper_than(schema, MAX_SCHEMA_DEPTH):
        raise InvalidRequestError(f"{param}: a schema may be at most {MAX_SCHEMA_DEPTH} levels deep", param=param)
    grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(document_of(schema)))
    return grammar


def _response_format(name: str, value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return json_grammar({"type": "object"}, name)
    if kind != "json_schema" or not isinstance(value, dict):
        raise InvalidRequestError(
            f"{name}.type must be text, json_object or json_schema, not {shortened(kind)}", param=name
        )
    described = value.get("json_schema")
    if not isinstance(described, dict) or "schema" not in described:
        raise InvalidRequestError(f"{name}.json_schema must be an object with a schema", param=name)
    return _json(f"{name}.json_schema.schema", described["schema"])


def _json(name: str, value: object) -> str:
    return json_grammar(_schema(name, value), name)


def _schema(name: str, value: object) -> Mapping[str, Any]:
    """A JSON schema, which may come as a text; ``true`` is the one that every document follows."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{name} is not JSON: {error}", param=name) from error
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be a JSON schema, not {shortened(value)}", param=name)
    return value


def _json_object(name: str, value: object) -> str | None:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, not {shortened(value)}", param=name)
    return json_grammar({"type": "object"}, name) if value else None


def _regex(name: str, value: object) -> str:
    grammar: str = LLMatcher.grammar_from_regex(_text(name, value))
    return grammar


def _choice(name: str, value: object) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise InvalidRequestError(f"{name} must be a list of texts, none of them empty", param=name)
    if len(value) > MAX_CHOICES:
        raise InvalidRequestError(f"{name} takes at most {MAX_CHOICES} texts, not {len(value)}", param=name)
    return _regex(name, "|".join(map(re.escape, value)))


def _grammar(name: str, value: object) -> str:
    """A grammar in Lark's form, or in llama.cpp's GBNF."""
    text = _text(name, value)
    if "::=" in text:
        try:
            text = gbnf_to_lark.gbnf_to_lark(text)
        except Exception as error:  # whatever its parser trips over
            raise InvalidRequestError(f"{name} is not a GBNF grammar: {error}", param=name) from error
    grammar: str = LLMatcher.grammar_from_lark(text)
    return grammar


def _structured_outputs(name: str, value: object) -> str | None:
    kinds = {kind: asked for kind, asked in value.items() if asked is not None} if isinstance(value, dict) else {}
    if len(kinds) != 1 or not kinds.keys() <= _KINDS.keys():
        raise InvalidRequestError(f"{name} must have exactly one of {', '.join(_KINDS)}", param=name)
    ((kind, asked),) = kinds.items()
    return _KINDS[kind](f"{name}.{kind}", asked)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{name} must be a text that is not empty, not {shortened(value)}", param=name)
    return _bounded(value, name)


def _bounded(text: str, name: str) -> str:
    size = len(text.encode())
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidRequestError(f"{name} may have at most {MAX_GRAMMAR_BYTES} bytes, not {size}", param=name)
    return text


_Reader = Callable[[str, Any], str | None]

_KINDS: Final[Mapping[str, _Reader]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}

# Field → what reads it: (its name, its value) to the grammar.
FIELDS: Final[Mapping[str, _Reader]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
