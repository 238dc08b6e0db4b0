"""What clients send to ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import Field

from octavo.errors import InvalidRequestError
from octavo.server.fields import StopField, shortened
from octavo.server.limits import MAX_MESSAGES
from octavo.server.messages_api.blocks import chat_messages
from octavo.server.protocol import ChatCompletionRequest, OctavoOptions, Request
from octavo.server.turn import chat_request

# A model that may think as much as it sees fit may as well not think at all.
_NO_THINKING: Final = ("disabled", "adaptive")


class CountTokensRequest(Request):
    """A conversation, and what the model may call in it."""

    inert: ClassVar = {"container": (None,), "context_management": (None,), "mcp_servers": (None, [])}
    # Of these, `cache_control` asks for what happens anyway: every prefix is cached.
    without_effect: ClassVar = frozenset(
        {"cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "speed"}
    )

    messages: list[Any] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        if self.thinking is not None and self.thinking.get("type") not in _NO_THINKING:
            raise InvalidRequestError(
                f"thinking: type must be {' or '.join(_NO_THINKING)}, not {shortened(self.thinking.get('type'))}: "
                "what a model thinks is part of its text here",
                param="thinking",
                code="unsupported_parameter",
            )

    def chat(self, **fields: Any) -> ChatCompletionRequest:
        """The conversation as a chat, with further fields of one.

        Raises:
            InvalidRequestError: A message is malformed, or holds something else than text, calls and their results.
        """
        return chat_request(chat_messages(self.system, self.messages), param="messages", **fields)

    @property
    def schema_asked_for(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to follow, if any.

        Raises:
            InvalidRequestError: ``output_config.format`` is malformed.
        """
        format = (self.output_config or {}).get("format")
        if format is None:
            return None
        schema = format.get("schema") if isinstance(format, dict) and format.get("type") == "json_schema" else None
        if not isinstance(schema, dict):
            raise InvalidRequestError(
                f"output_config.format must be of type json_schema and have a schema, not {shortened(format)}",
                param="output_config",
            )
        return schema


class MessagesRequest(CountTokensRequest):
    """The body of ``POST /v1/messages``."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: StopField = ()
    stream: bool | None = None
    octavo: OctavoOptions | None = None

    def turn(self) -> ChatCompletionRequest:
        """The request as a chat.

        Raises:
            InvalidRequestError: As for `chat`.
        """
        return self.chat(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=list(self.stop_sequences),
            octavo=self.octavo,
        )
