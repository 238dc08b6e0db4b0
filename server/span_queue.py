"""Between spans that have ended and whoever sends them: a bounded queue, and one thread that empties it in batches.

OpenTelemetry's SDK has processors and providers for this, which start threads in every child right after a fork. uvloop
forks to start the engine's process, runs what was registered for that, and now and then the child hung there before it
had begun. So nothing of the SDK that registers anything for forks is used.

Loads OpenTelemetry's SDK: for `octavo.server.tracing` to import when tracing is turned on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from octavo.server.limits import LAST_SPANS_SECONDS, MAX_QUEUED_SPANS, MAX_SPANS_AT_ONCE, SPAN_SECONDS

logger = logging.getLogger(__name__)


class SpanQueue:
    """Gives spans to an exporter.

    Args:
        exporter: Sends them; it may take as long as it likes.
        most: Spans that may wait; what comes then is dropped.
        seconds: How long spans are collected before they are sent.
    """

    def __init__(self, exporter: SpanExporter, most: int = MAX_QUEUED_SPANS, *, seconds: float = SPAN_SECONDS) -> None:
        self._exporter = exporter
        self._most = most
        self._seconds = seconds
        self._waiting: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = 0
        # A daemon: a collector that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: ReadableSpan) -> None:
        """Takes a span, or drops it. Never waits for the collector."""
        with self._changed:
            if self._closing or len(self._waiting) >= self._most:
                self._dropped += 1
                return
            self._waiting.append(span)
            if len(self._waiting) >= MAX_SPANS_AT_ONCE:
                self._changed.notify()

    def close(self) -> None:
        """Has what waits sent, for at most `LAST_SPANS_SECONDS`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LAST_SPANS_SECONDS)
        if self._thread.is_alive():
            logger.warning("the collector did not take the last spans within %g seconds", LAST_SPANS_SECONDS)
        self._exporter.shutdown()

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._exporter.export(batch)
            except Exception:
                logger.exception("spans could not be sent")

    def _next(self) -> list[ReadableSpan]:
        """The next batch; empty when there will be none."""
        with self._changed:
            while not self._closing:
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= MAX_SPANS_AT_ONCE, self._seconds)
                if self._waiting:
                    break
            dropped, self._dropped = self._dropped, 0
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_SPANS_AT_ONCE))]
        if dropped:
            logger.warning("the collector is too slow: some spans were dropped", extra={"dropped": dropped})
        return batch
