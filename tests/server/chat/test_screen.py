"""What reaches the terminal."""

from __future__ import annotations

import pytest

from octavo.server.chat.client import Details, Usage
from octavo.server.chat.screen import Timing, harmless, in_words


def test_controls_do_not() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = harmless(everything)
    assert {"\n", "\t"} == {char for char in left if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0}
    assert left.encode()  # nor what cannot be written
    assert len(left) == 0x110000 - (32 + 33 - 2)


def test_an_escape_sequence_is_only_text() -> None:
    assert harmless("\x1b]0;title\x07\x1b[31mred\x9b2J\r\n\tdone") == "]0;title[31mred2J\n\tdone"


@pytest.mark.parametrize(
    ("usage", "timing", "reason", "words"),
    [
        (
            Usage(completion_tokens=11, prompt_tokens_details=Details(cached_tokens=1600)),
            Timing(0.25, 0.5),
            "stop",
            "11 tokens · 20.0 tokens/s · first token after 0.25 s · 1,600 prompt tokens cached",
        ),
        (Usage(completion_tokens=1), Timing(0.5, 0.0), "length", "1 token · first token after 0.50 s · cut off at the"),
        (Usage(completion_tokens=0), None, "stop", "0 tokens"),
        (None, Timing(0.5, 1.0), None, "first token after 0.50 s · stopped"),
        (None, None, None, "stopped"),
        (None, None, "content_filter", "ended by content_filter"),
    ],
)
def test_the_line_below_an_answer(usage: Usage | None, timing: Timing | None, reason: str | None, words: str) -> None:
    assert in_words(usage, timing, reason).startswith(words)
