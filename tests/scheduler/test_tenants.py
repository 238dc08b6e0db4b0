"""Tenants: who they are, what they are charged, and that nobody gets more than their weight entitles them to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from engines import Engine, plain, prompt
from factories import greedy, make_scheduler

from octavo.config import TenantConfig
from octavo.errors import InvalidRequestError
from octavo.scheduler.plan import Sampled, StepPlan
from octavo.scheduler.streams import split_stream
from octavo.scheduler.tenants import OUTPUT_COST, PROMPT_COST, Tenants


def tenants_of(*configured: TenantConfig) -> Tenants:
    return Tenants(configured)


# ── who they are ────────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_configured_everybody_is_the_default_tenant() -> None:
    tenants = Tenants()
    assert [tenant.name for tenant in tenants] == ["default"]
    assert tenants.named("") is tenants.named("default")


def test_the_default_tenant_is_there_beside_configured_ones() -> None:
    tenants = tenants_of(TenantConfig(name="a", weight=2.0), TenantConfig(name="b"))
    assert [(tenant.name, tenant.index, tenant.weight) for tenant in tenants] == [
        ("default", 0, 1.0),
        ("a", 1, 2.0),
        ("b", 2, 1.0),
    ]


def test_the_default_tenant_can_be_configured_like_any_other() -> None:
    tenants = tenants_of(TenantConfig(name="a"), TenantConfig(name="default", weight=3.0, ceiling=7))
    assert [tenant.name for tenant in tenants] == ["a", "default"]
    assert tenants.named("").weight == 3.0
    assert tenants.configs[1].ceiling == 7


def test_an_unknown_tenant_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tenants_of(TenantConfig(name="a")).named("x")
    assert str(caught.value) == "unknown tenant 'x'; the known ones are default, a"
    assert caught.value.param == "tenant"


@pytest.mark.parametrize("act", ["add", "pin", "invalidate"])
def test_whatever_is_asked_for_an_unknown_tenant_is_refused(act: str) -> None:
    scheduler = make_scheduler()
    calls: dict[str, Any] = {
        "add": lambda: scheduler.add(0, [1, 2], greedy(), tenant="x"),
        "pin": lambda: scheduler.pin([1, 2, 3, 4], 1.0, tenant="x"),
        "invalidate": lambda: scheduler.invalidate(tenant="x"),
    }
    with pytest.raises(InvalidRequestError, match="unknown tenant 'x'"):
        calls[act]()
    assert not scheduler.has_work


# ── what they are charged ───────────────────────────────────────────────────────────────────────────────────


def test_prompts_and_outputs_are_charged_by_weight() -> None:
    tenants = tenants_of(TenantConfig(name="a", weight=2.0), TenantConfig(name="b", weight=0.5))
    tenants.charge_prompt(tenants.named("a"), 10)
    tenants.charge_output(np.array([1, 2, 1, 0], dtype=np.int32))
    assert [tenant.virtual for tenant in tenants] == [2.0, 10 / 2 + 2 * 2 / 2, 2 / 0.5]


def test_a_tenant_alone_is_charged_too() -> None:
    tenants = tenants_of(TenantConfig(name="default", weight=4.0))
    tenants.charge_output(np.zeros(6, dtype=np.int32))
    assert tenants.named("").virtual == 6 * OUTPUT_COST / 4.0


def test_what_a_request_is_charged_is_what_was_computed_for_it() -> None:
    engine = Engine(policy="fair", tenants=[TenantConfig(name="a"), TenantConfig(name="b")])
    engine.add(0, prompt(10), plain(4), tenant="a")
    engine.run()
    engine.add(1, prompt(10), plain(4), tenant="a")  # its first two blocks are cached
    engine.run()
    charged = {tenant.name: tenant.virtual for tenant in engine.scheduler.state.tenants}
    assert charged == {"default": 0.0, "a": (10 + 2) * PROMPT_COST + 8 * OUTPUT_COST, "b": 0.0}


def test_a_preempted_request_is_charged_for_its_prompt_once() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=3, caching=False)
    for key in range(3):
        engine.add(key, prompt(7, start=key * 10), plain(12))
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.state.tenants.named("").virtual == 3 * (7 * PROMPT_COST + 12 * OUTPUT_COST)


# ── what they get, with the real scheduler and no model ─────────────────────────────────────────────────────


class Shape(NamedTuple):
    """The longest prompts and outputs of a tenant's requests, and its weight."""

    prompt: int
    output: int
    weight: float = 1.0


