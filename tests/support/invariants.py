"""Invariants that only an outsider can check: they hold between all parts, after every step."""

from __future__ import annotations

from factories import EOS, VOCAB, OracleEngine
from oracle import expected_output

from octavo.block_manager.manager import BlockManager
from octavo.scheduler.request import NO_ROW, Sequence, SequenceState
from octavo.scheduler.rows import SIBLING_SEED_STEP
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler


def live_sequences(scheduler: Scheduler) -> list[Sequence]:
    """Every sequence that has not ended, in order of arrival."""
    sequences = [s for request in scheduler._requests.values() for s in request.sequences]
    return sorted(sequences, key=lambda sequence: sequence.order)


def check_parents(manager: BlockManager) -> None:
    """An indexed block's parent is indexed: a prefix cache entry that names a reused parent would be a wrong hit."""
    cache = manager.pool.cache
    for block in range(1, manager.pool.num_blocks + 1):
        parent = cache.parent_of(block)
        assert parent <= 0 or parent in cache, f"block {block} outlived its parent {parent}"


def check_sequences(scheduler: Scheduler) -> None:
    """Exactly the running sequences have a row, and nobody else has blocks."""
    held = 0
    for sequence in live_sequences(scheduler):
        running = sequence.state is SequenceState.RUNNING
        assert (sequence.row != NO_ROW) == running, f"{sequence.state.name} sequence has row {sequence.row}"
        held += int(scheduler.manager.tables.lengths[sequence.row]) if running else 0
    assert held == int(scheduler.manager.tables.lengths.sum()), "blocks are held by no running sequence"
    live = len(live_sequences(scheduler))
    assert live == scheduler.num_running + scheduler.num_waiting, "a sequence is neither running nor waiting"


def check_all(engine: OracleEngine) -> None:
    """Everything that can be checked between two steps."""
    engine.check()
    check_parents(engine.scheduler.manager)
    check_sequences(engine.scheduler)


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
