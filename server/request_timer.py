"""What one generation adds to the metrics: its latencies, its tokens, and how it ended."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from octavo.engine.messages import SequenceDelta
from octavo.errors import AbortedError, CapacityError, ClientError
from octavo.server.metrics import TOKEN_KINDS, Metrics


class RequestTimer:
    """Measures one generation, as a context around it.

    Args:
        metrics: Where the measurements go.
        tenant: Whose it is.
        prompt_tokens: Length of its prompt.
        arrival: When the request arrived, on the monotonic clock.
    """

    def __init__(self, metrics: Metrics, tenant: str, prompt_tokens: int, arrival: float) -> None:
        self._metrics = metrics
        self._tenant = tenant
        self._prompt_tokens = prompt_tokens
        self._arrival = arrival
        self._reason: str | None = None
        self._cached = 0
        self._tokens = 0
        self._first = 0.0
        self._sequences: dict[int, tuple[float, float, int]] = {}  # first and last time, and tokens in between

    def __enter__(self) -> Self:
        return self

    def take(self, delta: SequenceDelta) -> None:
        """New tokens of one sequence are there."""
        count = len(delta.token_ids)
        if not count:
            return
        now, metrics = time.monotonic(), self._metrics
        self._tokens += count
        self._cached = max(self._cached, delta.cached_tokens)
        if not self._sequences:
            self._first = now
            metrics.first_token.observe(now - self._arrival)
            metrics.queue_time.observe(delta.queue_seconds)
            metrics.prefill_time.observe(delta.prefill_seconds)
        first, last, before = self._sequences.get(delta.index, (now, None, 1 - count))
        if last is not None:
            # Tokens that piled up while the reader was slow arrived together; each stands for its share.
            metrics.token_gap.observe((now - last) / count)
        self._sequences[delta.index] = first, now, before + count

    def finished(self, reason: str) -> None:
        """The last token is there; ``reason`` is why it was the last: "stop" or "length"."""
        self._reason = reason
        now = time.monotonic()
        self._metrics.request_time.observe(now - self._arrival)
        if self._sequences:
            self._metrics.decode_time.observe(now - self._first)
        for first, last, gaps in self._sequences.values():
            if gaps:
                self._metrics.output_token.observe((last - first) / gaps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = self._reason or _why(error)
        self._metrics.finished.labels(self._tenant, reason).inc()
        if reason == "refused":
            return
        for what, count in zip(TOKEN_KINDS, (self._prompt_tokens, self._cached, self._tokens), strict=True):
            self._metrics.request_tokens.labels(self._tenant, what).inc(count)


def _why(error: BaseException | None) -> str:
    match error:
        case AbortedError():
            return "aborted"
        case ClientError() | CapacityError():
            return "refused"
        case None | GeneratorExit() | asyncio.CancelledError():
            return "disconnected"
        case _:
            return "error"