class Backlog:
    """Tenants that always have requests waiting.

    Attributes:
        service: What each has had: prompt tokens when they are admitted, output tokens when they are sampled.
        present: The first so many tenants have requests.
        widest: The largest difference between two tenants' service divided by weight, at any time.
    """

    def __init__(self, shapes: Sequence[Shape], seed: int = 0, **limits: Any) -> None:
        self.shapes = shapes
        self.names = [f"tenant-{number}" for number in range(len(shapes))]
        configured = [TenantConfig(name=n, weight=s.weight) for n, s in zip(self.names, shapes, strict=True)]
        size: dict[str, Any] = {"num_blocks": 20, "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 64}
        self.scheduler = make_scheduler(
            **{**size, "max_model_len": 300, "caching": False, "policy": "fair", "tenants": configured, **limits}
        )
        self.rng = random.Random(seed)
        self.owners: list[tuple[int, int]] = []  # key -> tenant, prompt tokens
        self.new: set[int] = set()  # keys of requests that were never admitted
        self.service = np.zeros(len(shapes))
        self.present = len(shapes)
        self.widest = 0.0

    def add(self) -> None:
        """Adds requests until every tenant that is there has some waiting."""
        waiting = [self.owners[key][0] for key in self.new]
        for tenant, shape in list(enumerate(self.shapes))[: self.present]:
            for _ in range(10 - waiting.count(tenant)):
                length, output = (int(most * self.rng.uniform(0.5, 1.0)) + 1 for most in (shape.prompt, shape.output))
                self.new.add(key := len(self.owners))
                self.owners.append((tenant, length))
                self.scheduler.add(key, [1] * length, plain(output), tenant=self.names[tenant])

    def step(self) -> StepPlan:
        """One step in which everybody says token 1."""
        self.add()
        plan = self.scheduler.schedule()
        assert plan is not None
        for stream in self.scheduler.rows.stream[plan.rows].tolist():
            key, _ = split_stream(stream)
            if key in self.new:
                self.new.remove(key)
                tenant, length = self.owners[key]
                self.service[tenant] += PROMPT_COST * length
        result = self.scheduler.update(plan, Sampled(np.ones(len(plan.sample_rows), dtype=np.int32)))
        for stream in result.streams.tolist():
            self.service[self.owners[split_stream(stream)[0]][0]] += OUTPUT_COST
        shares = self.shares
        self.widest = max(self.widest, float(shares.max() - shares.min()))
        return plan

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Service divided by weight."""
        shares: npt.NDArray[np.float64] = self.service / np.array([shape.weight for shape in self.shapes])
        return shares

    @property
    def bound(self) -> float:
        """That of `octavo.scheduler.tenants`."""
        manager = self.scheduler.manager
        pool = manager.pool.num_blocks * manager.block_size
        longest = max(length for _, length in self.owners)
        return 2 * max(PROMPT_COST * longest, OUTPUT_COST * pool) / min(shape.weight for shape in self.shapes)


MIXES = {
    "long prompts against long outputs": (Shape(200, 5), Shape(5, 100)),
    "large requests against small ones": (Shape(240, 20), Shape(10, 10)),
    "five of all kinds": (Shape(200, 5), Shape(5, 100), Shape(50, 50), Shape(240, 2), Shape(2, 2)),
    "three times the weight": (Shape(200, 5), Shape(5, 100, weight=3.0)),
    "an eighth of the weight": (Shape(240, 20, weight=4.0), Shape(10, 10, weight=0.5)),
    "five weights": tuple(Shape(10 + 50 * number, 30 - 5 * number, 1.0 + number) for number in range(5)),
}


@pytest.mark.parametrize("lookahead", [0, 32])
@pytest.mark.parametrize("mix", MIXES)
def test_tenants_that_always_wait_get_service_by_their_weights(mix: str, lookahead: int) -> None:
    backlog = Backlog(MIXES[mix], lookahead=lookahead)
    backlog.run(1_200)
    assert backlog.shares.min() > backlog.bound  # or it would say nothing
    assert backlog.widest <= backlog.bound


def test_without_that_policy_the_one_with_larger_requests_gets_more() -> None:
    backlog = Backlog(MIXES["large requests against small ones"], policy="fcfs")
    backlog.run(1_500)
    assert backlog.shares[0] - backlog.shares[1] > 3 * backlog.bound


def test_one_who_comes_late_has_not_saved_up_service() -> None:
    backlog = Backlog((Shape(50, 50), Shape(50, 50)))
    backlog.present = 1
    backlog.run(600)
    assert backlog.shares[0] > 4 * backlog.bound
    backlog.present, backlog.service, backlog.widest = 2, np.zeros(2), 0.0
    backlog.run(600)
    assert backlog.shares.min() > backlog.bound
    assert backlog.widest <= backlog.bound
