"""How one generation went, as far as the engine's deltas tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from octavo.engine.messages import SequenceDelta


class Course:
    """What is noted of one prompt and its sequences.

    Args:
        clock: Monotonic, in seconds.

    Attributes:
        began: When it was made, on the clock: just before it was sent to the engine.
        queue_seconds: From its arrival at the engine until its first sequence was let in.
        prefill_seconds: From then until the prompt was computed.
        first_token: When the first token was here, on the clock. None before, as the others are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue_seconds: float | None = None
        self.prefill_seconds: float | None = None
        self.first_token: float | None = None
        self._preemptions: dict[int, int] = {}
        self._clock = clock
        self.began = clock()

    @property
    def preemptions(self) -> int:
        """How often its sequences gave way, all together."""
        return sum(self._preemptions.values())

    def note(self, delta: SequenceDelta) -> None:
        """Takes in what came from the engine; of n sequences the first tells of the prompt, which they share."""
        self._preemptions[delta.index] = delta.preemptions
        if delta.token_ids and self.first_token is None:
            self.first_token = self._clock()
            self.queue_seconds, self.prefill_seconds = delta.queue_seconds, delta.prefill_seconds


def longest(seconds: Iterable[float | None]) -> float | None:
    """The longest of several times, as far as they are known."""
    return max((s for s in seconds if s is not None), default=None)
