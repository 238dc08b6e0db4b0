"""What a person sees who starts the server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.status import Status

logger = logging.getLogger(__name__)


class Narrator:
    """Tells how the start goes: a spinner on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._began = monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return monotonic() - self._began

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Shows that something is going on, until the block ends."""
        with self._out.status(escape(text)) as status:
            self._status = status
            self.progress(text)
            try:
                yield
            finally:
                self._status = None

    def progress(self, text: str) -> None:
        """What is being done now."""
        if self._out.is_terminal and self._status is not None:
            self._status.update(escape(text))
        else:
            self._out.print(escape(text))

    def ready(self, report: Sequence[str], address: str, model: str, *, needs_key: bool = False) -> None:
        """The start-up report, the address, and a command to try."""
        for line in report:
            self._out.print(f"  [dim]{escape(line)}[/dim]")
        body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}
        self._out.print(f"[bold green]ready[/] after {self.seconds:.1f} s at [bold]{address}[/]")
        self._out.print("\nTry it:\n")
        self._out.print(f"  octavo chat --url {address}/v1\n")
        self._out.print(f"  curl {address}/v1/chat/completions -H 'content-type: application/json' \\")
        if needs_key:
            self._out.print('    -H "authorization: Bearer $OCTAVO_API_KEY" \\')
        self._out.print(f"    -d '{escape(json.dumps(body))}'\n")

    def note(self, text: str) -> None:
        """One line."""
        self._out.print(escape(text))

    def failure(self, error: Exception) -> None:
        """Why the server cannot start, for the person who can change it."""
        self._err.print(f"[bold red]error:[/] [red]{escape(str(error))}[/]")


class LogNarrator(Narrator):
    """Tells the same as log records, for logs that nobody but a program reads."""

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        self.progress(text)
        yield

    def progress(self, text: str) -> None:
        logger.info("%s", text)

    def ready(self, report: Sequence[str], address: str, model: str, *, needs_key: bool = False) -> None:
        for line in report:
            logger.info("%s", line)
        logger.info("ready", extra={"address": address, "model": model, "seconds": round(self.seconds, 3)})

    def note(self, text: str) -> None:
        logger.info("%s", text)

    def failure(self, error: Exception) -> None:
        logger.critical("%s", error)


def narrator_of(log_format: str) -> Narrator:
    """Who tells how the start goes, where the log has this format."""
    return LogNarrator() if log_format == "json" else Narrator()
