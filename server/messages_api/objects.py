"""What clients of the Messages API receive: Anthropic's message, and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from octavo.server.responses import Told


class TokenCount(msgspec.Struct, frozen=True):
    """The answer to ``/v1/messages/count_tokens``."""

    input_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """Tokens so far. The prompt is ``input_tokens`` and ``cache_read_input_tokens`` together."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0


class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text for the reader."""

    text: str


class ToolUseBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of a tool. In a stream its input comes later."""

    id: str
    name: str
    input: dict[str, Any] = {}


Block = TextBlock | ToolUseBlock


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"
    octavo: Told = UNSET


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """A stream begins: the message without its content."""

    message: Message


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: Block


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class InputDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of a call's input; all of it, joined, is the text of a JSON object."""

    partial_json: str


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class StopDelta(msgspec.Struct, frozen=True):
    """Why the message ended."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """The message ends."""

    delta: StopDelta
    usage: MessageUsage
    octavo: Told = UNSET


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """The stream ends."""
