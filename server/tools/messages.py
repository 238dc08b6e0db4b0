"""Conversations with calls in them, from OpenAI's form into what chat templates read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.tools.definitions import Tool
from octavo.server.tools.formats import ToolFormat, ToolSupport
from octavo.server.tools.prompt import Message, as_plain_turns, with_tools_described

_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


def for_template(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], support: ToolSupport
) -> tuple[list[Message], dict[str, Any]]:
    """What to render: messages, and the template's variables.

    Templates expect arguments as objects where clients send JSON text. Mistral's accept only ids of nine letters or
    digits, and Llama's only one call a message: ids are replaced, and calls are told one after another, each with
    its result. If the model's template knows no tools, they are described in the system message, and calls and
    results become plain text in the form that is described there.

    Args:
        messages: Each with a ``role`` and a text ``content``; an assistant's may have ``tool_calls``.
        tools: The functions that the model may call; none for ``tool_choice: "none"``.
        support: How tools work with this model.

    Raises:
        InvalidRequestError: Calls are malformed, or a result belongs to no call before it.
    """
    turns = list(_turns(_checked(message, index) for index, message in enumerate(messages)))
    for turn in turns:
        _check_results(turn)
    if not support.native:
        plain = [message for turn in turns for message in as_plain_turns(turn)]
        return (with_tools_described(plain, tools) if tools else plain), {}
    native = [message for turn in turns for message in _native(turn, support.format)]
    return native, {"tools": [tool.for_template() for tool in tools]} if tools else {}


def _checked(message: Mapping[str, Any], index: int) -> Message:
    """The message with its calls' arguments as objects."""
    at = f"messages[{index}]"
    calls = message.get("tool_calls")
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    kept["content"] = message.get("content") or ""
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        _refuse(at, "a message of role 'tool' must have the tool_call_id of the call that it answers")
    # An empty list of calls would make some templates see a call.
    if not calls:
        return kept
    if message["role"] != "assistant" or not isinstance(calls, list):
        _refuse(f"{at}.tool_calls", "must be a list, in a message of role 'assistant'")
    kept["tool_calls"] = [_checked_call(call, f"{at}.tool_calls[{number}]") for number, call in enumerate(calls)]
    if len({call["id"] for call in kept["tool_calls"]}) < len(calls):
        _refuse(f"{at}.tool_calls", "ids must differ")
    return kept


def _checked_call(call: object, at: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or call.get("type", "function") != "function" or not isinstance(function, dict):
        _refuse(at, "must be an object of type 'function' with a function")
    if not isinstance(call.get("id"), str) or not isinstance(function.get("name"), str):
        _refuse(at, "must have an id and a function's name, both texts")
    arguments = _object(function.get("arguments"), f"{at}.function.arguments")
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _object(text: object, at: str) -> dict[str, Any]:
    """The object that arguments' text is. Some clients send an empty text for none."""
    try:
        value = msgspec.json.decode(text or "{}") if isinstance(text, str) else None
    except (msgspec.DecodeError, RecursionError) as error:
        _refuse(at, f"must be the text of a JSON object: {error}")
    if not isinstance(value, dict):
        _refuse(at, "must be the text of a JSON object")
    return value


def _turns(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Each message with the results that follow it."""
    turn: list[Message] = []
    for message in messages:
        if turn and message["role"] != "tool":
            yield turn
            turn = []
        turn.append(message)
    if turn:
        yield turn


def _check_results(turn: Sequence[Message]) -> None:
    names = {call["id"]: call["function"]["name"] for call in turn[0].get("tool_calls", ())}
    for result in turn:
        if result["role"] != "tool":
            continue
        if result["tool_call_id"] not in names:
            _refuse("messages", f"no call before the result has its tool_call_id {result['tool_call_id'][:80]!r}")
        # Some templates print it.
        result.setdefault("name", names[result["tool_call_id"]])


def _native(turn: Sequence[Message], format: ToolFormat) -> Iterator[Message]:
    if format.short_ids:
        turn = [_with_short_ids(message) for message in turn]
    calls = turn[0].get("tool_calls", ())
    if not format.single or len(calls) < 2:
        yield from turn
        return
    for number, call in enumerate(calls):
        yield {**turn[0], "content": turn[0]["content"] if number == 0 else "", "tool_calls": [call]}
        yield from (result for result in turn[1:] if result["tool_call_id"] == call["id"])


def _with_short_ids(message: Message) -> Message:
    message = dict(message)
    if "tool_call_id" in message:
        message["tool_call_id"] = _short_id(message["tool_call_id"])
    if "tool_calls" in message:
        message["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
    return message


def _short_id(id: str) -> str:
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:9]


def _refuse(at: str, message: str) -> NoReturn:
    raise InvalidRequestError(f"{at}: {message}", param="messages")
