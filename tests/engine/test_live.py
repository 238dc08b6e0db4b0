"""The live map: what is told from time to time adds up to the state, whatever happens in between."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from engines import Engine, Pace, plain, prompt

from octavo.block_manager.groups import LayerGroups
from octavo.config import TenantConfig
from octavo.engine.live import LiveReader
from octavo.engine.messages import ReadLive
from octavo.engine.views import CACHED, FREE, NOBODY, PIN, PINNED, USED, LiveView, TierCells
from octavo.scheduler.request import SequenceState

Cells = dict[str, np.ndarray]


class Viewer:
    """Somebody who looks now and then, and keeps what was told.

    Attributes:
        cells: By tier and kind. told: cells that the last look told of.
    """

    def __init__(self, engine: Engine, most_cells: int = 1024) -> None:
        self.reader = LiveReader(engine.scheduler)
        self.most_cells = most_cells
        self.cells: dict[str, Cells] = {}
        self.told = 0

    def look(self, *, fresh: bool = False) -> LiveView:
        view = self.reader.read(ReadLive(fresh, self.most_cells, ticket=7))
        assert view.ticket == 7
        self.told = 0
        for tier in view.tiers:
            self._take(tier)
        return view

    def _take(self, tier: TierCells) -> None:
        size = -(-tier.num_blocks // tier.blocks_per_cell)
        kinds = {"states": np.uint8, "owners": np.int32, "fills": np.uint8, "counts": np.uint8}
        cells = self.cells.setdefault(tier.tier, {kind: np.zeros(size, dtype) for kind, dtype in kinds.items()})
        changed = np.frombuffer(tier.cells, dtype=np.int32)
        self.told += len(changed)
        for kind, dtype in kinds.items():
            cells[kind][changed] = np.frombuffer(getattr(tier, kind), dtype=dtype)


def states(cells: Cells) -> list[int]:
    return np.bincount(cells["states"], minlength=4).tolist()


def check(viewer: Viewer, engine: Engine) -> None:
    """What was told bit by bit is the state, as everything else tells it."""
    fresh = Viewer(engine)
    fresh.look()
    for tier, cells in fresh.cells.items():
        for kind, values in cells.items():
            assert values.tolist() == viewer.cells[tier][kind].tolist(), (tier, kind)
    manager = engine.scheduler.manager
    counts, cells = manager.pool.counts, viewer.cells["device"]
    free, cached, used, pinned = states(cells)
    assert (free, cached, used + pinned) == (counts.free, counts.cached, counts.used)
    assert pinned == manager.pinned_blocks
    assert (cells["owners"][cells["states"] <= CACHED] == NOBODY).all()
    assert (cells["owners"][cells["states"] == USED] != NOBODY).all()
    assert int((cells["counts"] > 1).sum()) == manager.pool.shared
    for tier in manager.tiers.existing:
        below = manager.tiers.counts(tier)
        assert states(viewer.cells[tier.name.lower()]) == [below.free, below.cached, below.used, 0]


POOLS: dict[str, dict[str, Any]] = {
    "device": {"num_blocks": 12},
    "tiers": {"num_blocks": 12, "host_blocks": 6, "disk_blocks": 4, "preemption": "swap"},
    "windows": {"num_blocks": 30, "groups": LayerGroups(((0,), (1,), (2,)), 1, 6)},
    "windows only": {"num_blocks": 24, "groups": LayerGroups(((0,), (1,)), 0, 6)},
}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("seed", range(3))
def test_what_is_told_adds_up_to_the_state(options: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    engine = Engine(max_num_seqs=6, max_num_batched_tokens=16, pin_ratio=0.3, pace=Pace(step=1e-3), **options)
    viewer = Viewer(engine)
    viewer.look()
    for key in range(1, 40):
        start = chance.choice([0, 0, 20, 40])
        engine.add(
            key, prompt(chance.randrange(1, 14), start=start), plain(chance.randrange(1, 12), n=chance.choice([1, 3]))
        )
        if chance.random() < 0.3:
            engine.scheduler.pin(prompt(9), 0.02)
        for _ in range(chance.randrange(4)):
            if engine.scheduler.has_work:
                engine.step()
            viewer.look()
            check(viewer, engine)
    engine.run()
    viewer.look()
    check(viewer, engine)


def test_only_what_has_changed_is_told() -> None:
    engine = Engine(num_blocks=100)
    viewer = Viewer(engine)
    viewer.look()
    assert viewer.told == 100
    viewer.look()
    assert viewer.told == 0
    engine.add(1, prompt(9), plain(3))
    engine.step()
    viewer.look()
    assert viewer.told == 3
    engine.step()
    viewer.look()
    assert viewer.told == 1  # the last block fills
    viewer.look(fresh=True)
    assert viewer.told == 100


def test_a_block_belongs_to_the_request_that_came_first() -> None:
    engine = Engine(num_blocks=16)
    engine.add(5, prompt(8), plain(9))
    engine.step()
    engine.add(6, prompt(9), plain(9))
    engine.step()
    viewer = Viewer(engine)
    viewer.look()
    cells = viewer.cells["device"]
    assert sorted(cells["owners"][cells["states"] == USED].tolist()) == [5, 5, 5, 6]
    assert sorted(cells["counts"][cells["states"] == USED].tolist()) == [1, 1, 2, 2]
    assert sorted(cells["fills"][cells["states"] == USED].tolist()) == [63, 63, 255, 255]


def test_a_pin_has_no_request() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5)
    engine.add(5, prompt(9), plain(1))
    engine.run()
    assert engine.scheduler.pin(prompt(8), 10.0) is not None
    viewer = Viewer(engine)
    viewer.look()
    cells = viewer.cells["device"]
    assert cells["owners"][cells["states"] == PINNED].tolist() == [PIN, PIN]


def test_a_large_tiers_cells_stand_for_several_blocks() -> None:
    engine = Engine(num_blocks=10)
    engine.add(5, prompt(11), plain(9))
    engine.step()
    viewer = Viewer(engine, most_cells=4)
    view = viewer.look()
    assert (view.tiers[0].num_blocks, view.tiers[0].blocks_per_cell) == (10, 3)
    cells = viewer.cells["device"]
    assert cells["states"].tolist() == [USED, FREE, FREE, FREE]
    assert cells["owners"].tolist() == [5, 0, 0, 0]
    assert cells["fills"].tolist() == [(255 + 255 + 191) // 3, 0, 0, 0]
    assert viewer.look().tiers[0].cells == b""


def test_who_runs_and_who_waits_and_why() -> None:
    engine = Engine(num_blocks=4, tenants=[TenantConfig(name="a")])
    engine.add(1, prompt(10), plain(5), tenant="a")
    engine.now = 1.5
    engine.step()
    engine.add(2, prompt(9, start=20), plain(4))
    engine.add(3, prompt(9, start=40), plain(4))
    engine.step()
    engine.now = 4.0
    view = Viewer(engine).look()
    (running,) = view.running
    assert (running.key, running.index, running.tenant, running.num_prompt) == (1, 0, "a", 10)
    assert (running.num_tokens, running.num_computed, running.num_blocks, running.seconds) == (12, 11, 3, 4.0)
    second, third = view.waiting
    assert (second.key, second.state, second.reason, second.short, second.behind) == (2, "waiting", "blocks", 3, 0)
    assert (third.key, third.behind, third.seconds) == (3, 2, 2.5)
    assert (view.num_running, view.num_waiting, view.steps) == (1, 2, 2)


def test_a_preemption_is_told_again_when_its_cost_is_known() -> None:
    engine = Engine(
        num_blocks=6, max_num_seqs=3, caching=False, pace=Pace(step=1e-3, prefill=1e-3), watermark_ratio=0.0
    )
    for key in range(3):
        engine.add(key + 1, prompt(7, start=key * 10), plain(12))
    viewer = Viewer(engine)
    victim = engine.step_until(SequenceState.PREEMPTED, 2)
    (told,) = viewer.look().preemptions
    assert (told.number, told.victim, told.method, told.waited) == (0, 3, "recompute", None)
    assert viewer.look().preemptions == []
    engine.run()
    again = viewer.look().preemptions[0]
    assert again.number == 0
    assert again.waited is not None
    assert again.waited > 0
    assert again.recomputed_tokens == told.tokens
    assert again.actual > 0
    assert victim.preemptions >= 1
