"""Prometheus metrics, in a registry of the server's own: the engine's, and what HTTP itself counts.

A metric that cannot be read is left out and counted: exporting never raises. Labels take their values from what the
operator configured or from short fixed lists, never from what clients send.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.server.engine_metrics import (
    ENGINE_HISTOGRAMS,
    ENGINE_METRICS,
    EngineHistogram,
    EngineMetric,
    cache_config,
    histogram_of,
    metric_of,
)
from octavo.server.lifecycle import Lifecycle
from octavo.server.vllm_metrics import vllm_metrics

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

logger = logging.getLogger(__name__)

_LATENCIES: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

TOKEN_KINDS: Final = ("prompt", "cached", "generated")
END_REASONS: Final = ("stop", "length", "error", "aborted", "disconnected", "refused")


class Metrics:
    """One server's metrics.

    Args:
        client: The engine. lifecycle: knows what is open.
        model_name: The name that clients use for the model.
        compatible: "vllm" exports its names on top.

    Attributes:
        http_requests: Responses by route template, method and status; 499 is a client that left before its answer.
        ignored_fields: Request fields that Octavo does not know.
        first_token, token_gap, output_token, request_time, queue_time, prefill_time, decode_time: See
            `octavo.server.request_timer`.
        request_tokens: By tenant and kind. finished: requests by tenant and reason.
        loop_lag: By how much the event loop was late.
    """

    def __init__(self, client: EngineClient, lifecycle: Lifecycle, model_name: str, compatible: str = "none") -> None:
        self._client = client
        self._registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            "octavo_http_requests", "HTTP responses", ("route", "method", "status"), registry=registry
        )
        self.ignored_fields = Counter(
            "octavo_http_ignored_fields", "Request fields that were not understood", registry=registry
        )
        self.first_token = self._latencies("octavo_time_to_first_token_seconds", "Arrival to first token")
        self.request_time = self._latencies("octavo_request_seconds", "Arrival to last token")
        self.queue_time = self._latencies("octavo_request_queue_seconds", "Arrival at the engine to first admission")
        self.prefill_time = self._latencies("octavo_request_prefill_seconds", "First admission to first token")
        self.decode_time = self._latencies("octavo_request_decode_seconds", "First to last token")
        self.token_gap = self._histogram("octavo_inter_token_latency_seconds", "Gap between tokens", _GAPS)
        self.output_token = self._histogram(
            "octavo_time_per_output_token_seconds", "A sequence's mean gap between tokens", _GAPS
        )
        self.loop_lag = self._histogram(
            "octavo_event_loop_lag_seconds", "By how much the event loop was late for a timer", _LAGS
        )
        self.request_tokens = Counter(
            "octavo_request_tokens",
            "Tokens of requests: those of prompts, those of them that the prefix cache had, generated ones",
            ("tenant", "kind"),
            registry=registry,
        )
        self.finished = Counter(
            "octavo_requests_finished", "Requests that ended", ("tenant", "reason"), registry=registry
        )
        self._unreadable = unreadable = Counter(
            "octavo_exporter_errors", "Metrics that could not be read", registry=registry
        )
        registry.register(_Readings(client, lifecycle, unreadable))
        if compatible == "vllm":
            registry.register(_Reading(partial(vllm_metrics, client, self, model_name), unreadable))

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        list(_Reading(self._with_all_tenants, self._unreadable).collect())
        return generate_latest(self._registry)

    def _with_all_tenants(self) -> Iterable[Metric]:
        """Has counters begin with 0 for each tenant: an increase from nothing to something is none to Prometheus."""
        for tenant in self._client.stats.blocks_by_tenant:
            for kind in TOKEN_KINDS:
                self.request_tokens.labels(tenant, kind)
            for reason in END_REASONS:
                self.finished.labels(tenant, reason)
        return ()

    def _latencies(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, _LATENCIES)

    def _histogram(self, name: str, text: str, bounds: Iterable[float]) -> Histogram:
        return Histogram(name, text, buckets=tuple(bounds), registry=self._registry)


class _Reading(Collector):
    """Metrics that are read when Prometheus asks; none if that fails."""

    def __init__(self, read: Callable[[], Iterable[Metric]], unreadable: Counter) -> None:
        self._read = read
        self._unreadable = unreadable

    def describe(self) -> Iterable[Metric]:
        # Without this the registry would collect once, at registration, to learn the names.
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            yield from list(self._read())
        except Exception:
            self._unreadable.inc()
            logger.exception("a metric could not be read")


class _Readings(Collector):
    """The tables, row by row: one that cannot be read does not take the others along."""

    def __init__(self, client: EngineClient, lifecycle: Lifecycle, unreadable: Counter) -> None:
        self._client = client
        self._lifecycle = lifecycle
        self._unreadable = unreadable

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        reads: list[Callable[[], list[Metric]]] = [self._of_server, self._of_open_requests, self._of_cache]
        reads += [partial(self._of_engine, metric) for metric in ENGINE_METRICS]
        reads += [partial(self._distribution, histogram) for histogram in ENGINE_HISTOGRAMS]
        for read in reads:
            yield from _Reading(read, self._unreadable).collect()

    def _of_engine(self, metric: EngineMetric) -> list[Metric]:
        return [metric_of(metric, self._client.stats)]

    def _distribution(self, histogram: EngineHistogram) -> list[Metric]:
        return [histogram_of(histogram, self._client.stats)]

    def _of_server(self) -> list[Metric]:
        build = GaugeMetricFamily("octavo_build_info", "Versions", labels=["version", "python"])
        build.add_metric([_own_version(), platform.python_version()], 1.0)
        return [
            build,
            GaugeMetricFamily("octavo_ready", "1 when requests are served", value=float(self._client.ready)),
            CounterMetricFamily("octavo_engine_restarts", "Engine processes replaced", value=self._client.restarts),
        ]

    def _of_open_requests(self) -> list[Metric]:
        family = GaugeMetricFamily("octavo_open_requests", "HTTP requests being worked at", labels=["tenant"])
        known = dict.fromkeys(self._client.stats.blocks_by_tenant, 0)
        for tenant, count in (known | self._lifecycle.open_by_tenant).items():
            family.add_metric([tenant], count)
        return [family]

    def _of_cache(self) -> list[Metric]:
        # While the engine is loading it is not known, which is no error.
        return [cache_config(self._client.info)] if self._client.ready else []


def _own_version() -> str:
    try:
        return version("octavo")
    except PackageNotFoundError:
        return "unknown"
