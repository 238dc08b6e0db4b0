"""A snapshot of the scheduler's state and counters, as the front end gets it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from octavo.block_manager.pool import BlockCounts
from octavo.block_manager.tiers import Tier
from octavo.engine.messages import EngineStats, TierBlocks
from octavo.scheduler.scheduler import Scheduler


def snapshot(scheduler: Scheduler, step_seconds: float) -> EngineStats:
    """The state now.

    Args:
        step_seconds: Time spent in steps since the start.
    """
    manager, counters, decisions = scheduler.manager, scheduler.counters, scheduler.state.decisions
    device = manager.pool.counts
    names = [tenant.name for tenant in scheduler.state.tenants]
    return EngineStats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        swapped=scheduler.num_swapped,
        waiting_by_reason=dict(Counter(str(wait.reason) for wait in scheduler.explain_waits().values())),
        blocks={
            "device": _counts(device, manager.pinned_blocks),
            **{_name(tier): _counts(manager.tiers.counts(tier)) for tier in manager.tiers.existing},
        },
        blocks_shared=manager.pool.shared,
        blocks_saved=manager.pool.saved,
        blocks_by_tenant=dict(zip(names, manager.quota.used, strict=True)),
        slots_filled=device.used * manager.block_size - _unfilled_slots(scheduler),
        steps=counters.steps,
        step_seconds=step_seconds,
        prompt_tokens=counters.prompt_tokens,
        generated_tokens=counters.generated_tokens,
        prefix_queries=manager.prefix_queries,
        prefix_hits={_name(tier): tokens for tier, tokens in manager.prefix_hits.items()},
        prefix_misses={str(reason): count for reason, count in decisions.misses.items()},
        preemptions=[(str(method), str(reason), count) for (method, reason), count in decisions.preemptions_by.items()],
        recomputed_tokens=counters.recomputed_tokens,
        swapped_tokens=counters.swapped_tokens,
        swap_full=decisions.swap_full,
        evictions=manager.pool.evictions,
        copies={
            "copy_on_write": manager.copies,
            **{f"{_name(a)}_to_{_name(b)}": count for (a, b), count in manager.tiers.copied.items()},
        },
        copies_lost=manager.tiers.lost,
        forks=counters.forks,
        deduplicated=manager.deduplicated,
        pins=len(manager.pins),
        pins_ended={"expired": counters.pins_expired, "gave_way": counters.pins_dropped},
        finished={str(reason): count for reason, count in scheduler.state.finished.items()},
        unknown_aborts=counters.unknown_aborts,
    )


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
