"""A model's template tells how it writes calls; the operator may say otherwise."""

from __future__ import annotations

import re

import pytest
import tool_templates

from octavo.errors import ConfigError
from octavo.server.tools.formats import (
    FORMATS,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    QWEN3_CODER,
    ToolFormat,
    ToolSupport,
    detect_format,
    tool_support,
)


@pytest.mark.parametrize(
    ("template", "format"),
    [
        (tool_templates.HERMES, HERMES),
        (tool_templates.LLAMA3, LLAMA3),
        ("{% if tools %}<|python_tag|>{% endif %}", LLAMA3),
        (tool_templates.MISTRAL, MISTRAL),
        (tool_templates.MISTRAL_ARGS, MISTRAL_ARGS),
        (tool_templates.QWEN3_CODER, QWEN3_CODER),
        (tool_templates.GLM, None),
        (tool_templates.PLAIN, None),
    ],
)
def test_the_template_tells_the_format(template: str, format: ToolFormat | None) -> None:
    assert detect_format(template) is format
    assert tool_support("auto", template) == ToolSupport(format or HERMES, native=format is not None)


def test_the_operator_may_choose() -> None:
    assert tool_support("llama3", tool_templates.GLM) == ToolSupport(LLAMA3, native=True)
    assert tool_support("hermes", tool_templates.PLAIN) == ToolSupport(HERMES, native=False)


def test_a_format_that_nobody_describes_to_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mistral' needs a chat template that describes tools"):
        tool_support("mistral", tool_templates.PLAIN)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown tool format 'llama'; accepted are auto, hermes, llama3, mistral"):
        tool_support("llama", tool_templates.PLAIN)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_ids_have_the_form_that_templates_take(format: ToolFormat) -> None:
    ids = {format.new_id() for _ in range(100)}
    assert len(ids) == 100
    pattern = "[A-Za-z0-9]{9}" if format in (MISTRAL, MISTRAL_ARGS) else "call_[0-9a-f]{24}"
    assert all(re.fullmatch(pattern, id) for id in ids)


def test_all_marks_are_told() -> None:
    assert HERMES.marks == ("<tool_call>", "</tool_call>")
    assert MISTRAL.marks == ("[TOOL_CALLS]",)
    assert MISTRAL_ARGS.marks == ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
