"""Tools in the form of Responses, as a chat's."""

from __future__ import annotations

from octavo.errors import InvalidRequestError
from octavo.server.fields import shortened
from octavo.server.responses_api.request import ResponsesRequest
from octavo.server.tools.definitions import Tool, parse_tools, read_function
from octavo.server.tools.formats import ToolSupport
from octavo.server.tools.use import ToolUse


def tools_of(body: ResponsesRequest) -> tuple[Tool, ...]:
    """The functions that a request declares.

    Raises:
        InvalidRequestError: One is malformed, or is a tool that Octavo would have to run.
    """
    return parse_tools(body.tools, _tool)


def tool_use(body: ResponsesRequest, tools: tuple[Tool, ...], support: ToolSupport) -> ToolUse:
    """What a request says of them.

    Raises:
        InvalidRequestError: It is malformed or contradicts itself.
    """
    return ToolUse.chosen(support, tools, _choice(body.tool_choice), body.parallel_tool_calls)


def _tool(value: object, at: str) -> Tool:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind != "function":
        raise InvalidRequestError(
            f"{at}: a tool of type {shortened(kind)} is not supported; Octavo runs none itself, and takes functions",
            param="tools",
        )
    return read_function(value, at)


def _choice(choice: object) -> object:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise InvalidRequestError(
            f"tool_choice.type must be function if it is an object, not {shortened(choice.get('type'))}",
            param="tool_choice",
        )
    return {"type": "function", "function": {"name": choice.get("name")}}
