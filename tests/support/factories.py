"""Small schedulers and requests for tests."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from oracle import OracleRunner

from octavo.block_manager.groups import LayerGroups
from octavo.block_manager.hashing import ALL_BITS
from octavo.block_manager.manager import BlockManager
from octavo.block_manager.pool import BlockPool
from octavo.block_manager.prefix_cache import PrefixCache
from octavo.block_manager.tiers import Tiers
from octavo.block_manager.windowed import WindowedBlockManager
from octavo.config import SchedulerConfig
from octavo.scheduler.history import History
from octavo.scheduler.plan import StepPlan, StepResult
from octavo.scheduler.request import FinishReason, Request
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import split_stream
from octavo.scheduler.tenants import Tenant, Tenants

VOCAB = 64
EOS = 63


def make_manager(
    num_blocks: int = 16,
    block_size: int = 4,
    num_rows: int = 4,
    *,
    caching: bool = True,
    hash_mask: int = ALL_BITS,
    host_blocks: int = 0,
    disk_blocks: int = 0,
    groups: LayerGroups | None = None,
    max_chunk: int = 32,
    max_blocks_per_row: int | None = None,
    **limits: Any,
) -> BlockManager:
    """A manager whose every row could own the whole pool."""
    limits |= {
        "num_blocks": num_blocks,
        "block_size": block_size,
        "num_rows": num_rows,
        "max_blocks_per_row": max_blocks_per_row or num_blocks,
        "prefix_caching": caching,
        "hash_mask": hash_mask,
    }
    if groups is not None and groups.num_windowed:
        return WindowedBlockManager(groups=groups, max_chunk=max_chunk, **limits)
    return BlockManager(tiers=Tiers(host_blocks, disk_blocks), **limits)


def forget_idle(pool: BlockPool[PrefixCache]) -> int:
    """Drops the content of all blocks without an owner; returns how many there were."""
    idle = [block for block in range(1, pool.num_blocks + 1) if block in pool.cache and not pool.owners(block)]
    for block in idle:
        pool.forget(block)
    return len(idle)


def make_scheduler(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 64,
    caching: bool = True,
    hash_mask: int = ALL_BITS,
    host_blocks: int = 0,
    disk_blocks: int = 0,
    groups: LayerGroups | None = None,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> Scheduler:
    """A scheduler over a small pool, with one end-of-sequence token; without look-ahead, so that preemptions happen."""
    config.setdefault("lookahead", 0)
    limits = SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, **config)
    tenants = Tenants(limits.tenants).configs
    manager = make_manager(
        num_blocks,
        block_size,
        max_num_seqs,
        caching=caching,
        hash_mask=hash_mask,
        host_blocks=host_blocks,
        disk_blocks=disk_blocks,
        groups=groups,
        max_chunk=max_num_batched_tokens,
        max_blocks_per_row=-(-max_model_len // block_size) if groups else None,
        floors=[tenant.floor for tenant in tenants],
        ceilings=[tenant.ceiling for tenant in tenants],
        pin_budget=int(num_blocks * limits.pin_ratio),
        clock=clock,
    )
    return Scheduler(limits, manager, max_model_len=max_model_len, vocab_size=VOCAB, eos_token_ids=[EOS], clock=clock)


def make_request(
    number: int = 0,
    prompt: list[int] | None = None,
    *,
    sampling: SamplingParams | None = None,
    limit: int = 10,
    key: int | None = None,
    **fields: Any,
) -> Request:
    """A request that no scheduler knows; ``fields`` are `Request`'s, or `SamplingParams`'."""
    own: dict[str, Any] = {"seed": 0, "tenant": Tenant("default", 0), "salt": "", "priority": 0, "arrival": 0.0}
    own |= {"pin_ttl": None, "unforked": 0}
    own |= {name: fields.pop(name) for name in list(fields) if name in own}
    tokens = np.array(prompt or [1, 2, 3], dtype=np.int32)
    key = number if key is None else key
    history = History(key, own["tenant"].name, len(tokens), own["arrival"])
    return Request(key, number, tokens, sampling or SamplingParams(**fields), limit, history=history, **own)


def greedy(max_tokens: int | None = 8, **values: Any) -> SamplingParams:
    """Parameters whose seed is fixed, so that the oracle's output is known."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **{"seed": 0, **values})


class OracleEngine:
    """Scheduler and oracle in a loop, checking every invariant after every step.

    Attributes:
        outputs: (key, index) → tokens so far.
        reasons: (key, index) → finish reason.
        failed_steps: Steps that were made to fail.
        lost_in: Steps in which something did not arrive on the device.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.runner = OracleRunner(scheduler, VOCAB)
        self.outputs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.reasons: dict[tuple[int, int], str] = {}
        self.cached: dict[tuple[int, int], int] = {}
        self.plans: list[StepPlan] = []
        self.failed_steps = 0
        self.lost_in = 0

    def add(
        self, key: int, prompt: list[int], sampling: SamplingParams | None = None, salt: str = "", **how: Any
    ) -> None:
        """Queues a request."""
        self.scheduler.add(key, prompt, sampling or greedy(), salt, **how)

    def step(self) -> StepPlan | None:
        """One step, verified."""
        plan = self.scheduler.schedule()
        if plan is not None:
            self.plans.append(plan)
            self.execute(plan)
        self.check()
        return plan

    def execute(self, plan: StepPlan) -> None:
        """Runs a plan and takes its results in."""
        if (left := self.transfer(plan)) is not None:
            self.take(self.scheduler.update(left, self.runner.execute(left)))

    def transfer(self, plan: StepPlan, arrives: Callable[[], bool] = lambda: True) -> StepPlan | None:
        """Runs a plan's transfers and returns what is left of the plan.

        Args:
            arrives: Whether the next transfer succeeds.
        """
        lost = self.runner.transfer(plan.transfers, arrives)
        if not lost:
            return plan
        left = self.scheduler.lose(plan, lost)
        self.lost_in += left is not plan
        return left

    def fail(self, plan: StepPlan, error: str = "boom") -> StepResult:
        """Has a plan's step fail."""
        self.failed_steps += 1
        result = self.scheduler.fail(plan, error)
        self.take(result)
        return result

    def take(self, result: StepResult) -> None:
        """Collects what a step gave out."""
        for stream, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            self.outputs[split_stream(stream)].append(token)
        for start in result.started:
            self.cached[split_stream(start.stream)] = start.cached_tokens
        for finished in result.finished:
            known = self.reasons.get(split_stream(finished.stream))
            # An error ends the whole request, and may be told for a sequence that has ended already.
            assert known is None or known != finished.reason == FinishReason.ERROR, "a sequence ended twice"
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
        problems = self.scheduler.check_integrity()
        assert not problems, problems
        counts = self.scheduler.manager.pool.counts
        assert counts.used + counts.cached + counts.free == counts.total
