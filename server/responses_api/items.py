"""The input of a response, items of several kinds, as a chat's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from octavo.errors import InvalidRequestError
from octavo.server.fields import ROLES, shortened

Message = dict[str, Any]

_TEXTS: Final = ("input_text", "output_text")
_ROLES: Final = tuple(role for role in ROLES if role != "tool")


def chat_messages(input: str | Sequence[Any]) -> list[Message]:
    """What was said. A call belongs to the assistant's message before it.

    Raises:
        InvalidRequestError: An item is malformed, or is something else than text, a call or its result.
    """
    if isinstance(input, str):
        return [{"role": "user", "content": input}]
    told: list[Message] = []
    for index, item in enumerate(input):
        _add(told, item, f"input[{index}]")
    return told


def _add(told: list[Message], item: object, at: str) -> None:
    if not isinstance(item, dict):
        _refuse(at, f"must be an object, not {shortened(item)}")
    match item.get("type", "message"):
        case "message":
            told.append(_message(item, at))
        case "function_call" if told and told[-1]["role"] == "assistant":
            told[-1].setdefault("tool_calls", []).append(_call(item, at))
        case "function_call":
            told.append({"role": "assistant", "content": "", "tool_calls": [_call(item, at)]})
        case "function_call_output":
            told.append(_result(item, at))
        case kind:
            accepted = "message, function_call and function_call_output"
            _refuse(at, f"an item of type {shortened(kind)} is not supported; accepted are {accepted}")


def _message(item: Mapping[str, Any], at: str) -> Message:
    if item.get("role") not in _ROLES:
        _refuse(f"{at}.role", f"must be {', '.join(_ROLES)}, not {shortened(item.get('role'))}")
    return {"role": item["role"], "content": _text(item.get("content"), f"{at}.content")}


def _call(item: Mapping[str, Any], at: str) -> dict[str, Any]:
    id, name, arguments = (_string(item, field, at) for field in ("call_id", "name", "arguments"))
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(item: Mapping[str, Any], at: str) -> Message:
    id = _string(item, "call_id", at)
    return {"role": "tool", "tool_call_id": id, "content": _text(item.get("output"), f"{at}.output")}


def _text(content: object, at: str) -> str:
    """Text as it is; text parts joined by newlines."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _refuse(at, f"must be a text or a list of text parts, not {shortened(content)}")
    return "\n".join(_part(part, f"{at}[{index}]") for index, part in enumerate(content))


def _part(part: object, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _TEXTS:
        _refuse(
            at,
            f"a part of type {shortened(kind)} is not supported: Octavo reads text only; "
            f"accepted are {', '.join(_TEXTS)}",
        )
    return _string(part, "text", at)


def _string(item: Mapping[str, Any], field: str, at: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        _refuse(f"{at}.{field}", f"must be a text, not {shortened(value)}")
    return value


def _refuse(at: str, message: str) -> NoReturn:
    raise InvalidRequestError(f"{at}: {message}", param="input")
