"""``octavo top``: a server's pool, its requests and why they wait, in the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from octavo.config import parse_real
from octavo.errors import ConfigError
from octavo.server.arguments import Parser, value
from octavo.server.chat.client import ChatError
from octavo.server.chat.screen import Screen, harmless
from octavo.server.top.client import KEY_VARIABLE, Snapshot, TopClient
from octavo.server.top.frame import MOST_STORIES, frame

DEFAULT_URL = "http://127.0.0.1:8000"
FAILED = 1
# Seconds between frames.
SHORTEST, LONGEST = 0.2, 3600.0
# Of what is no terminal; a file has no edge.
_WIDTH = 160


def main(arguments: Sequence[str]) -> int:
    """Shows frames until it is interrupted, or one; returns the exit status."""
    given = _parser().parse(arguments)
    screen, console = Screen(), _console()
    try:
        client = TopClient(given.url, given.key or os.environ.get(KEY_VARIABLE))
        first = client.read(MOST_STORIES)
    except ChatError as error:
        screen.failure(error)
        return FAILED
    if given.once or not console.is_terminal:
        console.print(_frame(console, client, first, None))
        if not given.once:
            screen.note("the output is no terminal, so this was one frame; --once says that it is meant")
        return 0
    with suppress(KeyboardInterrupt):  # how one leaves it
        _watch(console, client, first, given.interval)
    return 0


def _watch(console: Console, client: TopClient, first: Snapshot, interval: float) -> None:
    """Shows frame after frame; what fails meanwhile is told above the last one."""
    now, before, fault = first, None, ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            shown: RenderableType = _frame(console, client, now, before)
            live.update(Group(Text(fault, "bold red"), shown) if fault else shown, refresh=True)
            time.sleep(interval)
            try:
                now, before, fault = client.read(MOST_STORIES), now, ""
            except ChatError as error:
                fault = f"error: {harmless(' '.join(str(error).split()))}; the frame below is the last one that came"


def _frame(console: Console, client: TopClient, now: Snapshot, before: Snapshot | None) -> RenderableType:
    return frame(now, before, client.url, plain=not console.encoding.startswith("utf"))


def _console() -> Console:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def _parser() -> Parser:
    parser = Parser("octavo top", "[options]", "Shows a server's pool, its requests and why they wait, until Ctrl-C.")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--key",
        "--api-key",
        metavar="KEY",
        help=f"marked admin, to see all; default: ${KEY_VARIABLE}, which no list of processes shows",
    )
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument(
        "--interval",
        type=value(_parse_interval),
        default=1.0,
        metavar="SECONDS",
        help="between frames (default: %(default)s)",
    )
    return parser


def _parse_interval(text: str) -> float:
    seconds = parse_real(text)
    if not SHORTEST <= seconds <= LONGEST:
        raise ConfigError(f"must be from {SHORTEST} to {LONGEST:,.0f} seconds, not {text!r}")
    return seconds
