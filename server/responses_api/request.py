"""What clients send to ``/v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, PlainValidator

from octavo.errors import InvalidRequestError
from octavo.scheduler.sampling import MAX_LOGPROBS
from octavo.server.fields import fault, shortened
from octavo.server.limits import MAX_METADATA_KEY_CHARS, MAX_METADATA_PAIRS, MAX_METADATA_VALUE_CHARS
from octavo.server.protocol import OctavoOptions, Request

LOGPROBS: Final = "message.output_text.logprobs"

_MetadataKey = Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)]
_MetadataValue = Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS)]


def _parse_input(value: object) -> str | list[Any]:
    if not isinstance(value, str | list):
        raise fault(f"must be a text or a list of items, not {shortened(value)}")
    return value


class ResponsesRequest(Request):
    """The body of ``POST /v1/responses``."""

    inert: ClassVar = {
        "background": (None, False),
        "context_management": (None, []),
        "conversation": (None,),
        "moderation": (None,),
        "prompt": (None,),
    }
    # `reasoning` and `max_tool_calls` are about what no model and no tool does here.
    without_effect: ClassVar = frozenset(
        {"max_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning",
         "safety_identifier", "service_tier", "stream_options"}
    )  # fmt: skip

    input: Annotated[str | list[Any], PlainValidator(_parse_input, json_schema_input_type=str | list[dict[str, Any]])]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(default=None, max_length=MAX_METADATA_PAIRS)
    user: str | None = None
    octavo: OctavoOptions | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer tells its tokens' log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def format(self) -> dict[str, Any]:
        """What the answer's text is to be, as `check` has found it right."""
        return (self.text or {}).get("format") or {"type": "text"}

    @property
    def schema_asked_for(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to follow, if any."""
        return {"type": "object"} if self.format["type"] == "json_object" else self.format.get("schema")

    def check(self) -> None:
        super().check()
        if self.wants_logprobs and self.tools:
            raise InvalidRequestError("log-probabilities cannot be combined with tools", param="top_logprobs")
        self._check_format()

    def _check_format(self) -> None:
        format: object = self.format
        kind = format.get("type") if isinstance(format, dict) else None
        if kind not in ("text", "json_object", "json_schema"):
            raise InvalidRequestError(
                f"text.format.type must be text, json_object or json_schema, not {shortened(kind)}", param="text"
            )
        named = isinstance(self.format.get("name"), str) and isinstance(self.format.get("schema"), dict)
        if kind == "json_schema" and not named:
            raise InvalidRequestError("text.format must have a name and a schema, which is an object", param="text")
