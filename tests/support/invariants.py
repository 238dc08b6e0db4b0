"""Invariants that only an outsider can check: they hold between all parts, after every step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from factories import EOS, VOCAB, OracleEngine
from oracle import expected_output

from octavo.block_manager.manager import BlockManager
from octavo.block_manager.windowed import WindowedBlockManager
from octavo.scheduler.decisions import WaitReason
from octavo.scheduler.request import NO_ROW, Sequence, SequenceState
from octavo.scheduler.rows import SIBLING_SEED_STEP
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import stream_of

# Reasons that say how many blocks are missing.
LACKING = (WaitReason.BLOCKS, WaitReason.TENANT_CEILING, WaitReason.GUARANTEE)


def live_sequences(scheduler: Scheduler) -> list[Sequence]:
    """Every sequence that has not ended, in order of arrival."""
    sequences = [s for request in scheduler.state.requests.values() for s in request.sequences]
    return sorted(sequences, key=lambda sequence: sequence.order)


def check_parents(manager: BlockManager) -> None:
    """An indexed block's parent is indexed: a prefix cache entry that names a reused parent would be a wrong hit."""
    cache = manager.cache
    for block in range(1, len(manager.pool.reference_counts)):
        parent = cache.parent_of(block)
        assert parent <= 0 or parent in cache, f"block {block} outlived its parent {parent}"


def check_sequences(scheduler: Scheduler) -> None:
    """Exactly the running sequences have a row, and nobody else has blocks."""
    held = 0
    for sequence in live_sequences(scheduler):
        running = sequence.state is SequenceState.RUNNING
        assert (sequence.row != NO_ROW) == running, f"{sequence.state.name} sequence has row {sequence.row}"
        held += int(scheduler.manager.tables.lengths[sequence.row]) if running else 0
        request = sequence.request
        assert sequence.order == (request.number, sequence.index), f"{sequence.order} is not sequence {sequence.index}"
        assert sequence.stream == stream_of(request.key, sequence.index), f"{sequence.order} has another's stream"
    orders = [sequence.order for sequence in live_sequences(scheduler)]
    assert len(set(orders)) == len(orders), "two sequences have the same number"
    assert held == int(scheduler.manager.tables.lengths.sum()), "blocks are held by no running sequence"
    live = len(live_sequences(scheduler))
    assert live == scheduler.num_running + scheduler.num_waiting, "a sequence is neither running nor waiting"


def check_swapped(scheduler: Scheduler) -> None:
    """Exactly the swapped-out sequences hold blocks in the tiers below."""
    swapped = [s for s in live_sequences(scheduler) if s.state is SequenceState.SWAPPED]
    assert swapped == [s for s in live_sequences(scheduler) if s.swapped is not None], "copies are held by others"
    assert scheduler.num_swapped == len(swapped)
    tiers = scheduler.manager.tiers
    held = {place for sequence in swapped if sequence.swapped for place in sequence.swapped.held}
    for tier in tiers.existing:
        assert tiers.counts(tier).used == sum(place.tier is tier for place in held), f"{tier.name} holds others' blocks"


def check_quotas(scheduler: Scheduler) -> None:
    """Tenants share no blocks, hold no more than they may, and what they are sure of is free until they use it."""
    manager, tenants = scheduler.manager, scheduler.state.tenants.configs
    used: list[set[int]] = [set() for _ in tenants]
    promised = [0 for _ in tenants]
    for sequence in scheduler.state.running:
        row, index = sequence.row, sequence.request.tenant.index
        seen, whole = frames_needed(manager, row), manager.tables.blocks(row)
        used[index].update(physical(manager, whole, seen))
        promised[index] += int(manager.blocks_held(np.array([row]))[0]) - len(physical(manager, whole, seen))
    for pin in manager.pins.listed():
        seen = manager._last_window(pin.blocks) if isinstance(manager, WindowedBlockManager) else ()
        used[pin.tenant].update(physical(manager, pin.blocks, seen))
    held = [len(blocks) + more for blocks, more in zip(used, promised, strict=True)]
    assert manager.quota.used == held
    assert len(set().union(*used)) == sum(map(len, used)), "tenants share a block"
    for tenant, blocks in zip(tenants, held, strict=True):
        assert tenant.ceiling is None or blocks <= tenant.ceiling, f"{tenant.name} is above its ceiling"
    kept = sum(max(0, tenant.floor - blocks) for tenant, blocks in zip(tenants, held, strict=True))
    assert kept <= manager.pool.available, "floors were given away"


