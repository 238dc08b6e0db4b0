"""A conversation in Anthropic's form, messages of content blocks, as a chat's messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NoReturn

from octavo.errors import InvalidRequestError
from octavo.server.fields import shortened

Message = dict[str, Any]

_BLOCKS: Final = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use"), "system": ("text",)}


def chat_messages(system: str | Sequence[Any] | None, messages: Sequence[Any]) -> list[Message]:
    """The conversation, its instructions first. Texts beside each other are joined by a newline.

    Raises:
        InvalidRequestError: A message is malformed, or holds something else than text, calls and their results.
    """
    told = [{"role": "system", "content": _text(system, "system")}] if system else []
    for index, message in enumerate(messages):
        told += _told(message, f"messages[{index}]")
    if messages[-1]["role"] == "assistant":
        _refuse(f"messages[{len(messages) - 1}]", "ends the conversation; continuing the assistant's is not supported")
    return told


def _told(message: object, at: str) -> Iterable[Message]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in _BLOCKS:
        _refuse(at, f"must be an object with a role among {', '.join(_BLOCKS)}, not {shortened(message)}")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _blocks(content, _BLOCKS[role], f"{at}.content")
    return [_answer(blocks)] if role == "assistant" else _said(role, blocks)


def _said(role: str, blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Message]:
    """Texts and results in their order."""
    for kind, group in groupby(blocks, lambda block: block[1]["type"]):
        if kind == "text":
            yield {"role": role, "content": "\n".join(_text_of(block, at) for at, block in group)}
        else:
            yield from (_result(block, at) for at, block in group)


def _answer(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> Message:
    texts = [_text_of(block, at) for at, block in blocks if block["type"] == "text"]
    calls = [_call(block, at) for at, block in blocks if block["type"] == "tool_use"]
    return {"role": "assistant", "content": "\n".join(texts), "tool_calls": calls}


def _call(block: Mapping[str, Any], at: str) -> dict[str, Any]:
    if not isinstance(block.get("id"), str) or not isinstance(block.get("name"), str):
        _refuse(at, "must have an id and a name, both texts")
    if not isinstance(block.get("input"), dict):
        _refuse(f"{at}.input", f"must be an object, not {shortened(block.get('input'))}")
    function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
    return {"id": block["id"], "type": "function", "function": function}


def _result(block: Mapping[str, Any], at: str) -> Message:
    if not isinstance(block.get("tool_use_id"), str):
        _refuse(at, "must have the tool_use_id of the call that it answers")
    content = _text(block.get("content") or "", f"{at}.content")
    # No template knows of failures, so the text has to say so.
    told = f"Error: {content}" if block.get("is_error") is True else content
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": told}


def _text(content: object, at: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_of(block, at) for at, block in _blocks(content, ("text",), at))


def _blocks(content: object, kinds: Sequence[str], at: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Content blocks, each with where it stands."""
    if not isinstance(content, list):
        _refuse(at, f"must be a text or a list of blocks, not {shortened(content)}")
    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            _refuse(
                f"{at}[{index}]",
                f"a block of type {shortened(kind)} is not supported here: Octavo reads text only; "
                f"accepted are {', '.join(kinds)}",
            )
    return [(f"{at}[{index}]", block) for index, block in enumerate(content)]


def _text_of(block: Mapping[str, Any], at: str) -> str:
    if not isinstance(block.get("text"), str):
        _refuse(f"{at}.text", "must be a text")
    text: str = block["text"]
    return text


def _refuse(at: str, message: str) -> NoReturn:
    raise InvalidRequestError(f"{at}: {message}", param=at.partition("[")[0])
