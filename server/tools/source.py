"""Text that comes in pieces, read character by character.

Readers are generators that yield when they need more text and return what they found. So each is written as if all
the text were there, keeps its place by itself, and decides the same however the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from itertools import count
from typing import Final, TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]

SPACE: Final = re.compile(r"[ \t\r\n]+")


class Source:
    """The text and the place in it.

    What is taken is kept until it is drained: to be shown as it is, or to be forgotten.

    Attributes:
        on_wait: While set, receives what was taken whenever more text is needed.
    """

    def __init__(self) -> None:
        self.on_wait: Callable[[str], None] | None = None
        self._text = ""
        self._at = 0
        self._ended = False
        self._taken: list[str] = []

    def feed(self, text: str) -> None:
        """Adds a piece. All earlier ones have been taken."""
        assert self._at == len(self._text), "what came before was not taken"
        self._text, self._at = text, 0

    def end(self) -> None:
        """No more comes: from here on the next character is "", which nothing begins with."""
        self._ended = True

    @property
    def here(self) -> str:
        """The next character, or "" if it has not come yet: readers write ``here or (yield from more())``."""
        return self._text[self._at] if self._at < len(self._text) else ""

    def more(self) -> Reading[str]:
        """Waits for the next character and returns it, without taking it; "" at the end."""
        while not self.here and not self._ended:
            if self.on_wait is not None:
                self.on_wait(self.drain())
            yield
        return self.here

    def take(self) -> None:
        """Takes the next character, which is there."""
        self._taken.append(self._text[self._at])
        self._at += 1

    def take_run(self, pattern: re.Pattern[str]) -> str:
        """Takes what matches here, as far as it has come."""
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._taken.append(match[0])
        self._at = match.end()
        return match[0]

    def past_space(self) -> Reading[str]:
        """Takes white space and returns the character after it."""
        while (character := self.here or (yield from self.more())) and character in " \t\r\n":
            self.take_run(SPACE)
        return character

    def take_one_of(self, *texts: str) -> Reading[str]:
        """Takes the one of several texts that comes next and returns it; none of them is another's beginning.

        If none comes, what they began with stays taken and the answer is "".
        """
        for length in count():
            character = self.here or (yield from self.more())
            texts = tuple(text for text in texts if text[length] == character)
            if not texts:
                return ""
            self.take()
            if len(texts[0]) == length + 1:
                return texts[0]
        raise AssertionError("texts end")

    @property
    def mark(self) -> int:
        """The present place, for `since`."""
        return len(self._taken)

    def since(self, mark: int) -> str:
        """What was taken since a place, if nothing was drained since."""
        return "".join(self._taken[mark:])

    def drain(self) -> str:
        """What was taken and not drained."""
        text = "".join(self._taken)
        self._taken.clear()
        return text
