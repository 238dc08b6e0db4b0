"""Small schedulers and requests for tests."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from oracle import OracleRunner

from octavo.block_manager.hashing import ChainHash, chain_hash
from octavo.block_manager.manager import BlockManager
from octavo.config import SchedulerConfig
from octavo.scheduler.plan import StepPlan, StepResult
from octavo.scheduler.request import split_stream
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler

VOCAB = 64
EOS = 63


def make_manager(
    num_blocks: int = 16,
    block_size: int = 4,
    num_rows: int = 4,
    *,
    caching: bool = True,
    hasher: ChainHash = chain_hash,
) -> BlockManager:
    """A manager whose every row could own the whole pool."""
    return BlockManager(
        num_blocks=num_blocks,
        block_size=block_size,
        num_rows=num_rows,
        max_blocks_per_row=num_blocks,
        prefix_caching=caching,
        hasher=hasher,
    )


def make_scheduler(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 64,
    caching: bool = True,
    hasher: ChainHash = chain_hash,
    **config: Any,
) -> Scheduler:
    """A scheduler over a small pool, with one end-of-sequence token."""
    limits = SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, **config)
    manager = make_manager(num_blocks, block_size, max_num_seqs, caching=caching, hasher=hasher)
    return Scheduler(limits, manager, max_model_len=max_model_len, vocab_size=VOCAB, eos_token_ids=[EOS])


def greedy(max_tokens: int | None = 8, **values: Any) -> SamplingParams:
    """Parameters whose seed is fixed, so that the oracle's output is known."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **{"seed": 0, **values})


class OracleEngine:
    """Scheduler and oracle in a loop, checking every invariant after every step.

    Attributes:
        outputs: (key, index) → tokens so far.
        reasons: (key, index) → finish reason.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.runner = OracleRunner(scheduler, VOCAB)
        self.outputs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.reasons: dict[tuple[int, int], str] = {}
        self.cached: dict[tuple[int, int], int] = {}
        self.plans: list[StepPlan] = []

    def add(self, key: int, prompt: list[int], sampling: SamplingParams | None = None, salt: str = "") -> None:
        """Queues a request."""
        self.scheduler.add(key, prompt, sampling or greedy(), salt)

    def step(self) -> StepPlan | None:
        """One step, verified."""
        plan = self.scheduler.schedule()
        if plan is not None:
            self.plans.append(plan)
            self.take(self.scheduler.update(plan, self.runner.execute(plan)))
        self.check()
        return plan

    def take(self, result: StepResult) -> None:
        """Collects what a step gave out."""
        for stream, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            self.outputs[split_stream(stream)].append(token)
        for stream, hit in result.started:
            self.cached[split_stream(stream)] = hit
        for finished in result.finished:
            assert split_stream(finished.stream) not in self.reasons, "a sequence ended twice"
            self.reasons[split_stream(finished.stream)] = str(finished.reason)

    def run(self, max_steps: int = 10_000) -> None:
        """Steps until nothing is left to do."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            assert self.step() is not None, "work waits and nothing can run"
        raise AssertionError(f"not done after {max_steps} steps")

    def check(self) -> None:
        """Every invariant, and the pool's arithmetic."""
        assert self.scheduler.check_integrity() == []
        counts = self.scheduler.manager.pool.counts
        assert counts.used + counts.cached + counts.free == counts.total
