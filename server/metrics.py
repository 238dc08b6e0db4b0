"""Prometheus metrics: a table over the engine's stats, and what HTTP itself counts.

The engine's numbers are read from its latest `EngineStats` when Prometheus asks; nothing is copied in between.
A metric that cannot be read is left out and counted: exporting never raises.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine.messages import EngineStats

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

logger = logging.getLogger(__name__)

Reading = float | Mapping[str, float] | Mapping[tuple[str, ...], float]

_LATENCIES: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True)
class EngineMetric:
    """One row of the table. With ``labels``, ``read`` returns one value for each combination of their values."""

    family: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    help: str
    read: Callable[[EngineStats], Reading]
    labels: tuple[str, ...] = ()


def _usage(stats: EngineStats) -> float:
    return stats.device.used / stats.device.total if stats.device.total else 0.0


def _blocks(stats: EngineStats) -> dict[tuple[str, ...], float]:
    return {
        (tier, state): count
        for tier, blocks in stats.blocks.items()
        for state, count in (
            ("used", blocks.used - blocks.pinned),
            ("pinned", blocks.pinned),
            ("cached", blocks.cached),
            ("free", blocks.free),
        )
    }


def _preemptions(stats: EngineStats) -> dict[tuple[str, ...], float]:
    return {(method, reason): count for method, reason, count in stats.preemptions}


def _prefix_tokens(stats: EngineStats) -> dict[str, float]:
    hits = {f"hit_{tier}": count for tier, count in stats.prefix_hits.items()}
    return {**hits, "miss": stats.prefix_queries - sum(hits.values())}


_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily

ENGINE_METRICS: Final = (
    EngineMetric(
        _GAUGE,
        "octavo_requests",
        "Sequences by state",
        lambda s: {"running": s.running, "waiting": s.waiting - s.swapped, "swapped": s.swapped},
        ("state",),
    ),
    EngineMetric(
        _GAUGE,
        "octavo_requests_waiting",
        "Waiting sequences by the reason why they wait",
        lambda s: s.waiting_by_reason,
        ("reason",),
    ),
    EngineMetric(
        _GAUGE,
        "octavo_kv_blocks",
        "KV blocks by tier and state; a tier's states add up to its size",
        _blocks,
        ("tier", "state"),
    ),
    EngineMetric(
        _GAUGE, "octavo_kv_tenant_blocks", "KV blocks in use by tenant", lambda s: s.blocks_by_tenant, ("tenant",)
    ),
    EngineMetric(_GAUGE, "octavo_kv_usage_ratio", "Share of the KV blocks that have an owner", _usage),
    EngineMetric(_GAUGE, "octavo_kv_shared_blocks", "KV blocks with several owners", lambda s: s.blocks_shared),
    EngineMetric(_GAUGE, "octavo_kv_blocks_saved", "KV blocks that sharing spares now", lambda s: s.blocks_saved),
    EngineMetric(_GAUGE, "octavo_kv_slots_filled", "Token slots holding KV in used blocks", lambda s: s.slots_filled),
    EngineMetric(_COUNTER, "octavo_kv_evictions", "Cached blocks given up", lambda s: s.evictions),
    EngineMetric(_COUNTER, "octavo_kv_copies", "Block copies", lambda s: s.copies, ("kind",)),
    EngineMetric(
        _COUNTER, "octavo_kv_copies_lost", "Copies between tiers that did not arrive intact", lambda s: s.copies_lost
    ),
    EngineMetric(_GAUGE, "octavo_kv_pins", "Pinned prefixes", lambda s: s.pins),
    EngineMetric(
        _COUNTER, "octavo_kv_pins_ended", "Pins that expired or gave way", lambda s: s.pins_ended, ("reason",)
    ),
    EngineMetric(_COUNTER, "octavo_kv_deduplications", "Blocks replaced by an equal one", lambda s: s.deduplicated),
    EngineMetric(
        _COUNTER,
        "octavo_prefix_cache_tokens",
        "Prompt tokens looked up in the prefix cache, by where they were found",
        _prefix_tokens,
        ("result",),
    ),
    EngineMetric(
        _COUNTER,
        "octavo_prefix_cache_misses",
        "Prefix look-ups by the reason why they found no more",
        lambda s: s.prefix_misses,
        ("reason",),
    ),
    EngineMetric(_COUNTER, "octavo_steps", "Engine steps", lambda s: s.steps),
    EngineMetric(_COUNTER, "octavo_step_seconds", "Time spent in engine steps", lambda s: s.step_seconds),
    EngineMetric(
        _COUNTER,
        "octavo_tokens",
        "Tokens computed; prompt tokens found in the prefix cache are not",
        lambda s: {"prompt": s.prompt_tokens, "generated": s.generated_tokens},
        ("kind",),
    ),
    EngineMetric(
        _COUNTER,
        "octavo_preemptions",
        "Sequences put back because blocks ran out",
        _preemptions,
        ("method", "reason"),
    ),
    EngineMetric(_COUNTER, "octavo_swap_full", "Victims that found no room in lower tiers", lambda s: s.swap_full),
    EngineMetric(
        _COUNTER, "octavo_swapped_tokens", "Tokens whose KV preempted sequences got back", lambda s: s.swapped_tokens
    ),
    EngineMetric(
        _COUNTER,
        "octavo_recomputed_tokens",
        "Tokens that preemptions made necessary again",
        lambda s: s.recomputed_tokens,
    ),
    EngineMetric(_COUNTER, "octavo_forks", "Sequences begun by sharing a sibling's blocks", lambda s: s.forks),
    EngineMetric(
        _COUNTER, "octavo_sequences_finished", "Finished sequences by reason", lambda s: s.finished, ("reason",)
    ),
    EngineMetric(
        _COUNTER, "octavo_unknown_aborts", "Aborts of requests that were gone already", lambda s: s.unknown_aborts
    ),
)


class Metrics:
    """One server's metrics, in a registry of their own.

    Attributes:
        http_requests: Responses by route template, method and status; 499 is a client that left before its answer.
        ignored_fields: Request fields that Octavo does not know.
        first_token, token_gap, request_time: Histograms of TTFT, ITL and the whole request, in seconds.
    """

    def __init__(self, client: EngineClient) -> None:
        self._registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            "octavo_http_requests", "HTTP responses", ("route", "method", "status"), registry=registry
        )
        self.ignored_fields = Counter(
            "octavo_http_ignored_fields", "Request fields that were not understood", registry=registry
        )
        self.first_token = Histogram(
            "octavo_time_to_first_token_seconds", "Arrival to first token", buckets=_LATENCIES, registry=registry
        )
        self.token_gap = Histogram(
            "octavo_inter_token_latency_seconds", "Gap between tokens", buckets=_GAPS, registry=registry
        )
        self.request_time = Histogram(
            "octavo_request_seconds", "Arrival to last token", buckets=_LATENCIES, registry=registry
        )
        self._unreadable = Counter("octavo_exporter_errors", "Metrics that could not be read", registry=registry)
        registry.register(_EngineCollector(client, self._unreadable))

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, client: EngineClient, unreadable: Counter) -> None:
        self._client = client
        self._unreadable = unreadable

    def describe(self) -> Iterable[Metric]:
        # Without this the registry would collect once, at registration, to learn the names.
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._read(self._client_metrics)
        for metric in ENGINE_METRICS:
            yield from self._read(partial(self._engine_metric, metric))

    def _read(self, read: Callable[[], list[Metric]]) -> list[Metric]:
        try:
            return read()
        except Exception:
            self._unreadable.inc()
            logger.exception("a metric could not be read")
            return []

    def _engine_metric(self, metric: EngineMetric) -> list[Metric]:
        return [_family(metric, metric.read(self._client.stats))]

    def _client_metrics(self) -> list[Metric]:
        return [
            GaugeMetricFamily("octavo_ready", "1 when requests are served", value=float(self._client.ready)),
            CounterMetricFamily("octavo_engine_restarts", "Engine processes replaced", value=self._client.restarts),
        ]


def _family(metric: EngineMetric, reading: Reading) -> Metric:
    family = metric.family(metric.name, metric.help, labels=metric.labels)
    for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
        family.add_metric([labels] if isinstance(labels, str) else list(labels), value)
    return family


class RequestTimer:
    """Measures one generation: time to first token, gaps, and the whole.

    Args:
        metrics: Where the measurements go.
        arrival: When the request arrived, on the monotonic clock.
    """

    def __init__(self, metrics: Metrics, arrival: float) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._last: dict[int, float] = {}

    def tokens(self, index: int, count: int) -> None:
        """New tokens of one sequence are there."""
        now = time.monotonic()
        if not self._last:
            self._metrics.first_token.observe(now - self._arrival)
        elif index in self._last:
            # Tokens that piled up while the reader was slow arrived together; each stands for its share.
            self._metrics.token_gap.observe((now - self._last[index]) / count)
        self._last[index] = now

    def finished(self) -> None:
        """The last token is there."""
        self._metrics.request_time.observe(time.monotonic() - self._arrival)
