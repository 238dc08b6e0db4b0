"""One request's tools: what its answer may call, and how this model writes that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.server.tools.definitions import (
    Tool,
    ToolChoice,
    parse_parallel_tool_calls,
    parse_tool_choice,
    parse_tools,
    refuse_replaced,
)
from octavo.server.tools.formats import ToolSupport
from octavo.server.tools.grammar import grammar_for
from octavo.server.tools.messages import for_template
from octavo.server.tools.parser import ToolCallParser


@dataclass(frozen=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        support: How tools work with this model.
        tools: What the model is told of; nothing where it must not call.
        choice: Whether it calls. parallel: whether one answer may have several calls.
    """

    support: ToolSupport
    tools: Sequence[Tool]
    choice: ToolChoice
    parallel: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any], support: ToolSupport) -> ToolUse:
        """Reads a request's fields.

        Raises:
            InvalidRequestError: They are malformed or contradict each other.
        """
        refuse_replaced(fields)
        tools = parse_tools(fields.get("tools"))
        return cls.chosen(support, tools, fields.get("tool_choice"), fields.get("parallel_tool_calls"))

    @classmethod
    def chosen(cls, support: ToolSupport, tools: Sequence[Tool], choice: object, parallel: object) -> ToolUse:
        """Tools, with a chat's ``tool_choice`` and ``parallel_tool_calls``.

        Raises:
            InvalidRequestError: They are malformed or contradict each other.
        """
        chosen = parse_tool_choice(choice, tools)
        return cls(support, () if chosen.mode == "none" else tools, chosen, parse_parallel_tool_calls(parallel))

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The conversation and the variables that the chat template gets."""
        return for_template(messages, self.tools, self.support)

    def grammar(self, added_tokens: Mapping[str, int], otherwise: Mapping[str, Any] | None) -> str | None:
        """What the answer has to follow because of the tools; None if that is nothing.

        Args:
            added_tokens: The tokenizer's added tokens: text → id.
            otherwise: The schema of an answer that calls nothing, if such an answer has one.
        """
        if not self.tools:
            return None
        if otherwise is None or self.choice.mode == "required":
            return self._grammar(self.choice, added_tokens)
        calls = self._grammar(ToolChoice("required"), added_tokens)
        assert calls is not None
        document = f"octavo_document: %json {json.dumps(otherwise)}\n"
        return calls.replace("start: ", "start: octavo_document | ", 1) + document

    def _grammar(self, choice: ToolChoice, added_tokens: Mapping[str, int]) -> str | None:
        return grammar_for(self.support.format, self.tools, choice, parallel=self.parallel, added_tokens=added_tokens)

    def parser(self) -> ToolCallParser | None:
        """Finds the calls in an answer; None where there can be none."""
        return ToolCallParser(self.support.format, self.tools) if self.tools else None

    def marks(self, added_tokens: Mapping[str, int]) -> frozenset[int]:
        """The tokens that stand around calls: they are control tokens of some models, and must be read all the same."""
        marks = self.support.format.marks if self.tools else ()
        return frozenset(added_tokens[mark] for mark in marks if mark in added_tokens)
