"""From the times at which text arrived to latencies, rates and goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any


@dataclass(slots=True)
class Trace:
    """What the client saw of one request. Times are seconds on one monotonic clock.

    Attributes:
        planned: When the request was due. Latencies count from here, so that a late client hides nothing.
        sent: When it was sent.
        arrivals: When each piece of text arrived; pieces that share a packet share a time.
        ended: When the last piece, or the word that there are no more, arrived.
        output_tokens: As the server counts them; the number of pieces if it does not.
        cached_tokens: The prompt tokens that came from the prefix cache; None if the server does not tell.
        error: Why the request failed; None if it did not.
        turn: The request's place in its conversation, from 0.
    """

    planned: float
    sent: float = math.nan
    arrivals: list[float] = field(default_factory=list)
    ended: float = math.nan
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    counted_by_server: bool = False
    error: str | None = None
    turn: int = 0

    @property
    def ttft(self) -> float:
        """Arrival to first token."""
        return self.arrivals[0] - self.planned

    @property
    def e2e(self) -> float:
        """Arrival to last token."""
        return self.ended - self.planned

    @property
    def tpot(self) -> float | None:
        """(last − first) / (tokens − 1); None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.ended - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Gaps between the pieces of text."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """A percentile of ascending values, interpolated linearly between ranks (numpy's default); NaN of nothing."""
    if not ordered:
        return math.nan
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The distribution of any number of values, NaN throughout if there are none."""
        ordered = sorted(values)
        if not ordered:
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan)
        p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
        return cls(fmean(ordered), p50, p90, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good, in seconds; None asks for nothing."""

    ttft: float | None = None
    tpot: float | None = None

    def met_by(self, trace: Trace) -> bool:
        """Whether a request that succeeded was fast enough. An answer of one token has no TPOT to miss."""
        if self.ttft is not None and trace.ttft > self.ttft:
            return False
        return self.tpot is None or trace.tpot is None or trace.tpot <= self.tpot


@dataclass(frozen=True, slots=True)
class Summary:
    """One run of a load. Rates count what succeeded over the whole run, failures' time included.

    Attributes:
        duration: From the first request's planned time to the end of the last.
        goodput: Requests per second that met the `Slo`.
        errors: Message → how many requests failed with it.
        cached_ratio: Of the prompt tokens, those from the prefix cache; None if the server does not tell.
        ttft_by_turn: Median TTFT of each turn of the conversations; one entry when there are none.
        client_late: How far behind the plan a request was sent, at worst.
        client_cpu_ratio: The client's own CPU time over the duration; near 1, the client was measured.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    duration: float
    prompt_tokens: int
    output_tokens: int
    counted_by_server: bool
    output_rate: float
    total_rate: float
    request_rate: float
    goodput: float
    cached_ratio: float | None
    ttft: Spread
    itl: Spread
    tpot: Spread
    e2e: Spread
    ttft_by_turn: list[float]
    client_late: float
    client_cpu_ratio: float


def summarize(traces: Sequence[Trace], *, duration: float, slo: Slo, client_cpu: float) -> Summary:
    """Condenses one run.

    Args:
        traces: One for each request, failed ones included.
        duration: The run's length in seconds.
        client_cpu: CPU seconds that this process spent meanwhile.
    """
    good = [trace for trace in traces if trace.error is None]
    prompt_tokens = sum(trace.prompt_tokens for trace in good)
    output_tokens = sum(trace.output_tokens for trace in good)
    cached = [trace.cached_tokens for trace in good if trace.cached_tokens is not None]
    turns = sorted({trace.turn for trace in good})
    return Summary(
        requests=len(traces),
        failed=len(traces) - len(good),
        errors=dict(Counter(trace.error for trace in traces if trace.error is not None).most_common()),
        duration=duration,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        counted_by_server=all(trace.counted_by_server for trace in good),
        output_rate=output_tokens / duration,
        total_rate=(prompt_tokens + output_tokens) / duration,
        request_rate=len(good) / duration,
        goodput=sum(map(slo.met_by, good)) / duration,
        cached_ratio=sum(cached) / prompt_tokens if cached and prompt_tokens else None,
        ttft=Spread.of(trace.ttft for trace in good),
        itl=Spread.of(gap for trace in good for gap in trace.itl),
        tpot=Spread.of(trace.tpot for trace in good if trace.tpot is not None),
        e2e=Spread.of(trace.e2e for trace in good),
        ttft_by_turn=[median(trace.ttft for trace in good if trace.turn == turn) for turn in turns],
        client_late=max((trace.sent - trace.planned for trace in traces), default=0.0),
        client_cpu_ratio=client_cpu / duration,
    )


def finite(value: Any) -> Any:
    """JSON has no NaN: a copy of nested dicts and lists with None in its place."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
