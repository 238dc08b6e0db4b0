"""How models write their calls. A family's format is a row of a table; its template tells which row is a model's."""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass
from enum import Enum
from typing import Final

from octavo.errors import ConfigError

_ALPHANUMERIC: Final = string.ascii_letters + string.digits


class Layout(Enum):
    """What stands between the marks.

    OBJECT   {"name": …, "arguments": {…}}           and marks around each call
    ARRAY    [{"name": …, "arguments": {…}}, …]      and one mark before all
    NAMED    name[ARGS]{…}                           and a mark before each call
    XML      <function=name><parameter=key>…         and marks around each call
    """

    OBJECT = "object"
    ARRAY = "array"
    NAMED = "named"
    XML = "xml"


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls.

    Attributes:
        name: What the operator calls it.
        layout: What stands between the marks.
        opening: The mark before a call.
        closing: The mark after it, or empty.
        arguments_key: Where the layout is an object, the arguments' key.
        bare: A call may also come without its opening mark, at the start of a line.
        single: Its templates take one call a message.
        short_ids: Its templates know calls by nine letters or digits.
    """

    name: str
    layout: Layout
    opening: str
    closing: str = ""
    arguments_key: str = "arguments"
    bare: bool = False
    single: bool = False
    short_ids: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks. They are special tokens in many tokenizers: a detokenizer that skips those must keep these."""
        inner = ("[CALL_ID]", "[ARGS]") if self.layout is Layout.NAMED else ()
        return tuple(filter(None, (self.opening, *inner, self.closing)))

    def new_id(self) -> str:
        """An id for a call: OpenAI's form, or Mistral's, whose templates refuse any other."""
        if self.short_ids:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


HERMES: Final = ToolFormat("hermes", Layout.OBJECT, "<tool_call>", "</tool_call>")
LLAMA3: Final = ToolFormat(
    "llama3", Layout.OBJECT, "<|python_tag|>", arguments_key="parameters", bare=True, single=True
)
MISTRAL: Final = ToolFormat("mistral", Layout.ARRAY, "[TOOL_CALLS]", short_ids=True)
MISTRAL_ARGS: Final = ToolFormat("mistral-args", Layout.NAMED, "[TOOL_CALLS]", short_ids=True)
QWEN3_CODER: Final = ToolFormat("qwen3-coder", Layout.XML, "<tool_call>", "</tool_call>")

FORMATS: Final = {format.name: format for format in (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, QWEN3_CODER)}

# What a template contains → its format; the first row wins. None: marks that look like another family's.
_SIGNS: Final[tuple[tuple[tuple[str, ...], ToolFormat | None], ...]] = (
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_ARGS),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<arg_key>",), None),  # GLM: <tool_call>name, then XML of its own
    (("<tool_call>", "<function="), QWEN3_CODER),
    (("<tool_call>",), HERMES),
    (("<|start_header_id|>", '"parameters": '), LLAMA3),
    (("<|python_tag|>",), LLAMA3),
)


@dataclass(frozen=True)
class ToolSupport:
    """How tools work with one model.

    Attributes:
        format: How it writes calls.
        native: Its template describes the tools. Otherwise Octavo does, in the system message, and teaches Hermes'
            format there (`octavo.server.tools.prompt`).
    """

    format: ToolFormat
    native: bool


def detect_format(chat_template: str) -> ToolFormat | None:
    """The format that a chat template shows, or None if it shows no known one."""
    return next((format for signs, format in _SIGNS if all(sign in chat_template for sign in signs)), None)


def tool_support(option: str, chat_template: str) -> ToolSupport:
    """What works with a model.

    Args:
        option: A name in `FORMATS`, or "auto": the template's, or Hermes' with a description of our own, so that
            every model that has a chat template can be given tools.
        chat_template: The model's template.

    Raises:
        ConfigError: There is no such format, or the template has no place for tools: then only "hermes" works.
    """
    if option == "auto":
        detected = detect_format(chat_template)
        return ToolSupport(detected or HERMES, native=detected is not None)
    if option not in FORMATS:
        raise ConfigError(f"unknown tool format {option!r}; accepted are auto, {', '.join(FORMATS)}")
    native = re.search(r"\btools\b", chat_template) is not None
    if not native and option != HERMES.name:
        raise ConfigError(
            f"the tool format {option!r} needs a chat template that describes tools, and the model's does not; "
            f"accepted are auto and {HERMES.name}, whose description Octavo writes itself"
        )
    return ToolSupport(FORMATS[option], native)