def frames_needed(manager: BlockManager, row: int) -> list[int]:
    """The columns whose windowed layers' blocks a row needs; none in a model without windows."""
    if not isinstance(manager, WindowedBlockManager):
        return []
    return manager.tables.blocks(row)[manager._low[row] : manager._high[row]]


def physical(manager: BlockManager, whole: Iterable[int], seen: Iterable[int]) -> set[int]:
    """The blocks that table entries stand for: all full layers' of ``whole``, all windowed layers' of ``seen``."""
    if not isinstance(manager, WindowedBlockManager):
        return set(whole)
    full = manager.groups.num_full
    blocks = set(manager.columns.blocks[:full, list(whole)].ravel().tolist())
    return blocks | set(manager.columns.blocks[full:, list(seen)].ravel().tolist())


def check_preemptions(engine: OracleEngine) -> None:
    """Nobody gives way more often than is allowed; a failed step may break what admission promised."""
    most = engine.scheduler.config.max_preemptions
    for sequence in live_sequences(engine.scheduler):
        assert sequence.preemptions <= most or engine.failed_steps, f"{sequence.order}: {sequence.preemptions} times"


def check_waits(scheduler: Scheduler) -> None:
    """Everybody who waits is told why, in terms of others who wait."""
    waits = scheduler.explain_waits()
    waiting = {s.stream for s in live_sequences(scheduler) if s.state is not SequenceState.RUNNING}
    assert waits.keys() == waiting
    for stream, wait in waits.items():
        assert wait.behind is None or wait.behind in waiting - {stream}, f"{stream} is behind {wait.behind}"
        assert (wait.short > 0) == (wait.reason in LACKING), f"{stream} lacks {wait.short} blocks: {wait.reason}"
        assert (wait.behind is not None) or wait.reason is not WaitReason.BEHIND, f"{stream} is behind nobody"
        assert wait.step <= scheduler.counters.steps


def check_admission(scheduler: Scheduler) -> None:
    """What admission reckons with before it predicts anything is no less than what it then predicts."""
    admission = scheduler._admission
    admission._ahead = None  # as of the last step; `admit` forgets it too
    for sequence in scheduler.state.waiting.in_turn():
        assert admission._keep_free(sequence) <= admission._most_to_keep_free


def check_all(engine: OracleEngine) -> None:
    """Everything that can be checked between two steps."""
    engine.check()
    check_parents(engine.scheduler.manager)
    check_sequences(engine.scheduler)
    check_swapped(engine.scheduler)
    check_quotas(engine.scheduler)
    check_preemptions(engine)
    check_waits(engine.scheduler)
    check_admission(engine.scheduler)


def check_empty(scheduler: Scheduler) -> None:
    """Nothing is left behind: all blocks are free or cached, and all rows are free."""
    counts = scheduler.manager.pool.counts
    assert counts.used == 0
    assert counts.cached + counts.free == counts.total
    assert scheduler.rows.available == scheduler.config.max_num_seqs
    assert not scheduler.has_work
    assert live_sequences(scheduler) == []


def expected(prompt: list[int], sampling: SamplingParams, index: int = 0, max_tokens: int | None = None) -> list[int]:
    """The output of sequence ``index`` of a request with a seed, end-of-sequence rule included."""
    length = max_tokens or sampling.max_tokens
    assert length is not None
    assert sampling.seed is not None
    seed = (sampling.seed + index * SIBLING_SEED_STEP) % 2**64 % 2**31
    return expected_output(prompt, length, VOCAB, seed, None if sampling.ignore_eos else EOS)
