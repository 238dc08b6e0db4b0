"""Chat templates: a model's Jinja template, rendered as transformers renders it, inside bounds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import InvalidRequestError, SetupError

MAX_RENDERED_CHARS = 8 * 1024 * 1024
MAX_RENDER_SECONDS = 5.0


class ChatTemplate:
    """A compiled chat template.

    The template comes with the model and the messages come from anyone, so it runs in Jinja's immutable
    sandbox and its output is bounded in size and time.

    Args:
        source: The template's text.
        special_tokens: ``bos_token``, ``eos_token`` and so on: names that templates use → their text.
        origin: Where the template was found, for error messages.

    Attributes:
        source: As above.

    Raises:
        SetupError: The template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, origin: str) -> None:
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise SetupError(
                f"the chat template in {origin} does not compile: line {error.lineno}: {error.message}"
            ) from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Turns a conversation into the text that the model was trained on.

        Args:
            messages: Each with a ``role`` and a ``content``.
            add_generation_prompt: End with the opening of an assistant turn.
            **variables: Further names that the template may read.

        Raises:
            InvalidRequestError: The template refuses these messages, fails on them, or exceeds a bound.
        """
        context = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _bounded_join(self._template.generate(context))
        except InvalidRequestError:
            raise
        except TemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except Exception as error:
            # A template is a program: with input that its author did not think of it can fail in any way.
            raise InvalidRequestError(
                f"the model's chat template fails on these messages: {error}", param="messages"
            ) from error


def _bounded_join(pieces: Iterable[str]) -> str:
    rendered: list[str] = []
    size, deadline = 0, time.monotonic() + MAX_RENDER_SECONDS
    for piece in pieces:
        rendered.append(piece)
        size += len(piece)
        if size > MAX_RENDERED_CHARS:
            raise InvalidRequestError(
                f"the rendered conversation is longer than {MAX_RENDERED_CHARS} characters", param="messages"
            )
        if time.monotonic() > deadline:
            raise InvalidRequestError(
                f"the chat template ran for more than {MAX_RENDER_SECONDS:g} seconds", param="messages"
            )
    return "".join(rendered)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict)
    return environment


class _GenerationBlocks(Extension):
    """``{% generation %}…{% endgeneration %}`` marks assistant tokens for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # A function in place of the class, whose attributes a template has no business with.
    return dict(*args, **kwargs)
