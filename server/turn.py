"""A conversation's next turn, whichever API it is asked through: what the model gets, and what its text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.server.generation import Batch, Piece
from octavo.server.keys import Identity
from octavo.server.limits import MAX_MESSAGES
from octavo.server.protocol import ChatCompletionRequest, ChatMessage
from octavo.server.service import Service
from octavo.server.structured import document_of, json_grammar
from octavo.server.tools.events import Content, Event
from octavo.server.tools.parser import ToolCallParser
from octavo.server.tools.use import ToolUse


@dataclass(frozen=True)
class Turn:
    """What was admitted, and how to read what comes of it.

    Attributes:
        batch: The conversation's generation.
        parsers: For each of its sequences, what finds the calls in it; None where there can be none.
    """

    batch: Batch
    parsers: Sequence[ToolCallParser | None]

    @classmethod
    async def of(
        cls, service: Service, body: ChatCompletionRequest, use: ToolUse, grammar: str | None, identity: Identity
    ) -> Turn:
        """Checks and encodes a conversation; nothing is started.

        Args:
            grammar: What the answer has to follow, if anything.

        Raises:
            InvalidRequestError, NeverFitsError: The request is refused.
        """
        sampling = service.sampling(body, grammar, max_tokens=body.output_limit)
        prompt = await service.encode_chat(
            body.messages, use, add_generation_prompt=body.add_generation_prompt, **body.chat_template_kwargs
        )
        kept = use.marks(service.tokenizer.added_tokens)
        batch = service.batch(body, service.truncated(body, [prompt]), sampling, identity, kept)
        return cls(batch, [use.parser() for _ in range(batch.size)])

    def read(self, piece: Piece) -> Sequence[Event]:
        """A piece's text as content and calls."""
        parser = self.parsers[piece.index]
        if parser is None:
            return [Content(piece.text)]
        events = [*parser.push(piece.text), *(parser.flush() if piece.finish_reason else ())]
        if (reason := self.finish_reason(piece)) is not None:
            self.batch.finish_reasons[piece.index] = reason
        return events

    def finish_reason(self, piece: Piece) -> str | None:
        """Why the sequence ended, if it did: a piece's reasons, or "tool_calls"."""
        parser = self.parsers[piece.index]
        return "tool_calls" if parser and parser.num_calls and piece.finish_reason == "stop" else piece.finish_reason


def chat_request(messages: Sequence[Mapping[str, Any]], *, param: str, **fields: Any) -> ChatCompletionRequest:
    """A request of another API, as a chat.

    Args:
        messages: What was said, in chats' form; contents are texts.
        param: The request field that they came in.
        **fields: A chat's other fields; their types have been checked.

    Raises:
        InvalidRequestError: There are none, or too many.
    """
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidRequestError(f"{param}: takes from 1 to {MAX_MESSAGES} messages, not {len(messages)}", param=param)
    return ChatCompletionRequest(messages=[ChatMessage(**message) for message in messages], **fields)


def grammar_of_turn(
    use: ToolUse, added_tokens: Mapping[str, int], schema: Mapping[str, Any] | None, param: str
) -> str | None:
    """What an answer has to follow: a call, a document, or either.

    Args:
        added_tokens: The tokenizer's.
        schema: The document's, if one is asked for. param: the request field that it came in.

    Raises:
        InvalidRequestError: The schema is too large or too deep.
    """
    if schema is None:
        return use.grammar(added_tokens, None)
    asked = json_grammar(schema, param)
    return use.grammar(added_tokens, document_of(schema)) or asked
