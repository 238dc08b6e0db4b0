"""Token ids in, text out, as they come: whole characters only, and nothing of a stop string.

The text handed out over a sequence's life equals the decoding of all its tokens at once, however the tokens
are cut into chunks, up to the stop string where one ends it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from octavo.engine.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class IncrementalDetokenizer:
    """Decodes one sequence while it is generated, and ends it at a stop string.

    Args:
        tokenizer: The model's tokenizer.
        stop: Strings that end the text. The one that is complete first wins; of two that are complete at the
            same character, the longer.
        include_stop_str_in_output: Keep the stop string at the end of the text.
        skip_special_tokens: Leave control tokens out of the text, except those in ``kept``.
        min_tokens: Tokens before stop strings are looked for.

    Attributes:
        stopped_by: The stop string that ended the text, or None so far.
        num_tokens: Tokens taken; those after a stop string are not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        kept: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        self.num_tokens = 0
        skipped = tokenizer.special_token_ids - kept if skip_special_tokens else frozenset[int]()
        self._stream = _token_stream(tokenizer, skipped)
        self._matcher = _StopMatcher(stop, include_stop_str_in_output)
        self._min_tokens = min_tokens

    @property
    def stopped_by(self) -> str | None:
        return self._matcher.matched

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next tokens and returns the text that is now certain."""
        pieces = []
        for token_id in token_ids:
            if self._matcher.matched is not None:
                break
            self.num_tokens += 1
            text = self._stream.push(token_id)
            if self.num_tokens > self._min_tokens:
                text = self._matcher.push(text)
            pieces.append(text)
        return "".join(pieces)

    def flush(self) -> str:
        """Returns what was held back, once no more tokens come."""
        if self._matcher.matched is not None:
            return ""
        return self._matcher.push(self._stream.flush()) + self._matcher.flush()


class _TokenStream(Protocol):
    """Turns tokens into text that no later token can change."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


def _token_stream(tokenizer: Tokenizer, skipped: frozenset[int]) -> _TokenStream:
    if tokenizer.token_bytes is not None:
        return _ByteStream(tokenizer.token_bytes, skipped)
    return _WindowStream(tokenizer, skipped)


class _ByteStream:
    """For byte-level tokenizers: every token is some bytes, and the text is their UTF-8."""

    def __init__(self, token_bytes: Sequence[bytes], skipped: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        # A model's vocabulary may be padded beyond its tokenizer's; such ids have no text.
        if token_id in self._skipped or token_id >= len(self._token_bytes):
            return ""
        return self._decoder.decode(self._token_bytes[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """For tokenizers whose tokens read differently at the start of a text than inside it.

    Only the last tokens are decoded again at each step. Those before ``_fresh`` were handed out already and
    give the new ones their context, such as the space that a first token loses:

        tokens   … gone … │ context │ fresh │
        text              │←─ old ──→│← new →│   new = decode(context + fresh) minus decode(context)
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._fallback = tokenizer.fallback_token_ids
        self._window: list[int] = []
        self._fresh = 0
        self._old = ""

    def push(self, token_id: int) -> str:
        # Tokens without text may stand inside a run of byte tokens and do not end it.
        if token_id in self._skipped or not self._tokenizer.has_token(token_id):
            return ""
        self._window.append(token_id)
        # A run of byte tokens is one unit: a bad byte at its end changes how its beginning is decoded.
        if token_id in self._fallback:
            return ""
        text = self._decode()
        # A replacement character at the end may be the first part of a character yet to be completed.
        return "" if text.endswith(_REPLACEMENT) else self._hand_out(text)

    def flush(self) -> str:
        return self._hand_out(self._decode())

    def _hand_out(self, text: str) -> str:
        new = text[len(self._old) :]
        if new:
            del self._window[: self._fresh]
            self._fresh = len(self._window)
            self._old = self._decode()
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=False)


class _StopMatcher:
    """Passes text through, holding back the longest end of it that a stop string could begin with."""

    def __init__(self, stops: Sequence[str], include_stop: bool) -> None:
        self.matched: str | None = None
        self._stops = stops
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            end, start, self.matched = min(matches)
            self._held = ""
            return text[: end if self._include_stop else start]
        certain = min(_start_of_partial(text, stop) for stop in self._stops)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _start_of_partial(text: str, stop: str) -> int:
    """Where the longest end of ``text`` that is a beginning of ``stop`` starts; the length of ``text`` if none is."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
