"""A conversation: what was said, one answer at a time, and the loop at the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from octavo.server.chat.client import ChatClient, ChatError, Usage
from octavo.server.chat.screen import Screen, Timing, harmless, in_words
from octavo.server.options import hint

_HELP = {
    "/exit": "leaves, as Ctrl-D does",
    "/help": "shows this",
    "/reset": "forgets the conversation, but not the system prompt",
    "/system TEXT": "sets the system prompt; without TEXT there is none",
}
PROMPT = "> "


class Conversation:
    """What was said so far, with whom.

    Args:
        model: The model's name at the endpoint. system: the system prompt. options: further fields of requests.
    """

    def __init__(
        self, client: ChatClient, screen: Screen, *, model: str, system: str | None, options: Mapping[str, Any]
    ) -> None:
        self._client = client
        self._screen = screen
        self._model = model
        self._system = system
        self._options = options
        self._said: list[Mapping[str, str]] = []

    def ask(self, text: str) -> bool:
        """Shows the answer to a message; False if Ctrl-C cut it short. What was said is remembered.

        Raises:
            ChatError: There is no answer, or not all of it; nothing is remembered.
        """
        question = {"role": "user", "content": harmless(text)}
        answer = _Answer(self._screen)
        complete = True
        try:
            answer.show(self._client, self._model, [*self._instructions(), *self._said, question], self._options)
        except KeyboardInterrupt:
            complete = False
        finally:
            answer.end()
        if answer.text:
            self._said += [question, {"role": "assistant", "content": answer.text}]
        self._screen.note(answer.summary())
        return complete

    def loop(self) -> None:
        """Talks until Ctrl-D or ``/exit``."""
        self._screen.note(f"{self._model} at {self._client.url} · /help lists the commands, Ctrl-D leaves")
        while (line := _read_line()) is not None:
            if line.startswith("/"):
                if line == "/exit":
                    return
                self._command(line)
            elif line:
                self._try(line)
        self._screen.note("")  # the shell's prompt gets a line of its own

    def _try(self, line: str) -> None:
        try:
            self.ask(line)
        except ChatError as error:
            self._screen.failure(error)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        match name:
            case "/reset":
                self._said.clear()
                self._screen.note("the conversation is forgotten")
            case "/system":
                self._system = argument.strip() or None
                self._screen.note("the system prompt is set" if self._system else "there is no system prompt")
            case "/help":
                self._screen.note("\n".join(f"  {command:<13} {what}" for command, what in _HELP.items()))
                self._screen.note("  Ctrl-C        stops an answer")
            case _:
                known = [command.split()[0] for command in _HELP]
                self._screen.note(f"there is no command {name}; {hint(name, known, '/help lists them')}")

    def _instructions(self) -> list[Mapping[str, str]]:
        return [{"role": "system", "content": harmless(self._system)}] if self._system else []


class _Answer:
    """One answer while it comes."""

    def __init__(self, screen: Screen) -> None:
        self.text = ""
        self._screen = screen
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = self._began

    def show(
        self, client: ChatClient, model: str, messages: list[Mapping[str, str]], options: Mapping[str, Any]
    ) -> None:
        with closing(client.stream(model, messages, options)) as chunks:
            for chunk in chunks:
                self._usage = chunk.usage or self._usage
                self._finish_reason = chunk.finish_reason or self._finish_reason
                if chunk.text:
                    self._add(harmless(chunk.text))

    def _add(self, piece: str) -> None:
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        self.text += piece
        self._screen.text(piece)

    def end(self) -> None:
        """What follows begins on a line of its own."""
        if self.text and not self.text.endswith("\n"):
            self._screen.text("\n")

    def summary(self) -> str:
        """The line below it."""
        timing = None if self._first is None else Timing(self._first - self._began, self._last - self._first)
        return in_words(self._usage, timing, self._finish_reason)


def _read_line() -> str | None:
    """What was typed, None for Ctrl-D; Ctrl-C empties the line."""
    while True:
        try:
            return input(PROMPT).strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            return None
