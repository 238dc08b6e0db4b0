"""Tools in Anthropic's form, as a chat's."""

from __future__ import annotations

from typing import Any, Final

from octavo.errors import InvalidRequestError
from octavo.server.fields import shortened
from octavo.server.messages_api.request import CountTokensRequest
from octavo.server.tools.definitions import Tool, parse_tools, read_function
from octavo.server.tools.formats import ToolSupport
from octavo.server.tools.use import ToolUse

_MODES: Final = {"auto": "auto", "any": "required", "none": "none"}


def tool_use(body: CountTokensRequest, support: ToolSupport) -> ToolUse:
    """What a request says of tools.

    Raises:
        InvalidRequestError: It is malformed, contradicts itself, or names a tool that Octavo would have to run.
    """
    choice = body.tool_choice or {}
    single = choice.get("disable_parallel_tool_use")
    if single is not None and not isinstance(single, bool):
        raise InvalidRequestError(
            f"tool_choice.disable_parallel_tool_use must be true or false, not {shortened(single)}",
            param="tool_choice",
        )
    return ToolUse.chosen(support, parse_tools(body.tools, _tool), _choice(choice) if choice else None, not single)


def _tool(value: object, at: str) -> Tool:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{at}: must be an object, not {shortened(value)}", param="tools")
    if value.get("type", "custom") not in (None, "custom"):
        raise InvalidRequestError(
            f"{at}: a tool of type {shortened(value['type'])} is not supported; Octavo runs none itself, "
            "and takes those that have an input_schema",
            param="tools",
        )
    if "input_schema" not in value:
        raise InvalidRequestError(f"{at}.input_schema is required", param="tools")
    return read_function(value, at, "input_schema")


def _choice(choice: dict[str, Any]) -> object:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in _MODES:
        raise InvalidRequestError(
            f"tool_choice.type must be {', '.join(_MODES)} or tool, not {shortened(kind)}", param="tool_choice"
        )
    return _MODES[kind]
