"""The fairness benchmark in small: a flood costs the others next to nothing, and its checks can fail."""

from __future__ import annotations

import heapq
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from octavo.block_manager.quota import Quota
from octavo.scheduler.queue import FairQueue
from octavo.scheduler.request import Sequence

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fairness.py"


def load() -> ModuleType:
    """Imports the script, whose folder is not on the path."""
    spec = importlib.util.spec_from_file_location("fairness_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


fairness = load()


def outcomes_of(requests: int) -> dict[str, Any]:
    outcomes = fairness.run(requests)
    assert [problem for outcome in outcomes for problem in fairness.problems(outcome)] == []
    assert fairness.table(outcomes).count("\n") == 14
    return {outcome.scenario: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return outcomes_of(3_000)


def test_a_flood_costs_a_light_tenant_next_to_nothing(outcomes: dict[Any, Any]) -> None:
    fcfs, fair, quiet = (outcomes[key] for key in (fairness.FCFS, fairness.FAIR, fairness.QUIET))
    assert fair.percentile("light", 99) < fcfs.percentile("light", 50) / 20
    assert fair.percentile("light", 99) < quiet.percentile("light", 99) + 0.1
    assert fair.percentile("light", 99) < fair.bound_seconds


def test_floods_share_by_their_weights(outcomes: dict[Any, Any]) -> None:
    both = outcomes[fairness.TWO_FLOODS]
    assert both.share("flood") / both.share("steady") == pytest.approx(2, rel=0.1)
    assert both.most_apart > 0


def test_a_queue_that_knows_no_tenants_breaks_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(queue: FairQueue) -> Iterator[Sequence]:
        return heapq.merge(*(lane.in_turn() for lane in queue._lanes.values()), key=queue.order)

    monkeypatch.setattr(FairQueue, "in_turn", in_turn)
    outcome = fairness.Run(fairness.FAIR, 0).until(requests=2_000)
    assert any("waited" in problem for problem in fairness.problems(outcome))
    assert any("before light" in problem for problem in fairness.problems(outcome))


@pytest.mark.parametrize("limit", ["floors", "ceilings"])
def test_a_limit_that_is_not_kept_is_seen(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Quota.__init__

    def forget(quota: Quota, total: int, floors: Any, ceilings: Any) -> None:
        before(quota, total, [0] * len(floors) if limit == "floors" else floors, ceilings)
        if limit == "ceilings":
            quota.ceilings = tuple(total for _ in ceilings)

    monkeypatch.setattr(Quota, "__init__", forget)
    outcome = fairness.Run(fairness.LIMITED, 0).until(requests=2_000)
    assert fairness.problems(outcome)


@pytest.mark.skipif(os.environ.get("OCTAVO_NIGHTLY") != "1", reason="takes minutes; set OCTAVO_NIGHTLY=1")
def test_a_hundred_thousand_requests() -> None:
    outcomes = outcomes_of(100_000)
    assert len(outcomes[fairness.FAIR].first_tokens["light"]) > 500
