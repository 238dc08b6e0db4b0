"""What /openapi.json says beyond what the types of the fields say.

Bounds that hold for a request's values stand there as well, so that a client made from the document sends what is
accepted; tests send both sides of each (`tests/server/test_bounds.py`, `tests/server/test_fuzz.py`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from octavo.scheduler.sampling import MAX_WHOLE, RANGES
from octavo.server.errors import ErrorBody
from octavo.server.limits import MAX_CHOICES
from octavo.server.tools.definitions import MAX_DESCRIPTION_CHARS, MAX_TOOLS, NAME

Schema = dict[str, Any]


def _error(description: str, **headers: str) -> Schema:
    error = msgspec.json.schema(ErrorBody)["$defs"]["ErrorBody"]
    envelope = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    told = {
        name.replace("_", "-"): {"schema": {"type": "string"}, "description": text} for name, text in headers.items()
    }
    return {"description": description, "content": {"application/json": {"schema": envelope}}, "headers": told}


# Status → how every route answers with it. FastAPI would say 422 for what is a 400 here.
ERRORS: Final[dict[int | str, Schema]] = {
    "4XX": _error("The request is refused, or comes too early (429).", retry_after="Seconds to wait, with 429."),
    500: _error("The request failed, through no fault of its own.", x_should_retry='"false": it would fail again.'),
    503: _error("The engine cannot take requests now.", retry_after="Seconds to wait."),
}

# A route whose answer may be a stream of server-sent events.
STREAMS: Final[dict[int | str, Schema]] = {200: {"content": {"text/event-stream": {}}}}

JSON_SCHEMA: Final[Schema] = {"type": "object", "description": "A JSON schema."}
TEXT: Final[Schema] = {"type": "string", "minLength": 1}
TOKEN_IDS: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_WHOLE}}
CHOICES: Final[Schema] = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MAX_CHOICES}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties]}


RESPONSE_FORMAT: Final[Schema] = {
    "oneOf": [
        _object(type={"enum": ["text", "json_object"]}),
        _object(type={"const": "json_schema"}, json_schema=_object(schema=JSON_SCHEMA)),
    ]
}
STRUCTURED_OUTPUTS: Final[Schema] = {
    "type": "object",
    "properties": {
        "json": JSON_SCHEMA,
        "json_object": {"type": "boolean"},
        "regex": TEXT,
        "choice": CHOICES,
        "grammar": TEXT,
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}

_FUNCTION_NAME: Final[Schema] = {"type": "string", "pattern": f"^{NAME.pattern}$"}
_FUNCTION: Final[Schema] = {
    "type": "object",
    "properties": {
        "name": _FUNCTION_NAME,
        "description": {"type": "string", "maxLength": MAX_DESCRIPTION_CHARS},
        "parameters": {"type": "object", "properties": {"type": {"const": "object"}, "properties": {"type": "object"}}},
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name"],
}
TOOLS: Final[Schema] = {
    "type": "array",
    "items": _object(type={"const": "function"}, function=_FUNCTION),
    "maxItems": MAX_TOOLS,
}
TOOL_CHOICE: Final[Schema] = {
    "oneOf": [
        {"enum": ["none", "auto", "required"]},
        _object(type={"const": "function"}, function=_object(name=_FUNCTION_NAME)),
    ]
}
# What tools replaced: nothing but nothing can be asked for.
FUNCTIONS: Final[Schema] = {"type": "array", "maxItems": 0, "deprecated": True}
FUNCTION_CALL: Final[Schema] = {"const": "none", "deprecated": True}


def tell_ranges(schema: Schema) -> None:
    """Adds the numbers that sampling parameters may be. Beside ``anyOf`` they concern only numbers, not null."""
    for name, field in schema["properties"].items():
        if (accepted := RANGES.get(name)) is not None:
            field["exclusiveMinimum" if accepted.above else "minimum"] = accepted.low
            field["maximum"] = accepted.high


def one_of(given: str, other: str) -> Schema:
    """Where exactly one of two fields has to be sent, this says that it is the first."""
    return {"required": [given], "properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}}
