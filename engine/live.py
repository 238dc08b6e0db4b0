"""What the live map shows, gathered between two steps when the front end asks for it.

Cells are told once and then only when they change. Nothing here runs while nobody looks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.block_map import PINNED, BlockMap, device_map, lower_map
from octavo.block_manager.tiers import Tier
from octavo.engine.messages import ReadLive
from octavo.engine.views import LiveView, PreemptionView, RunningView, TierCells, WaitingView
from octavo.scheduler.decisions import PreemptionRecord, Wait
from octavo.scheduler.request import Sequence
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import keys_of, split_stream

# Of running and of waiting sequences, and of preemptions: what somebody can read.
_MOST_SEQUENCES = 256
_MOST_PREEMPTIONS = 64

_FULL = 255


class _Cells(NamedTuple):
    """Uint8 arrays but for owners, int32; one entry for each cell."""

    states: npt.NDArray[np.uint8]
    owners: npt.NDArray[np.int32]
    fills: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.uint8]


class LiveReader:
    """Answers `ReadLive`, and remembers what it has told.

    Args:
        scheduler: The engine's.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._most_cells = 0
        self._told: dict[Tier, _Cells] = {}
        self._told_preemptions: dict[int, PreemptionView] = {}

    def read(self, question: ReadLive) -> LiveView:
        """The state now; cells only as far as they have changed since the last call, unless all are asked for."""
        began = time.perf_counter()
        if question.fresh or question.most_cells != self._most_cells:
            self._most_cells = question.most_cells
            self._told.clear()
            self._told_preemptions.clear()
        scheduler, now = self._scheduler, self._scheduler.state.clock()
        tiers = [self._changed(tier, blocks) for tier, blocks in self._maps()]
        running = [_running(scheduler, s, now) for s in islice(scheduler.state.running, _MOST_SEQUENCES)]
        waits = islice(scheduler.explained_waits(), _MOST_SEQUENCES)
        return LiveView(
            ticket=question.ticket,
            steps=scheduler.counters.steps,
            tiers=tiers,
            running=running,
            num_running=scheduler.num_running,
            waiting=[waiting_view(sequence, wait, now) for sequence, wait in waits],
            num_waiting=scheduler.num_waiting,
            preemptions=self._preemptions(now),
            cost=time.perf_counter() - began,
        )

    def _maps(self) -> Iterator[tuple[Tier, BlockMap]]:
        scheduler, manager = self._scheduler, self._scheduler.manager
        rows = scheduler.rows
        yield Tier.DEVICE, device_map(manager, rows.num_computed, keys_of(rows.stream))
        swapped = [(s.request.key, s.swapped) for s in scheduler.waiting_sequences() if s.swapped is not None]
        for tier in manager.tiers.existing:
            yield tier, lower_map(manager.tiers, tier, manager.block_size, swapped)

    def _changed(self, tier: Tier, blocks: BlockMap) -> TierCells:
        per_cell = -(-len(blocks.states) // self._most_cells)
        cells = _cells(blocks, per_cell, self._scheduler.manager.block_size)
        told = self._told.get(tier)
        self._told[tier] = cells
        if told is None:
            changed = np.arange(len(cells.states), dtype=np.int32)
        else:
            differ = [a != b for a, b in zip(told, cells, strict=True)]
            changed = np.flatnonzero(differ[0] | differ[1] | differ[2] | differ[3]).astype(np.int32)
        parts = [part[changed].tobytes() for part in cells]
        return TierCells(tier.name.lower(), len(blocks.states), per_cell, changed.tobytes(), *parts)

    def _preemptions(self, now: float) -> list[PreemptionView]:
        """The latest that have not been told as they are now."""
        decisions = self._scheduler.state.decisions
        first = max(0, len(decisions.preemptions) - _MOST_PREEMPTIONS)
        before = self._scheduler.counters.preemptions - len(decisions.preemptions)
        views = {}
        for index in range(first, len(decisions.preemptions)):
            view = preemption_view(before + index, decisions.preemptions[index], now)
            views[view.number] = view
        news = [view for number, view in views.items() if _alike(view, self._told_preemptions.get(number))]
        self._told_preemptions = views
        return news


def _alike(view: PreemptionView, told: PreemptionView | None) -> bool:
    return told is None or (view.waited, view.actual) != (told.waited, told.actual)


def _cells(blocks: BlockMap, per_cell: int, block_size: int) -> _Cells:
    """A cell for each block, or for so many of them."""
    fills = (blocks.fills * _FULL // block_size).astype(np.uint8)
    counts = np.minimum(blocks.counts, _FULL).astype(np.uint8)
    if per_cell == 1:
        return _Cells(blocks.states, blocks.owners, fills, counts)
    num_cells = -(-len(blocks.states) // per_cell)
    rest = num_cells * per_cell - len(blocks.states)

    def grouped(part: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.pad(part, (0, rest), mode="edge").reshape(num_cells, per_cell)

    states = grouped(blocks.states)
    # Of equally common states the one with the greater claim to be seen.
    votes = np.stack([(states == state).sum(axis=1) for state in range(PINNED, -1, -1)])
    commonest = (PINNED - votes.argmax(axis=0)).astype(np.uint8)
    first = (states == commonest[:, None]).argmax(axis=1)
    owners = grouped(blocks.owners)[np.arange(num_cells), first]
    mean = grouped(fills).mean(axis=1).astype(np.uint8)
    return _Cells(commonest, owners, mean, grouped(counts).max(axis=1))


def _running(scheduler: Scheduler, sequence: Sequence, now: float) -> RunningView:
    rows, row, request = scheduler.rows, sequence.row, sequence.request
    return RunningView(
        key=request.key,
        index=sequence.index,
        tenant=request.tenant.name,
        num_prompt=len(request.prompt),
        num_tokens=int(rows.num_tokens[row]),
        num_computed=int(rows.num_computed[row]),
        num_blocks=int(scheduler.manager.tables.lengths[row]),
        preemptions=sequence.preemptions,
        seconds=now - request.arrival,
    )


def waiting_view(sequence: Sequence, wait: Wait, now: float) -> WaitingView:
    """Why a sequence waits, as it is seen from outside."""
    request = sequence.request
    return WaitingView(
        key=request.key,
        index=sequence.index,
        tenant=request.tenant.name,
        state=sequence.state.value,
        reason=str(wait.reason),
        short=wait.short,
        behind=0 if wait.behind is None else split_stream(wait.behind)[0],
        num_tokens=len(sequence.tokens),
        seconds=now - request.arrival,
    )


def preemption_view(number: int, record: PreemptionRecord, now: float) -> PreemptionView:
    """A preemption, as it is seen from outside."""
    return PreemptionView(
        number=number,
        ago=now - record.time,
        victim=split_stream(record.victim)[0],
        beneficiary=0 if record.beneficiary is None else split_stream(record.beneficiary)[0],
        reason=str(record.reason),
        method=str(record.method),
        blocks=record.blocks,
        tokens=record.tokens,
        predicted_swap=record.predicted_swap,
        predicted_recompute=record.predicted_recompute,
        waited=record.waited,
        kept_tokens=record.kept_tokens,
        recomputed_tokens=record.recomputed_tokens,
        actual=record.actual,
    )
