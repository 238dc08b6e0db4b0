"""Scheduler, block manager and oracle as a Hypothesis state machine: every invariant after every rule.

A run here takes about 10,000 steps; with OCTAVO_NIGHTLY=1 it takes ten times as many, from a new seed.
"""

from __future__ import annotations

import os

from factories import OracleEngine, greedy, make_scheduler
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check_empty, check_parents, check_sequences, expected

from octavo.block_manager.hashing import chain_hash
from octavo.scheduler.sampling import SamplingParams

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile(
    "octavo", max_examples=200, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=_CHECKS
)
settings.register_profile(
    "octavo-nightly", max_examples=2_000, stateful_step_count=50, deadline=None, suppress_health_check=_CHECKS
)

# Few different tokens, so that blocks are equal by accident as well as by design.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=20)
HASHERS = {"chained": chain_hash, "colliding": lambda parent, tokens: 0}


class ServingMachine(RuleBasedStateMachine):
    """Requests come, share, fork, fail and go; what each says is known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, tuple[list[int], SamplingParams]] = {}
        self.aborted: set[int] = set()
        self.failed: set[int] = set()

    @initialize(
        num_blocks=st.sampled_from([4, 6, 12, 30]),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.sampled_from([1, 2, 4, 6]),
        spare_budget=st.sampled_from([0, 3, 30]),
        caching=st.sampled_from([True, True, False]),
        hasher=st.sampled_from(sorted(HASHERS)),
        watermark_ratio=st.sampled_from([0.0, 0.01, 0.3]),
    )
    def start(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        spare_budget: int,
        caching: bool,
        hasher: str,
        watermark_ratio: float,
    ) -> None:
        self.scheduler = make_scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_model_len=48,
            caching=caching,
            hasher=HASHERS[hasher],
            watermark_ratio=watermark_ratio,
        )
        self.engine = OracleEngine(self.scheduler)

    def enqueue(self, prompt: list[int], max_tokens: int, n: int, salt: str) -> None:
        largest = self.scheduler.largest_request()
        prompt = prompt[: largest - 1]
        sampling = greedy(min(max_tokens, largest - len(prompt)), n=n)
        key = len(self.jobs)
        self.jobs[key] = (prompt, sampling)
        self.engine.add(key, prompt, sampling, salt)

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 12), salt=st.sampled_from(["", "a"]))
    def add(self, prompt: list[int], max_tokens: int, salt: str) -> None:
        self.enqueue(prompt, max_tokens, 1, salt)

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 12), n=st.integers(2, 5))
    def add_that_forks(self, prompt: list[int], max_tokens: int, n: int) -> None:
        self.enqueue(prompt, max_tokens, n, "")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), more=st.lists(st.integers(0, 2), max_size=5), max_tokens=st.integers(1, 12))
    def add_with_shared_prefix(self, data: st.DataObject, more: list[int], max_tokens: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.jobs)))
        said = self.engine.outputs[key, 0]
        self.enqueue(self.jobs[key][0] + said + more or [0], max_tokens, 1, "")

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
        result = self.scheduler.fail(plan, "boom")
        self.engine.take(result)
        self.failed |= {finished.stream // 128 for finished in result.finished}

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.jobs)))  # one past the last: unknown
        if self.scheduler.abort(key):
            self.aborted.add(key)

    @rule()
    def drain(self) -> None:
        self.engine.run()
        check_empty(self.scheduler)
        for key in self.jobs.keys() - self.aborted - self.failed:
            prompt, sampling = self.jobs[key]
            for index in range(sampling.n):
                assert self.engine.outputs[key, index] == expected(prompt, sampling, index)

    @rule()
    def forget_cached_content(self) -> None:
        self.scheduler.manager.pool.forget_idle()
        assert self.scheduler.manager.pool.counts.cached == 0

    @invariant()
    def blocks_and_sequences_are_sound(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check()
        check_parents(self.scheduler.manager)
        check_sequences(self.scheduler)

    @invariant()
    def nothing_wrong_was_said(self) -> None:
        for (key, index), said in self.engine.outputs.items() if hasattr(self, "engine") else ():
            prompt, sampling = self.jobs[key]
            assert said == expected(prompt, sampling, index)[: len(said)]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.drain()


TestServing = ServingMachine.TestCase
TestServing.settings = settings.get_profile("octavo-nightly" if os.environ.get("OCTAVO_NIGHTLY") == "1" else "octavo")
