"""``octavo chat``: talks to a served model, Octavo's or another's, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from octavo.config import parse_count, parse_real
from octavo.server.arguments import INTERRUPTED, Parser, value
from octavo.server.chat.client import ChatClient, ChatError
from octavo.server.chat.conversation import Conversation
from octavo.server.chat.screen import Screen, harmless

DEFAULT_URL = "http://127.0.0.1:8000/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
# More than servers take in one request.
MAX_PIPED_BYTES = 8 * 2**20
FAILED = 1

_EPILOG = "Without PROMPT it is a conversation; what is piped into it is taken for the prompt."


def main(arguments: Sequence[str]) -> int:
    """Asks once or converses; returns the exit status."""
    parser = _parser()
    given = parser.parse(arguments)
    wanted = {"temperature": given.temperature, "max_tokens": given.max_tokens}
    screen = Screen()
    _survive_odd_characters()
    try:
        # Read before anything is sent: a pipe may be slow, and nothing in it is a mistake.
        prompt = given.prompt or (None if sys.stdin.isatty() else _piped())
        client = ChatClient(given.url, given.api_key or os.environ.get(KEY_VARIABLE))
        conversation = Conversation(
            client,
            screen,
            model=harmless(given.model) if given.model else client.first_model(),
            system=given.system,
            options={name: option for name, option in wanted.items() if option is not None},
        )
        if prompt is None:
            with suppress(ImportError):  # gives the prompt its arrow keys and its history, where Python has it
                import readline  # noqa: F401
            conversation.loop()
        elif not conversation.ask(prompt):
            return INTERRUPTED
    except ChatError as error:
        screen.failure(error)
        return FAILED
    return 0


def _parser() -> Parser:
    parser = Parser("octavo chat", "[PROMPT] [options]", "Talks to any OpenAI-compatible endpoint.", _EPILOG)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to ask, in quotes")
    parser.add_argument("--url", default=DEFAULT_URL, help="the endpoint (default: %(default)s)")
    parser.add_argument("--model", help="the model's name there; default: the first that /v1/models lists")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument("--api-key", metavar="KEY", help=f"default: ${KEY_VARIABLE}, which no list of processes shows")
    parser.add_argument("--temperature", type=value(parse_real), help="0 takes the likeliest token each time")
    parser.add_argument("--max-tokens", type=value(parse_count), metavar="TOKENS", help="the longest answer")
    return parser


def _piped() -> str:
    raw = sys.stdin.buffer.read(MAX_PIPED_BYTES + 1)
    if len(raw) > MAX_PIPED_BYTES:
        raise ChatError(f"what is piped in has more than {MAX_PIPED_BYTES:,} bytes")
    if not (text := raw.decode(errors="replace").strip()):
        raise ChatError("there is no prompt: give one as an argument, or pipe one in")
    return text


def _survive_odd_characters() -> None:
    """No character that this terminal lacks is worth a traceback."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
