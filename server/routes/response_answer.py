"""One answer of the Responses API: its items, the events of its stream, and what is kept of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request

from octavo.server.errors import describe
from octavo.server.generation import Piece
from octavo.server.logprobs import ChatTokenLogprob, chat_logprobs
from octavo.server.parts import Change, Closed, Grown, Opened, Part
from octavo.server.responses_api import events
from octavo.server.responses_api.items import Message
from octavo.server.responses_api.objects import (
    Failure,
    FunctionCall,
    FunctionTool,
    Incomplete,
    InputDetails,
    Item,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseUsage,
)
from octavo.server.responses_api.request import ResponsesRequest
from octavo.server.responses_api.store import ResponseStore, Stored
from octavo.server.routes.parts_answer import PartsAnswer
from octavo.server.service import Service
from octavo.server.streaming import Dialect
from octavo.server.tools.definitions import Tool
from octavo.server.tools.json_text import is_json
from octavo.server.turn import Turn


@dataclass(frozen=True)
class Kept:
    """Where a response is kept, and what was said before it."""

    store: ResponseStore
    tenant: str
    said: Sequence[Message]

    def put(self, response: ResponseObject) -> None:
        """Keeps a response that has ended."""
        messages = [*self.said, *_as_message(response.output)]
        self.store.put(self.tenant, response.id, Stored(msgspec.json.encode(response), msgspec.json.encode(messages)))


class ResponseAnswer(PartsAnswer):
    """One request's answer.

    Args:
        tools: What the request declares.
        turn: What was admitted for it.
        kept: Where to keep it, if it is to be kept.
    """

    def __init__(
        self, service: Service, body: ResponsesRequest, tools: Sequence[Tool], turn: Turn, kept: Kept | None
    ) -> None:
        self._suffix = uuid.uuid4().hex
        super().__init__(f"resp_{self._suffix}", turn)
        self._response = _begun(self.id, service.model_name, body, tools, turn)
        self._tokenizer = service.tokenizer if body.wants_logprobs else None
        self._kept = kept
        self._sent = 0
        self._logprobs: list[ChatTokenLogprob] = []
        self._told_logprobs = 0

    def dialect(self, request: Request) -> Dialect:
        return Dialect(failed=self._failed)

    def changes(self, piece: Piece) -> Iterator[Change]:
        if self._tokenizer is not None:
            self._logprobs += chat_logprobs(self._tokenizer, piece.token_ids, piece.logprobs).content
        return super().changes(piece)

    def opening(self) -> Iterable[events.Event]:
        yield events.Created(self._number(), self._response)
        yield events.InProgress(self._number(), self._response)

    def told(self, change: Change, piece: Piece) -> Iterable[events.Event]:
        part = change.part
        place = part.index, self._item_id(part)
        match change:
            case Opened():
                yield events.ItemAdded(self._number(), part.index, self._item(part, "in_progress"))
                if part.call is None:
                    yield events.TextAdded(self._number(), *place, OutputText(""))
            case Grown(_, text) if part.call is None:
                yield events.TextDelta(self._number(), *place, text, self._new_logprobs())
            case Grown(_, text):
                yield events.ArgumentsDelta(self._number(), *place, text)
            case Closed():
                yield from self._ended(part)
                yield events.ItemDone(self._number(), part.index, self._item(part, self._status(part, piece)))

    def ending(self, last: Piece) -> Iterable[events.Event]:
        response = self.whole(last)
        kind = events.Completed if response.status == "completed" else events.CutOff
        yield kind(self._number(), response)

    def whole(self, last: Piece) -> ResponseObject:
        cut_off = last.finish_reason == "length"
        response = msgspec.structs.replace(
            self._response,
            status="incomplete" if cut_off else "completed",
            output=[self._item(part, self._status(part, last)) for part in self.parts.all],
            usage=self._usage(),
            incomplete_details=Incomplete() if cut_off else None,
            octavo=self.explanation,
        )
        if self._kept is not None:
            self._kept.put(response)
        return response

    def _failed(self, error: Exception) -> Iterable[events.Event]:
        if self._sent == 0:
            yield from self.opening()
        told = describe(error)
        code = "rate_limit_exceeded" if told.type == "rate_limit_error" else "server_error"
        output = [self._item(part, "incomplete") for part in self.parts.all]
        failure = Failure(code, told.message)
        response = msgspec.structs.replace(self._response, status="failed", output=output, error=failure)
        yield events.Failed(self._number(), response)

    def _ended(self, part: Part) -> Iterable[events.Event]:
        place = part.index, self._item_id(part)
        if part.call is None:
            yield events.TextDone(self._number(), *place, part.text, self._logprobs)
            yield events.TextEnded(self._number(), *place, OutputText(part.text, self._logprobs))
        else:
            yield events.ArgumentsDone(self._number(), *place, part.call.name, part.text)

    def _item(self, part: Part, status: str) -> Item:
        if part.call is not None:
            return FunctionCall(self._item_id(part), status, part.call.id, part.call.name, part.text)
        content = [OutputText(part.text, self._logprobs)] if part.pieces else []
        return OutputMessage(self._item_id(part), status, content)

    def _item_id(self, part: Part) -> str:
        return f"{'msg' if part.call is None else 'fc'}_{self._suffix}{part.index}"

    def _status(self, part: Part, piece: Piece) -> str:
        """Of a part that has ended; only the last one can have been cut off."""
        cut_off = piece.finish_reason == "length" and part is self.parts.all[-1]
        return "incomplete" if cut_off else "completed"

    def _usage(self) -> ResponseUsage:
        usage = self.turn.batch.usage()
        cached = InputDetails(usage.prompt_tokens_details.cached_tokens)
        return ResponseUsage(usage.prompt_tokens, cached, usage.completion_tokens, usage.total_tokens)

    def _new_logprobs(self) -> list[ChatTokenLogprob]:
        new = self._logprobs[self._told_logprobs :]
        self._told_logprobs = len(self._logprobs)
        return new

    def _number(self) -> int:
        self._sent += 1
        return self._sent - 1


def _begun(id: str, model: str, body: ResponsesRequest, tools: Sequence[Tool], turn: Turn) -> ResponseObject:
    sampling = turn.batch.generations[0].request.sampling
    return ResponseObject(
        id=id,
        created_at=int(time.time()),
        model=model,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        max_output_tokens=body.max_output_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        text={"format": body.format},
        tools=[FunctionTool(tool.name, tool.description, dict(tool.parameters), tool.strict) for tool in tools],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        truncation=body.truncation or "disabled",
        store=body.store is not False,
        metadata=body.metadata or {},
        user=body.user,
    )


def _as_message(output: Sequence[Item]) -> list[Message]:
    """What was answered, as a chat's message. A call that is no JSON cannot be told to a model again."""
    text = "".join(part.text for item in output if isinstance(item, OutputMessage) for part in item.content)
    calls = [_as_call(item) for item in output if isinstance(item, FunctionCall) and is_json(item.arguments or "{}")]
    return [{"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}]


def _as_call(item: FunctionCall) -> dict[str, Any]:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
