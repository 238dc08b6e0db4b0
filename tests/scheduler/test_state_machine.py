"""Scheduler, block manager and oracle as a Hypothesis state machine: every invariant after every rule.

A run here takes about 10,000 steps; with OCTAVO_NIGHTLY=1 it takes ten times as many, from a new seed.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from beam_reference import beam_search, best_of
from factories import EOS, VOCAB, OracleEngine, greedy, make_scheduler
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check_all, check_empty, expected

from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.hashing import ALL_BITS
from octavo.block_manager.tiers import TransferTiming
from octavo.config import TenantConfig
from octavo.errors import ClientError, PinBudgetError
from octavo.scheduler.sampling import MAX_N, SamplingParams

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile(
    "octavo", max_examples=200, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=_CHECKS
)
settings.register_profile(
    "octavo-nightly", max_examples=2_000, stateful_step_count=50, deadline=None, suppress_health_check=_CHECKS
)

# Few different tokens, so that blocks are equal by accident as well as by design.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=20)
HASH_MASKS = {"whole": ALL_BITS, "colliding": 0}


class ServingMachine(RuleBasedStateMachine):
    """Requests come, share, fork, fail and go; what each says is known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, tuple[list[int], SamplingParams]] = {}
        self.known: dict[int, list[list[int]]] = {}  # what requests must say, once that was computed
        self.aborted: set[int] = set()
        self.failed: set[int] = set()

    @initialize(
        num_blocks=st.sampled_from([4, 6, 12, 30]),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.sampled_from([1, 2, 4, 6]),
        spare_budget=st.sampled_from([0, 3, 30]),
        caching=st.sampled_from([True, True, False]),
        hashes=st.sampled_from(sorted(HASH_MASKS)),
        watermark_ratio=st.sampled_from([0.0, 0.01, 0.3]),
        host_blocks=st.sampled_from([0, 1, 3, 12]),
        disk_blocks=st.sampled_from([0, 0, 0, 3, 20]),
        lookahead=st.sampled_from([0, 0, 8]),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        preemption=st.sampled_from(["auto", "swap", "swap", "recompute"]),
        max_preemptions=st.sampled_from([1, 3]),
        prefer_cached=st.booleans(),
        floor=st.sampled_from([None, 0, 0.25]),
        ceiling=st.sampled_from([None, 0.3, 0.5]),
        windows=st.sampled_from([None, None, (0, 5), (0, 9, 9), (3,), (0, 0, 1)]),
    )
    def start(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        spare_budget: int,
        caching: bool,
        hashes: str,
        watermark_ratio: float,
        floor: float | None,
        ceiling: float | None,
        windows: tuple[int, ...] | None,
        **options: Any,
    ) -> None:
        self.now = 0.0
        bounds: dict[str, Any] = {
            "floor": int(num_blocks * (floor or 0)),
            "ceiling": None if ceiling is None else max(1, int(num_blocks * ceiling)),
        }
        tenants = () if floor is None else (TenantConfig(name="t", weight=2.0, **bounds),)
        self.scheduler = make_scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_model_len=48,
            caching=caching,
            hash_mask=HASH_MASKS[hashes],
            watermark_ratio=watermark_ratio,
            tenants=tenants,
            groups=None if windows is None else LayerGroups.of(windows, longest=48),
            pin_ratio=0.5,
            clock=lambda: self.now,
            **options,
        )
        self.names = [tenant.name for tenant in self.scheduler.state.tenants]
        self.engine = OracleEngine(self.scheduler)

    def enqueue(self, prompt: list[int], max_tokens: int, *, tenant: str = "", salt: str = "", **how: Any) -> None:
        """Adds a request, cut to what fits; those that can never fit are refused and leave nothing behind."""
        largest = self.scheduler.largest_request(tenant)
        if largest < 2:  # its ceiling is less than one token's blocks
            return
        prompt = prompt[: largest - 1]
        fields = {name: how.pop(name) for name in ("n", "beam_width", "best_of") if name in how}
        sampling = greedy(min(max_tokens, largest - len(prompt)), **fields)
        key = len(self.jobs)
        try:
            self.engine.add(key, prompt, sampling, salt, tenant=tenant, **how)
        except ClientError:
            assert sampling.beam_width
        else:
            self.jobs[key] = (prompt, sampling)

    def outputs(self, key: int) -> list[list[int]]:
        if key not in self.known:
            prompt, sampling = self.jobs[key]
            if sampling.beam_width:
                self.known[key] = beam_search(prompt, sampling, VOCAB, EOS)
            elif sampling.chooses:
                self.known[key] = best_of(prompt, sampling, VOCAB, EOS)
            else:
                self.known[key] = [expected(prompt, sampling, index) for index in range(sampling.n)]
        return self.known[key]

    @rule(
        data=st.data(),
        prompt=PROMPTS,
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "a"]),
        priority=st.integers(0, 2),
        pin_ttl=st.sampled_from([None, None, 1.0, 50.0]),
    )
    def add(self, data: st.DataObject, prompt: list[int], max_tokens: int, **how: Any) -> None:
        self.enqueue(prompt, max_tokens, tenant=data.draw(st.sampled_from(self.names)), **how)

    @rule(data=st.data(), prompt=PROMPTS, max_tokens=st.integers(1, 12), n=st.integers(2, 5))
    def add_that_forks(self, data: st.DataObject, prompt: list[int], max_tokens: int, n: int) -> None:
        self.enqueue(prompt, max_tokens, tenant=data.draw(st.sampled_from(self.names)), n=n)

    @rule(
        prompt=PROMPTS, max_tokens=st.integers(1, 8), n=st.integers(1, 2), more=st.integers(1, 2), beams=st.booleans()
    )
    def add_that_chooses(self, prompt: list[int], max_tokens: int, n: int, more: int, beams: bool) -> None:
        width: dict[str, Any] = {"beam_width" if beams else "best_of": n + more}
        self.enqueue(prompt, max_tokens, n=n, **width)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), more=st.lists(st.integers(0, 2), max_size=5), max_tokens=st.integers(1, 12))
    def add_with_shared_prefix(self, data: st.DataObject, more: list[int], max_tokens: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.jobs)))
        tokens = self.jobs[key][0] + self.engine.outputs[key, 0] + more
        self.enqueue(tokens or [0], max_tokens, tenant=data.draw(st.sampled_from(self.names)))

    @rule()
    def step(self) -> None:
        work = self.scheduler.has_work
        assert (self.engine.step() is not None) == work, "work waits and nothing can run"

    @rule(count=st.integers(2, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @rule()
    def fail_step(self) -> None:
        plan = self.scheduler.schedule()
        if plan is None:
            assert not self.scheduler.has_work, "work waits and nothing can run"
            return
        left = self.engine.transfer(plan)
        assert left is not None
        self.failed |= {finished.stream // MAX_N for finished in self.engine.fail(left).finished}

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.jobs)))  # one past the last: unknown
        if self.scheduler.abort(key):
            self.aborted.add(key)

    @rule(data=st.data(), steps=st.integers(1, 8))
    def lose_transfers(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            plan = self.scheduler.schedule()
            if plan is None:
                assert not self.scheduler.has_work, "work waits and nothing can run"
                return
            left = self.engine.transfer(plan, lambda: data.draw(st.booleans()))
            if left is not None:
                self.engine.take(self.scheduler.update(left, self.engine.runner.execute(left)))
            check_all(self.engine)

    @rule(seconds=st.floats(0.001, 10), per_block=st.floats(0.0001, 10))
    def observe_costs(self, seconds: float, per_block: float) -> None:
        plan = self.scheduler.schedule()
        if plan is None:
            assert not self.scheduler.has_work, "work waits and nothing can run"
            return
        timings = [TransferTiming(t.source, t.target, 1, per_block) for t in plan.transfers]
        left = self.engine.transfer(plan)
        assert left is not None
        sampled = self.engine.runner.execute(left)
        self.scheduler.observe(left, seconds, timings)
        self.engine.take(self.scheduler.update(left, sampled))

    @rule(data=st.data(), prompt=PROMPTS, ttl=st.sampled_from([1.0, 50.0]))
    def pin(self, data: st.DataObject, prompt: list[int], ttl: float) -> None:
        with contextlib.suppress(ClientError, PinBudgetError):
            self.scheduler.pin(prompt, ttl, tenant=data.draw(st.sampled_from(self.names)))

    @rule(data=st.data())
    def drop_a_pin(self, data: st.DataObject) -> None:
        if pins := self.scheduler.pinning.listed():
            assert self.scheduler.pinning.drop(data.draw(st.sampled_from(pins)).number)

    @rule(seconds=st.sampled_from([0.5, 20.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        assert all(pin.expires > self.now for pin in self.scheduler.pinning.listed())

    @rule(data=st.data(), prompt=PROMPTS, salt=st.sampled_from(["", "a"]))
    def invalidate_a_prefix(self, data: st.DataObject, prompt: list[int], salt: str) -> None:
        self.scheduler.invalidate(tenant=data.draw(st.sampled_from(self.names)), salt=salt, tokens=prompt)

    @rule(data=st.data(), salt=st.sampled_from(["", "a"]))
    def invalidate_a_salt(self, data: st.DataObject, salt: str) -> None:
        self.scheduler.invalidate(tenant=data.draw(st.sampled_from(self.names)), salt=salt)

    @rule()
    def forget_all_cached_content(self) -> None:
        for name in self.names:
            self.scheduler.invalidate(tenant=name)
        assert self.scheduler.manager.pool.counts.cached == 0
        assert len(self.scheduler.manager.pins) == 0

    @rule()
    def drain(self) -> None:
        self.engine.run()
        self.now += 1_000.0
        assert self.scheduler.pinning.listed() == []
        check_empty(self.scheduler)
        for key in self.jobs.keys() - self.aborted - self.failed:
            for index, output in enumerate(self.outputs(key)):
                assert self.engine.outputs[key, index] == output

    @invariant()
    def blocks_and_sequences_are_sound(self) -> None:
        if not hasattr(self, "engine"):
            return
        check_all(self.engine)

    @invariant()
    def nothing_wrong_was_said(self) -> None:
        for (key, index), said in self.engine.outputs.items() if hasattr(self, "engine") else ():
            assert said == self.outputs(key)[index][: len(said)]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.drain()


TestServing = ServingMachine.TestCase
TestServing.settings = settings.get_profile("octavo-nightly" if os.environ.get("OCTAVO_NIGHTLY") == "1" else "octavo")
