"""The events of a response's stream, each with its number."""

from __future__ import annotations

import msgspec

from octavo.server.logprobs import ChatTokenLogprob
from octavo.server.responses_api.objects import Item, OutputText, ResponseObject


class Event(msgspec.Struct, frozen=True, tag_field="type"):
    """What all of them have."""

    sequence_number: int


class Created(Event, frozen=True, tag="response.created"):
    """The response exists."""

    response: ResponseObject


class InProgress(Event, frozen=True, tag="response.in_progress"):
    """The model is at it."""

    response: ResponseObject


class Completed(Event, frozen=True, tag="response.completed"):
    """It is done. The last event, as the next two."""

    response: ResponseObject


class CutOff(Event, frozen=True, tag="response.incomplete"):
    """It has as many tokens as it may."""

    response: ResponseObject


class Failed(Event, frozen=True, tag="response.failed"):
    """It failed."""

    response: ResponseObject


class ItemAdded(Event, frozen=True, tag="response.output_item.added"):
    """An item begins, empty."""

    output_index: int
    item: Item


class ItemDone(Event, frozen=True, tag="response.output_item.done"):
    """An item ends."""

    output_index: int
    item: Item


class TextAdded(Event, frozen=True, tag="response.content_part.added"):
    """A message's text begins. It is the message's only part."""

    output_index: int
    item_id: str
    part: OutputText
    content_index: int = 0


class TextDelta(Event, frozen=True, tag="response.output_text.delta"):
    """More text."""

    output_index: int
    item_id: str
    delta: str
    logprobs: list[ChatTokenLogprob]
    content_index: int = 0


class TextDone(Event, frozen=True, tag="response.output_text.done"):
    """All text."""

    output_index: int
    item_id: str
    text: str
    logprobs: list[ChatTokenLogprob]
    content_index: int = 0


class TextEnded(Event, frozen=True, tag="response.content_part.done"):
    """A message's text ends."""

    output_index: int
    item_id: str
    part: OutputText
    content_index: int = 0


class ArgumentsDelta(Event, frozen=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments; all of them, joined, are the text of a JSON object."""

    output_index: int
    item_id: str
    delta: str


class ArgumentsDone(Event, frozen=True, tag="response.function_call_arguments.done"):
    """All arguments of a call."""

    output_index: int
    item_id: str
    name: str
    arguments: str
