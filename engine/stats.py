"""A snapshot of the scheduler's state and counters, as the front end gets it."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import numpy as np

from octavo.block_manager.loops import SPAN_BOUNDS
from octavo.block_manager.misses import MissReason
from octavo.block_manager.pool import BlockCounts
from octavo.block_manager.tiers import Tier
from octavo.engine.messages import EngineStats, HistogramCounts, TierBlocks
from octavo.engine.meter import StepMeter
from octavo.scheduler.decisions import Method, PreemptionReason, WaitReason
from octavo.scheduler.request import FinishReason
from octavo.scheduler.scheduler import Scheduler

Reason = TypeVar("Reason", WaitReason, MissReason, FinishReason)


def snapshot(scheduler: Scheduler, meter: StepMeter, block_bytes: int) -> EngineStats:
    """The state now.

    Args:
        meter: Of all steps since the start. block_bytes: KV of one block.
    """
    manager, counters, decisions = scheduler.manager, scheduler.counters, scheduler.state.decisions
    device = manager.pool.counts
    names = [tenant.name for tenant in scheduler.state.tenants]
    between = [(a, b) for a in (Tier.DEVICE, *manager.tiers.existing) for b in manager.tiers.existing if a < b]
    copies = {"copy_on_write": manager.copies}
    for a, b in between:
        copies |= {_kind(a, b): manager.tiers.copied[a, b], _kind(b, a): manager.tiers.copied[b, a]}
    return EngineStats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        swapped=scheduler.num_swapped,
        waiting_by_reason=_all(WaitReason, Counter(wait.reason for _, wait in scheduler.explained_waits())),
        blocks={
            "device": _counts(device, manager.pinned_blocks),
            **{_name(tier): _counts(manager.tiers.counts(tier)) for tier in manager.tiers.existing},
        },
        blocks_shared=manager.pool.shared,
        blocks_saved=manager.pool.saved,
        blocks_by_tenant=dict(zip(names, manager.quota.used, strict=True)),
        slots_used=device.used * manager.block_size,
        slots_filled=device.used * manager.block_size - _unfilled_slots(scheduler),
        steps=counters.steps,
        step_seconds=meter.seconds,
        phase_seconds=dict(meter.phases),
        histograms=meter.histograms() | _block_spans(scheduler),
        prompt_tokens=counters.prompt_tokens,
        generated_tokens=counters.generated_tokens,
        prefix_queries=manager.prefix_queries,
        prefix_hits={_name(tier): manager.prefix_hits[tier] for tier in (Tier.DEVICE, *manager.tiers.existing)},
        prefix_misses=_all(MissReason, decisions.misses),
        preemptions=[
            (str(method), str(reason), decisions.preemptions_by[method, reason])
            for method in Method
            for reason in PreemptionReason
        ],
        recomputed_tokens=counters.recomputed_tokens,
        swapped_tokens=counters.swapped_tokens,
        swap_full=decisions.swap_full,
        evictions=manager.pool.evictions,
        copies=copies,
        copied_bytes={kind: count * block_bytes for kind, count in copies.items()},
        copy_seconds={_kind(*way): meter.copies[way] for a, b in between for way in ((a, b), (b, a))},
        copies_lost=manager.tiers.lost,
        forks=counters.forks,
        deduplicated=manager.deduplicated,
        pins=len(manager.pins),
        pins_ended={"expired": counters.pins_expired, "gave_way": counters.pins_dropped},
        finished=_all(FinishReason, scheduler.state.finished),
        unknown_aborts=counters.unknown_aborts,
    )


def _all(kinds: type[Reason], counts: Counter[Reason]) -> dict[str, int]:
    """Counts of all kinds: what has not happened yet is told as 0, or nobody sees it happen for the first time."""
    return {str(kind): counts[kind] for kind in kinds}


def _kind(source: Tier, target: Tier) -> str:
    return f"{_name(source)}_to_{_name(target)}"


def _block_spans(scheduler: Scheduler) -> dict[str, HistogramCounts]:
    bounds = [milliseconds / 1000 for milliseconds in SPAN_BOUNDS]
    spans = scheduler.manager.pool.span_counts()
    return {name: HistogramCounts(bounds, counts, total) for name, (counts, total) in spans.items()}


def _name(tier: Tier) -> str:
    return tier.name.lower()


def _counts(counts: BlockCounts, pinned: int = 0) -> TierBlocks:
    return TierBlocks(counts.total, counts.used, counts.cached, counts.free, pinned)


def _unfilled_slots(scheduler: Scheduler) -> int:
    """Slots in used blocks that hold no KV yet; a tail that siblings share counts once."""
    tables, rows = scheduler.manager.tables, scheduler.rows
    held = np.flatnonzero(tables.lengths)
    tails = tables.ids[held, tables.lengths[held] - 1]
    _, first = np.unique(tails, return_index=True)
    unfilled = tables.lengths[held] * scheduler.manager.block_size - rows.num_computed[held]
    return int(unfilled[first].sum())
