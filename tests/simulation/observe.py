"""Which rare paths the scheduler took, read off its plans and counters."""

from __future__ import annotations

from octavo.block_manager.tiers import Tier
from octavo.scheduler.decisions import Method, PreemptionReason, WaitReason
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.scheduler import Scheduler
from simulation.sometimes import Sometimes


def observe_plan(seen: Sometimes, scheduler: Scheduler, plan: StepPlan) -> None:
    """What one step shows."""
    seen.note("chunked prefill", len(plan.sample_rows) == 0)
    seen.note("mixed batch", 0 < plan.num_decodes < len(plan.rows))
    seen.note("hit in the same step", _shares_with_writer(scheduler, plan))
    for wait in scheduler.explain_waits().values():
        seen.note("waited for a guarantee", wait.reason is WaitReason.GUARANTEE)
        seen.note("waited at a tenant's ceiling", wait.reason is WaitReason.TENANT_CEILING)
    tiers = scheduler.manager.tiers
    seen.note("tier found not worth its copies", len(tiers.worthwhile) < len(tiers.existing))


def observe_engine(seen: Sometimes, scheduler: Scheduler) -> None:
    """What one engine did, when it has ended."""
    manager, counters, decisions = scheduler.manager, scheduler.counters, scheduler.state.decisions
    for record in decisions.preemptions:
        if record.predicted_swap is not None and record.predicted_recompute is not None:
            cheaper = record.predicted_recompute < record.predicted_swap and scheduler.config.preemption == "auto"
            seen.note("recomputed because it costs less", cheaper and record.method is Method.RECOMPUTE)
            seen.note("swapped out because it costs less", not cheaper and record.method is Method.SWAP)
        seen.note("urgent request took blocks", record.reason is PreemptionReason.PRIORITY)
    counted = {
        "preemption": counters.preemptions,
        "fork": counters.forks,
        "swapped in": counters.swapped_tokens,
        "pin expired": counters.pins_expired,
        "abort of an unknown request": counters.unknown_aborts,
        "prefix hit": manager.prefix_hits[Tier.DEVICE],
        "hit in host memory": manager.prefix_hits[Tier.HOST],
        "hit on disk": manager.prefix_hits[Tier.DISK],
        "sank to host memory": manager.tiers.copied[Tier.DEVICE, Tier.HOST],
        "sank to disk": manager.tiers.copied[Tier.HOST, Tier.DISK],
        "room below ran out": decisions.swap_full,
        "deduplication": manager.deduplicated,
        "eviction": manager.pool.evictions,
        "copy on write": manager.copies,
    }
    for path, count in counted.items():
        seen.note(path, count)


def _shares_with_writer(scheduler: Scheduler, plan: StepPlan) -> bool:
    """Whether a sequence reads a block that another one fills in this very step."""
    tables, size = scheduler.manager.tables, scheduler.manager.block_size
    written, read = set[int](), set[int]()
    for row, start, length in zip(plan.rows.tolist(), plan.starts.tolist(), plan.query_lens.tolist(), strict=True):
        blocks = tables.blocks(row)
        written.update(blocks[start // size : (start + length - 1) // size + 1])
        read.update(blocks[: start // size])
    return bool(written & read)
