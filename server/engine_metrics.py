"""The metrics that tell of the engine: a table over its stats, read when Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from octavo.engine.messages import EngineInfo, EngineStats, HistogramCounts

Reading = float | Mapping[str, float] | Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class EngineMetric:
    """One row of the table. With ``labels``, ``read`` returns one value for each combination of their values."""

    family: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    help: str
    read: Callable[[EngineStats], Reading]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineHistogram:
    """A distribution of the engine's, by its name in `EngineStats.histograms`."""

    name: str
    help: str
    source: str


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


def _usage(stats: EngineStats) -> dict[str, float]:
    return {tier: blocks.used / blocks.total if blocks.total else 0.0 for tier, blocks in stats.blocks.items()}


def _fill(stats: EngineStats) -> float:
    return stats.slots_filled / stats.slots_used if stats.slots_used else 0.0


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
    EngineMetric(_GAUGE, "octavo_kv_usage_ratio", "Share of a tier's KV blocks that have an owner", _usage, ("tier",)),
    EngineMetric(_GAUGE, "octavo_kv_slot_fill_ratio", "Share of the token slots in used KV blocks that hold KV", _fill),
    EngineMetric(_GAUGE, "octavo_kv_shared_blocks", "KV blocks with several owners", lambda s: s.blocks_shared),
    EngineMetric(_GAUGE, "octavo_kv_blocks_saved", "KV blocks that sharing spares now", lambda s: s.blocks_saved),
    EngineMetric(
        _GAUGE, "octavo_kv_tenant_blocks", "KV blocks in use by tenant", lambda s: s.blocks_by_tenant, ("tenant",)
    ),
    EngineMetric(_GAUGE, "octavo_kv_pins", "Pinned prefixes", lambda s: s.pins),
    EngineMetric(_COUNTER, "octavo_kv_evictions", "Cached KV blocks given up", lambda s: s.evictions),
    EngineMetric(_COUNTER, "octavo_kv_copies", "KV block copies", lambda s: s.copies, ("kind",)),
    EngineMetric(_COUNTER, "octavo_kv_copied_bytes", "Bytes of KV block copies", lambda s: s.copied_bytes, ("kind",)),
    EngineMetric(
        _COUNTER, "octavo_kv_copy_seconds", "Time that copies between tiers took", lambda s: s.copy_seconds, ("kind",)
    ),
    EngineMetric(
        _COUNTER, "octavo_kv_copies_lost", "Copies between tiers that did not arrive intact", lambda s: s.copies_lost
    ),
    EngineMetric(
        _COUNTER, "octavo_kv_pins_ended", "Pins that expired or gave way", lambda s: s.pins_ended, ("reason",)
    ),
    EngineMetric(_COUNTER, "octavo_kv_deduplications", "KV blocks replaced by an equal one", lambda s: s.deduplicated),
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
    EngineMetric(
        _COUNTER,
        "octavo_step_phase_seconds",
        "Time spent in engine steps, by what was done",
        lambda s: s.phase_seconds,
        ("phase",),
    ),
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

ENGINE_HISTOGRAMS: Final = (
    EngineHistogram("octavo_step_seconds", "Duration of engine steps", "step_seconds"),
    EngineHistogram("octavo_step_tokens", "Tokens computed in a step", "step_tokens"),
    EngineHistogram("octavo_step_sequences", "Sequences that a step computed", "step_sequences"),
    EngineHistogram(
        "octavo_kv_block_lifetime_seconds",
        "From when a KV block was taken until its content was given up",
        "block_lifetime",
    ),
    EngineHistogram(
        "octavo_kv_block_idle_seconds", "From a KV block's last owner until its content was given up", "block_idle"
    ),
    EngineHistogram(
        "octavo_kv_block_reuse_gap_seconds",
        "From a KV block's last owner until somebody found it in the prefix cache",
        "block_reuse_gap",
    ),
)


def metric_of(metric: EngineMetric, stats: EngineStats) -> Metric:
    """One row of the table, as Prometheus' client wants it."""
    reading = metric.read(stats)
    family = metric.family(metric.name, metric.help, labels=metric.labels)
    for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
        family.add_metric([labels] if isinstance(labels, str) else list(labels), value)
    return family


def histogram_of(histogram: EngineHistogram, stats: EngineStats) -> Metric:
    """The same for a distribution."""
    found = stats.histograms.get(histogram.source, HistogramCounts())
    bounds = [*map(floatToGoString, found.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(found.counts), strict=True))
    return HistogramMetricFamily(histogram.name, histogram.help, buckets=buckets, sum_value=found.total)


def cache_config(info: EngineInfo) -> Metric:
    """What the KV pool is like, as the labels of a gauge that is always 1."""
    labels = {
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        "block_bytes": info.block_bytes,
        "device": info.device,
        "dtype": info.dtype,
        "attention_backend": info.attention_backend,
    }
    family = GaugeMetricFamily("octavo_cache_config_info", "Shape of the KV pool", labels=list(labels))
    family.add_metric([str(value) for value in labels.values()], 1.0)
    return family
