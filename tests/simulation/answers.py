"""What a client is told, read from the bytes of an answer; refuses answers that are malformed."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

_DONE = "[DONE]"


@dataclass
class Answer:
    """One answer so far.

    Attributes:
        how: "complete", "left" (the client did) or "cut" (the server closed the connection); "" while it goes on.
        error: The error object, if that is how it ended.
        texts, reasons, tokens: By choice. sizes: tokens of each event that carried token ids.
        events: Events that held a choice. beats: comments.
    """

    how: str = ""
    status: int | None = None
    error: dict[str, Any] | None = None
    ended: bool = False
    texts: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    sizes: list[int] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    events: int = 0
    beats: int = 0
    _rest: bytes = b""

    @property
    def finished(self) -> bool:
        """Whether the client was told all that it asked for."""
        return self.how == "complete" and self.error is None

    def take_whole(self, body: bytes) -> None:
        """An answer that is not streamed."""
        document = json.loads(body)
        self.ended = True
        if self.status != 200:
            self.error = document["error"]
            return
        for choice in document["choices"]:
            assert choice["finish_reason"] in ("stop", "length")
            self._take_choice(choice)
        self.usage = document["usage"]

    def take_bytes(self, data: bytes) -> None:
        """More of a stream."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            self._take_frame(frame.decode())

    def check_end(self) -> None:
        """The server has closed the answer in good order: it has said how it ended."""
        assert self.ended, "the answer ended without a terminal event"
        assert not self._rest, "the answer ended inside an event"

    def _take_frame(self, frame: str) -> None:
        assert not self.ended, f"after its terminal event came {frame!r}"
        if frame.startswith(":"):
            self.beats += 1
            return
        assert frame.startswith("data: "), frame
        data = frame.removeprefix("data: ")
        if data == _DONE:
            self.ended = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error, self.ended = event["error"], True
            return
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.events += 1
            self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        assert index not in self.reasons, f"choice {index} goes on after its end"
        said = choice.get("delta") or choice.get("message") or {}
        self.texts[index] += choice.get("text") or said.get("content") or ""
        if "token_ids" in choice:
            self.tokens[index] += choice["token_ids"]
            self.sizes.append(len(choice["token_ids"]))
        if choice.get("finish_reason"):
            self.reasons[index] = choice["finish_reason"]
