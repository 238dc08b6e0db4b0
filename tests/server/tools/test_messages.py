"""Conversations with calls in them, rendered by templates of each family's form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tool_templates
from tool_texts import TIME, TOOLS, parsed

from octavo.engine.chat_template import ChatTemplate
from octavo.errors import InvalidRequestError
from octavo.server.tools.formats import HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, QWEN3_CODER, ToolFormat, ToolSupport
from octavo.server.tools.messages import for_template

PLAIN = ToolSupport(HERMES, native=False)
NATIVE = ToolSupport(HERMES, native=True)


def call(id: str, arguments: str = '{"city": "Paris"}', name: str = "get_weather") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


USER = {"role": "user", "content": "Hi"}
CONVERSATION = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("call_1"), call("call_2", "", "get_time")]},
    result("call_2", "noon"),
    result("call_1", "rain"),
    {"role": "assistant", "content": "Wet.", "tool_calls": []},
]


def rendered(template: str, support: ToolSupport) -> str:
    messages, variables = for_template(CONVERSATION, TOOLS, support)
    return ChatTemplate(template, {}, origin="here").render(messages, add_generation_prompt=False, **variables)


@pytest.mark.parametrize(
    ("format", "template", "written"),
    [
        (HERMES, tool_templates.HERMES, '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        (LLAMA3, tool_templates.LLAMA3, '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>'),
        (MISTRAL, tool_templates.MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id"'),
        (QWEN3_CODER, tool_templates.QWEN3_CODER, "<parameter=city>\nParis\n</parameter>\n</function>"),
    ],
)
def test_templates_get_what_they_expect(format: ToolFormat, template: str, written: str) -> None:
    text = rendered(template, ToolSupport(format, native=True))
    assert written in text
    assert '"The weather at a place"' in text
    content, calls = parsed(format, text.replace("]</s>", "]")) if format is not LLAMA3 else ("", [])
    assert [name for name, _ in calls] in ([], ["get_weather", "get_time"]), content


def test_calls_get_the_ids_that_mistrals_templates_take() -> None:
    for format in (MISTRAL, MISTRAL_ARGS):
        messages, _ = for_template(CONVERSATION, (), ToolSupport(format, native=True))
        first, second = (call["id"] for call in messages[1]["tool_calls"])
        assert [message["tool_call_id"] for message in messages[2:4]] == [second, first]
        assert len({first, second}) == 2
        kept = [USER, {"role": "assistant", "tool_calls": [call("aB3456789")]}, result("aB3456789", "")]
        messages, _ = for_template(kept, (), ToolSupport(format, native=True))
        assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"] == "aB3456789"


def test_llama_is_told_one_call_after_another_each_with_its_result() -> None:
    messages, _ = for_template(CONVERSATION, (), ToolSupport(LLAMA3, native=True))
    told = [message.get("tool_calls", [{}])[0].get("id") or message.get("tool_call_id") for message in messages]
    assert told == [None, "call_1", "call_1", "call_2", "call_2", None]
    assert [message["role"] for message in messages[1:5]] == ["assistant", "tool", "assistant", "tool"]


def test_results_have_their_functions_name_and_no_empty_lists_are_left() -> None:
    messages, variables = for_template(CONVERSATION, (TIME,), NATIVE)
    assert [message["name"] for message in messages[2:4]] == ["get_time", "get_weather"]
    assert messages[1]["content"] == ""
    assert messages[4] == {"role": "assistant", "content": "Wet."}
    assert variables == {"tools": [TIME.for_template()]}
    assert CONVERSATION[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


def test_a_model_that_knows_no_tools_is_told_of_them_in_plain_text() -> None:
    text = rendered(tool_templates.PLAIN, PLAIN)
    system, user, assistant, results, last = text.split("<|im_end|>\n")[:-1]
    assert system.startswith("<|im_start|>system\n# Tools")
    lines = system.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in lines] == [tool.for_template()["function"] for tool in TOOLS]
    assert user == "<|im_start|>user\nHi"
    assert parsed(HERMES, assistant.split("assistant\n")[1])[1] == [
        ("get_weather", '{"city": "Paris"}'),
        ("get_time", "{}"),
    ]
    assert results == (
        "<|im_start|>user\n<tool_response>\nnoon\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    )
    assert last == "<|im_start|>assistant\nWet."


@pytest.mark.parametrize(("system", "begins"), [("Be brief.", "Be brief.\n\n# Tools"), ("", "# Tools")])
def test_tools_are_described_after_the_clients_own_system_message(system: str, begins: str) -> None:
    messages, variables = for_template([{"role": "system", "content": system}, USER], TOOLS, PLAIN)
    assert messages[0]["content"].startswith(begins)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert variables == {}


@pytest.mark.parametrize("support", [PLAIN, NATIVE])
def test_without_tools_nothing_is_added(support: ToolSupport) -> None:
    assert for_template([USER], (), support) == ([USER], {})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, result("call_1", "")], "no call before the result has its tool_call_id 'call_1'"),
        ([USER, {"role": "tool", "content": ""}], r"messages\[1\]: .* must have the tool_call_id"),
        ([CONVERSATION[1], USER, result("call_1", "")], "no call before"),
        ([{**USER, "tool_calls": [call("a")]}], r"messages\[0\].tool_calls: must be a list, in .* 'assistant'"),
        ([{"role": "assistant", "tool_calls": {"id": "a"}}], "must be a list"),
        ([{"role": "assistant", "tool_calls": ["a"]}], r"messages\[0\].tool_calls\[0\]: must be an object"),
        ([{"role": "assistant", "tool_calls": [{**call("a"), "type": "x"}]}], "of type 'function'"),
        ([{"role": "assistant", "tool_calls": [{**call("a"), "id": None}]}], "must have an id and"),
        ([{"role": "assistant", "tool_calls": [call("a"), call("a")]}], "ids must differ"),
        (
            [USER, {"role": "assistant", "tool_calls": [call("a"), call("b", '{"city": ')]}],
            r"messages\[1\].tool_calls\[1\].function.arguments: must be the text of a JSON object: Input data",
        ),
        ([{"role": "assistant", "tool_calls": [call("a", "[1]")]}], "must be the text of a JSON object"),
        ([{"role": "assistant", "tool_calls": [call("a", {})]}], "must be the text of a JSON object"),
        ([{"role": "assistant", "tool_calls": [call("a", "[" * 9999)]}], "must be the text of a JSON object"),
    ],
)
def test_malformed_calls_and_stray_results_are_refused(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        for_template(messages, TOOLS, NATIVE)
    assert caught.value.param == "messages"
