"""Tools for models whose chat template knows none: they are described in the system message, in Hermes' format.

So tool calling works on every model that can hold a conversation; how well depends on the model. A call that is
required, or of a ``strict`` function, is written under a grammar and is well-formed on any of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from octavo.server.tools.definitions import Tool

Message = dict[str, Any]

_DESCRIPTION = """\
# Tools

You can call functions to help the user. These are described here, one in each line:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object between these tags, once for each call:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>

The results will come between <tool_response> tags. If no function helps, answer as usual."""


def with_tools_described(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with the tools at the end of its system message, which is added if there is none."""
    lines = "\n".join(json.dumps(tool.for_template()["function"], ensure_ascii=False) for tool in tools)
    description = _DESCRIPTION.format(tools=lines)
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": description}, *messages]
    system, *others = messages
    return [{**system, "content": f"{system['content']}\n\n{description}".lstrip()}, *others]


def as_plain_turns(turn: Sequence[Message]) -> Iterator[Message]:
    """A message and the results that follow it, with calls as text and the results as one message of the user's."""
    message = {key: value for key, value in turn[0].items() if key != "tool_calls"}
    calls = [_written(call["function"]) for call in turn[0].get("tool_calls", ())]
    yield {**message, "content": "\n".join(filter(None, [message["content"], *calls]))}
    if results := [f"<tool_response>\n{result['content']}\n</tool_response>" for result in turn[1:]]:
        yield {"role": "user", "content": "\n".join(results)}


def _written(function: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"
