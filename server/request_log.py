"""One line for each HTTP request when it ends: who, what came of it, how long each part took. Never what was said.

`octavo.server.middleware.RequestContext` makes a record when a request arrives; whoever works at the request notes in
it what only he knows; and whoever wants to know how requests end is told by `RequestContext`, with the record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from octavo.server.course import longest
from octavo.server.keys import Identity
from octavo.server.limits import MAX_IDLE_REQUEST_LINES

if TYPE_CHECKING:
    from octavo.server.generation import Batch

logger = logging.getLogger("octavo.request")

# What is asked again and again by probes and pages, and says nothing of anybody's work.
_UNTOLD: Final = frozenset({"/health", "/ready", "/metrics", "/ui"})


@dataclass
class RequestRecord:
    """What becomes known of one HTTP request.

    Attributes:
        request_id: Its ``x-request-id``.
        began, began_at: When its head had come, in seconds on the monotonic clock and in Unix nanoseconds.
        ended: When its answer was complete, on the monotonic clock; until then 0.
        method, route, status: As the metrics have them; the route's template, and 499 for a client that left early.
        answer_id: The ``id`` of the answer. streamed: whether it is sent as events.
        batch: What is generated for it.
        prompt_tokens: Of a request that has prompts, and no generation.
        disconnected: The client left before the end.
        error: The code of what went wrong, in the answer or in the middle of a stream.
    """

    request_id: str
    began: float = 0.0
    began_at: int = 0
    ended: float = 0.0
    method: str = ""
    route: str = ""
    status: int = 0
    answer_id: str | None = None
    streamed: bool = False
    batch: Batch | None = None
    prompt_tokens: int | None = None
    disconnected: bool = False
    error: str | None = None
    identity: Identity | None = None

    def answering(self, answer_id: str, batch: Batch, *, streamed: bool) -> None:
        """Notes that an answer is being generated."""
        self.answer_id, self.batch, self.streamed = answer_id, batch, streamed

    @property
    def tenant(self) -> str | None:
        """Whose request it is; None if it was refused before that was known."""
        return None if self.identity is None else self.identity.tenant

    @property
    def seconds(self) -> float:
        """From its head to its end."""
        return self.ended - self.began

    @property
    def seconds_to_first_token(self) -> float | None:
        """From its head to the first token of any sequence."""
        firsts = [generation.course.first_token for generation in self.batch.generations] if self.batch else []
        known = [first for first in firsts if first is not None]
        return min(known) - self.began if known else None

    @property
    def queue_seconds(self) -> float | None:
        """How long the engine let it wait; of several prompts, the one that waited longest."""
        return longest(g.course.queue_seconds for g in self.batch.generations) if self.batch else None

    @property
    def prefill_seconds(self) -> float | None:
        """How long its prompt took to compute; of several, the one that took longest."""
        return longest(g.course.prefill_seconds for g in self.batch.generations) if self.batch else None

    @property
    def preemptions(self) -> int:
        """How often its sequences gave way."""
        return sum(g.course.preemptions for g in self.batch.generations) if self.batch else 0

    @property
    def finish_reasons(self) -> list[str]:
        """Why its sequences ended, in the order of the choices; of those that have."""
        return [reason for _, reason in sorted(self.batch.finish_reasons.items())] if self.batch else []

    @property
    def idle(self) -> bool:
        """Whether nothing was computed for it, so that a client can send any number of its kind."""
        if self.batch is not None:
            return self.seconds_to_first_token is None
        return self.prompt_tokens is None or self.error is not None

    def fields(self) -> dict[str, Any]:
        """The record, as it is logged; what is not known, or means nothing for this request, is left out."""
        told: dict[str, Any] = {
            "request_id": self.request_id,
            "answer_id": self.answer_id,
            "tenant": self.tenant,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "prompt_tokens": self.prompt_tokens,
        }
        if self.batch is not None:
            usage = self.batch.usage()
            told |= {
                "streamed": self.streamed,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "output_tokens": usage.completion_tokens,
                "n": self.batch.n,
                "finish_reasons": self.finish_reasons or None,
                "queue_seconds": _milliseconds(self.queue_seconds),
                "prefill_seconds": _milliseconds(self.prefill_seconds),
                "first_token_seconds": _milliseconds(self.seconds_to_first_token),
                "preemptions": self.preemptions,
            }
        told |= {
            "total_seconds": _milliseconds(self.seconds),
            "disconnected": self.disconnected or None,
            "error": self.error,
        }
        return {name: value for name, value in told.items() if value is not None}


def record_of(connection: HTTPConnection) -> RequestRecord:
    """A request's record."""
    record: RequestRecord = connection.state.record
    return record


def is_untold(scope: Scope) -> bool:
    """Whether a request gets no line, however it ends."""
    path: str = scope["path"]
    return path in _UNTOLD or path.startswith("/ui/")


class RequestLog:
    """Writes the lines.

    Requests for which nothing was computed cost their sender next to nothing. Of them there is a bounded number of
    lines a second, and one more that says how many were left out.

    Args:
        most_idle: That number.
        later: Calls something in so many seconds.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        most_idle: int = MAX_IDLE_REQUEST_LINES,
        *,
        later: Callable[[float, Callable[[], None]], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_idle = most_idle
        self._later = later or _in_this_loop
        self._clock = clock
        self._second = -1.0  # when the current one began
        self._told = 0
        self._left_out = 0

    def __call__(self, record: RequestRecord, scope: Scope) -> None:
        """Takes note of a request that has ended."""
        if record.idle and not self._has_room():
            self._leave_out()
            return
        level = logging.ERROR if record.status == 500 else logging.INFO
        logger.log(level, "%s %s %d", record.method, record.route, record.status, extra=record.fields())

    def _has_room(self) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._told = now, 0
        self._told += 1
        return self._told <= self._most_idle

    def _leave_out(self) -> None:
        if self._left_out == 0:
            self._later(1.0, self._tell_left_out)
        self._left_out += 1

    def _tell_left_out(self) -> None:
        left_out, self._left_out = self._left_out, 0
        logger.warning("lines of requests that came to nothing were left out", extra={"left_out": left_out})


def _in_this_loop(seconds: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, call)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
