"""What a conversation looks like in a terminal: the answer on standard output, everything about it on the other."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from octavo.server.chat.client import Usage

# C0 and C1 but newline and tab: a model's text may hold sequences that command the terminal of whoever reads it.
_CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")


def harmless(text: str) -> str:
    """A text without what commands a terminal, and without halves of surrogate pairs, which cannot be written."""
    return text.translate(_CONTROLS).encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class Timing:
    """Of an answer, in seconds: from the request to its first text, and from there to its last."""

    first: float
    rest: float


class Screen:
    """The terminal."""

    def __init__(self) -> None:
        self._about = Console(stderr=True, highlight=False, soft_wrap=True)

    def text(self, piece: str) -> None:
        """The next piece of an answer."""
        sys.stdout.write(piece)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line about the conversation."""
        self._about.print(f"[dim]{escape(harmless(text))}[/]")

    def failure(self, error: Exception) -> None:
        """Why there is no answer, in one line."""
        line = " ".join(harmless(str(error)).split())
        self._about.print(f"[bold red]error:[/] [red]{escape(line)}[/]")


def in_words(usage: Usage | None, timing: Timing | None, finish_reason: str | None) -> str:
    """The line below an answer."""
    parts = []
    if usage is not None:
        parts.append(f"{usage.completion_tokens:,} token{'s'[: usage.completion_tokens != 1]}")
        if timing is not None and timing.rest > 0 and usage.completion_tokens > 1:
            parts.append(f"{(usage.completion_tokens - 1) / timing.rest:,.1f} tokens/s")
    if timing is not None:
        parts.append(f"first token after {timing.first:.2f} s")
    if usage is not None and usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None:
        parts.append(f"{usage.prompt_tokens_details.cached_tokens:,} prompt tokens cached")
    if finish_reason is None:
        parts.append("stopped")
    elif finish_reason != "stop":
        parts.append({"length": "cut off at the length limit"}.get(finish_reason, f"ended by {finish_reason}"))
    return " · ".join(parts)
