"""The same under the names that vLLM gives them, for gateways and dashboards that know only those.

Of `--metrics-compat vllm`. The names are those of its version 1 engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient
    from octavo.server.metrics import Metrics

_LABELS: Final = ("model_name", "engine")


def vllm_metrics(client: EngineClient, metrics: Metrics, model_name: str) -> Iterator[Metric]:
    """All of them.

    Args:
        client: The engine. metrics: the server's own, some of which have another name here.
    """
    stats, values = client.stats, (model_name, "0")

    def gauge(name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(values, value)
        return family

    def counter(name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(values, value)
        return family

    def histogram(name: str, source: Histogram) -> Metric:
        (own,) = source.collect()
        family = HistogramMetricFamily(f"vllm:{name}", own.documentation, labels=_LABELS)
        buckets = [(s.labels["le"], s.value) for s in own.samples if s.name.endswith("_bucket")]
        total = next(s.value for s in own.samples if s.name.endswith("_sum"))
        family.add_metric(values, buckets, total)
        return family

    device = stats.device
    yield gauge("num_requests_running", "Running sequences", stats.running)
    yield gauge("num_requests_waiting", "Waiting sequences", stats.waiting)
    usage = device.used / device.total if device.total else 0.0
    yield gauge("kv_cache_usage_perc", "Share of the KV blocks that have an owner; 1 is all", usage)
    yield counter("prefix_cache_queries", "Tokens looked up in the prefix cache", stats.prefix_queries)
    yield counter("prefix_cache_hits", "Tokens found there", sum(stats.prefix_hits.values()))
    yield counter("num_preemptions", "Preemptions", stats.num_preemptions)
    yield counter("prompt_tokens", "Prompt tokens computed", stats.prompt_tokens)
    yield counter("generation_tokens", "Tokens generated", stats.generated_tokens)
    finished = CounterMetricFamily("vllm:request_success", "Finished sequences", labels=(*_LABELS, "finished_reason"))
    for reason in ("stop", "length", "abort", "error"):
        finished.add_metric((*values, reason), stats.finished.get(reason, 0))
    yield finished
    yield histogram("time_to_first_token_seconds", metrics.first_token)
    yield histogram("inter_token_latency_seconds", metrics.token_gap)
    yield histogram("request_time_per_output_token_seconds", metrics.output_token)
    yield histogram("e2e_request_latency_seconds", metrics.request_time)
    yield histogram("request_queue_time_seconds", metrics.queue_time)
    yield histogram("request_prefill_time_seconds", metrics.prefill_time)
    yield histogram("request_decode_time_seconds", metrics.decode_time)
    if client.ready:
        yield _cache_config(client)


def _cache_config(client: EngineClient) -> Metric:
    labels = {"block_size": client.info.block_size, "num_gpu_blocks": client.info.num_blocks, "engine": 0}
    family = GaugeMetricFamily("vllm:cache_config_info", "Shape of the KV pool", labels=list(labels))
    family.add_metric([str(value) for value in labels.values()], 1.0)
    return family
