"""The oracle engine with what tests of the scheduler ask it for, and the requests they give it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from factories import OracleEngine, greedy, make_scheduler
from invariants import check_all, expected, live_sequences

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.scheduler.costs import pairs
from octavo.scheduler.decisions import PreemptionRecord, Wait
from octavo.scheduler.plan import Int32s, StepPlan
from octavo.scheduler.request import Sequence, SequenceState
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import stream_of


@dataclass(frozen=True)
class Pace:
    """How long things take: seconds per step, per prefill token, per decode, per (query, key) pair and per block."""

    step: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    pair: float = 0.0
    copy: float = 0.0

    def seconds(self, plan: StepPlan) -> float:
        """Of a step's computation."""
        chunks = list(zip(plan.starts.tolist(), plan.query_lens.tolist(), strict=True))[plan.num_decodes :]
        seconds: float = (
            self.step
            + self.prefill * sum(length for _, length in chunks)
            + self.decode * plan.num_decodes
            + self.pair * sum(pairs(start, length) for start, length in chunks)
        )
        return seconds

    def timings(self, plan: StepPlan) -> list[TransferTiming]:
        """Of a step's transfers."""
        directions = Counter((transfer.source, transfer.target) for transfer in plan.transfers)
        return [TransferTiming(*direction, count, count * self.copy) for direction, count in directions.items()]


class Engine(OracleEngine):
    """The oracle engine over a scheduler of its own, on a clock that only tests and `pace` move.

    Attributes:
        now: Seconds.
        pace: How long things take; None: nobody measures.
    """

    def __init__(self, *, pace: Pace | None = None, **limits: Any) -> None:
        self.now = 0.0
        self.pace = pace
        self._members: dict[int, list[int]] = {}  # plan number -> requests
        super().__init__(make_scheduler(**{"clock": lambda: self.now, **limits}))

    def execute(self, plan: StepPlan) -> None:
        """Runs a plan and takes its results in, with the time it took if anybody measures."""
        self._members[plan.number] = self.keys(plan)
        left = self.transfer(plan)
        if left is None:
            return
        sampled = self.runner.execute(left)
        if self.pace is not None:
            seconds, timings = self.pace.seconds(left), self.pace.timings(plan)
            self.now += seconds + sum(timing.seconds for timing in timings)
            self.scheduler.observe(left, seconds, timings)
        self.take(self.scheduler.update(left, sampled))

    def keys(self, plan: StepPlan | None) -> list[int]:
        """The requests whose sequences compute something, in the plan's order."""
        assert plan is not None
        known = self._members.get(plan.number)  # some may have ended since
        return known if known is not None else [self.sequence_in(row).request.key for row in plan.rows.tolist()]

    def sequence_in(self, row: int) -> Sequence:
        """The sequence of a row."""
        sequence = self.scheduler.rows.owner[row]
        assert sequence is not None
        return sequence

    def sequence(self, key: int, index: int = 0) -> Sequence:
        """A live sequence."""
        return next(s for s in live_sequences(self.scheduler) if (s.request.key, s.index) == (key, index))

    def running(self) -> list[int]:
        """The requests that run, in the policy's order."""
        return [sequence.request.key for sequence in self.scheduler.state.running]

    def wait(self, key: int, index: int = 0) -> Wait:
        """Why a sequence waits."""
        return self.scheduler.explain_waits()[stream_of(key, index)]

    def records(self) -> list[PreemptionRecord]:
        """The latest preemptions, oldest first."""
        return list(self.scheduler.state.decisions.preemptions)

    def step_poisoned(self, poisoned: Collection[int]) -> list[int]:
        """One step that fails if one of these requests is in it; returns the requests that were."""
        plan = self.scheduler.schedule()
        assert plan is not None
        keys = self.keys(plan)
        if set(poisoned) & set(keys):
            self.fail(plan)
        else:
            self.execute(plan)
        check_all(self)
        return keys

    def step_until(self, state: SequenceState, key: int, index: int = 0) -> Sequence:
        """Steps until a sequence is in this state, and returns it."""
        for _ in range(200):
            sequence = next((s for s in live_sequences(self.scheduler) if s.order == (key, index)), None)
            if sequence is not None and sequence.state is state:
                return sequence
            assert self.step() is not None
        raise AssertionError(f"request {key} was never {state.name}")

    def step_until_preempted(self, times: int = 1) -> list[PreemptionRecord]:
        """Steps until so many preemptions have happened, and returns their records."""
        while len(self.records()) < times:
            assert self.step() is not None, "nobody had to give way"
        return self.records()

    def learn(self, pace: Pace, *tiers: Tier) -> None:
        """Measures steps and copies of this pace, so that all costs are known beforehand."""
        self.pace = pace
        for tokens in (16, 32, 64, 96):
            for decodes in (0, 1, 2):
                plan = plan_of([(0, tokens)], decodes)
                self.scheduler.state.costs.observe_step(plan, pace.seconds(plan))
        for tier in tiers:
            for timing in (
                TransferTiming(Tier.DEVICE, tier, 1, pace.copy),
                TransferTiming(tier, Tier.DEVICE, 1, pace.copy),
            ):
                self.scheduler.state.costs.observe_transfer(timing)


def plan_of(chunks: list[tuple[int, int]], decodes: int = 0) -> StepPlan:
    """A plan of decodes and (start, tokens) chunks that nobody executes."""

    def ints(values: list[int]) -> Int32s:
        return np.array(values, dtype=np.int32)

    starts, lens = [100] * decodes + [start for start, _ in chunks], [1] * decodes + [length for _, length in chunks]
    rows = ints(list(range(len(starts))))
    return StepPlan(0, rows, ints(starts), ints(lens), decodes, sample_from=rows[:0], sample_rows=rows[:0])


def plain(max_tokens: int | None = 8, **values: Any) -> SamplingParams:
    """Ends by length alone."""
    return greedy(max_tokens, ignore_eos=True, **values)


def prompt(count: int, start: int = 0) -> list[int]:
    """Tokens that count up."""
    return [(start + i) % 60 for i in range(count)]


def crowded(**limits: Any) -> Engine:
    """Three requests that fit at first and cannot all grow to their end."""
    engine = Engine(**{"num_blocks": 8, "max_num_seqs": 3, **limits})
    for key in range(3):
        engine.add(key, prompt(7, start=key * 10), plain(12))
    return engine


def check_crowded(engine: Engine) -> None:
    """All three said what they had to."""
    for key in range(3):
        assert engine.outputs[key, 0] == expected(prompt(7, start=key * 10), plain(12))


def check_siblings(engine: Engine, key: int, tokens: list[int], sampling: SamplingParams) -> None:
    """Every one of a request's sequences said what it had to."""
    for index in range(sampling.n):
        assert engine.outputs[key, index] == expected(tokens, sampling, index), index
