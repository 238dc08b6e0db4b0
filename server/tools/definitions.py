"""What clients declare: the functions that a model may call, and whether it has to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.fields import shortened
from octavo.server.limits import MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH
from octavo.server.strict_json import deeper_than

MAX_TOOLS: Final = 128
MAX_DESCRIPTION_CHARS: Final = 4096
MAX_SCHEMAS_BYTES: Final = 256 * 1024  # of all tools together

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODES: Final = ("none", "auto", "required")
_REPLACED: Final = {"functions": "tools", "function_call": "tool_choice"}


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: What the model calls it.
        description: What it does, or None.
        parameters: JSON schema of its arguments, which are always an object.
        strict: Arguments must keep to the schema, also where the model is free to call or not.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        described = {} if self.description is None else {"description": self.description}
        function = {"name": self.name, **described, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model calls.

    Attributes:
        mode: It does not, it may, or it must.
        name: The one function that it must call, exactly once; only with "required".
    """

    mode: Literal["none", "auto", "required"]
    name: str | None = None


def chat_tool(value: object, at: str) -> Tool:
    """A tool as chats declare it: ``{"type": "function", "function": {…}}``.

    Raises:
        InvalidRequestError: It is malformed or larger than what is allowed.
    """
    if not isinstance(value, dict) or value.get("type") != "function":
        _refuse("tools", "must be an object of type 'function'", at)
    function = value.get("function")
    if not isinstance(function, dict):
        _refuse("tools", "must have a function, which is an object", at)
    return read_function(function, f"{at}.function")


def read_function(function: Mapping[str, Any], at: str, schema: str = "parameters") -> Tool:
    """A tool of its name, description, schema and strictness.

    Args:
        at: Where it stands in the request.
        schema: What its schema's field is called.

    Raises:
        InvalidRequestError: It is malformed or larger than what is allowed.
    """
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        _refuse("tools", f"must be true or false, not {shortened(strict)}", f"{at}.strict")
    return Tool(
        _parse_name(function.get("name"), f"{at}.name"),
        _parse_description(function.get("description"), f"{at}.description"),
        _parse_parameters(function.get(schema), f"{at}.{schema}"),
        bool(strict),
    )


def parse_tools(value: object, read: Callable[[object, str], Tool] = chat_tool) -> tuple[Tool, ...]:
    """Reads ``tools``.

    Args:
        read: Reads one of them, and where it stands.

    Raises:
        InvalidRequestError: It is malformed or larger than what is allowed.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        _refuse("tools", "must be a list of functions")
    if len(value) > MAX_TOOLS:
        _refuse("tools", f"takes at most {MAX_TOOLS} functions, not {len(value)}")
    tools = tuple(read(entry, f"tools[{index}]") for index, entry in enumerate(value))
    if (size := sum(_size(tool.parameters) for tool in tools)) > MAX_SCHEMAS_BYTES:
        _refuse("tools", f"all schemas together take at most {MAX_SCHEMAS_BYTES} bytes of JSON, not {size}")
    names = [tool.name for tool in tools]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        _refuse("tools", f"names must differ; {repeated!r} is there more than once")
    return tools


def parse_tool_choice(value: object, tools: Sequence[Tool]) -> ToolChoice:
    """Reads ``tool_choice``; left out, it is "auto" where there are tools and "none" where there are none.

    Raises:
        InvalidRequestError: It is malformed, names a function that is not among the tools, or asks for a call
            without tools.
    """
    if value is None:
        value = "auto" if tools else "none"
    if isinstance(value, dict):
        name = _chosen_name(value)
        if all(name != tool.name for tool in tools):
            _refuse("tool_choice", f"names {name!r}, which is not among the tools")
        return ToolChoice("required", name)
    mode = next((mode for mode in _MODES if mode == value), None)
    if mode is None:
        _refuse("tool_choice", f"must be none, auto, required or a function, not {shortened(value)}")
    if mode != "none" and not tools:
        _refuse("tool_choice", f"{mode!r} needs tools")
    return ToolChoice(mode)


def parse_parallel_tool_calls(value: object) -> bool:
    """Reads ``parallel_tool_calls``: whether one answer may have several calls. Left out, it may.

    Raises:
        InvalidRequestError: It is not a boolean.
    """
    if value is None:
        return True
    if not isinstance(value, bool):
        _refuse("parallel_tool_calls", f"must be true or false, not {shortened(value)}")
    return value


def refuse_replaced(fields: Mapping[str, object]) -> None:
    """Refuses the fields by which functions were declared before there were tools: their answers had another form.

    Raises:
        InvalidRequestError: One of them asks for something.
    """
    for old, new in _REPLACED.items():
        if fields.get(old) not in (None, [], "none"):
            _refuse(old, f"is not supported: it was replaced by {new}")


def _parse_name(value: object, at: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        _refuse("tools", f"must have from 1 to 64 letters, digits, _ or -, not {shortened(value)}", at)
    return value


def _parse_description(value: object, at: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        _refuse("tools", "must be a text", at)
    if len(value) > MAX_DESCRIPTION_CHARS:
        _refuse("tools", f"takes at most {MAX_DESCRIPTION_CHARS} characters, not {len(value)}", at)
    return value


def _parse_parameters(value: object, at: str) -> Mapping[str, Any]:
    if value is None:
        return {"type": "object", "properties": {}}
    if not isinstance(value, dict):
        _refuse("tools", "must be a JSON schema, which is an object", at)
    if deeper_than(value, MAX_SCHEMA_DEPTH):
        _refuse("tools", f"is nested more than {MAX_SCHEMA_DEPTH} levels deep", at)
    if value.get("type", "object") != "object":
        _refuse("tools", f"must be the schema of an object, not of type {shortened(value['type'])}", at)
    if not isinstance(value.get("properties", {}), dict):
        _refuse("tools", "properties must be an object", at)
    required = value.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        _refuse("tools", "required must be a list of texts", at)
    schema = {"type": "object", **value}
    if (size := _size(schema)) > MAX_GRAMMAR_BYTES:
        _refuse("tools", f"takes at most {MAX_GRAMMAR_BYTES} bytes of JSON, not {size}", at)
    return schema


def _size(schema: Mapping[str, Any]) -> int:
    return len(msgspec.json.encode(schema))


def _chosen_name(value: Mapping[str, Any]) -> str:
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if value.get("type") != "function" or not isinstance(name, str):
        _refuse("tool_choice", "must be of the form {'type': 'function', 'function': {'name': …}} if it is an object")
    return name


def _refuse(param: str, message: str, at: str | None = None) -> NoReturn:
    raise InvalidRequestError(f"{at or param}: {message}", param=param)
