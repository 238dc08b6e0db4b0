"""How large one seed's engine is, by which policies it works, and how long things take in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.block_manager.manager import BlockManager
from octavo.block_manager.tiers import Tier, Tiers, Transfer, TransferTiming
from octavo.config import EngineConfig, TenantConfig
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.tenants import Tenants

TENANTS = ("default", "a")


@dataclass(frozen=True)
class Costs:
    """Seconds: per step, per prefill token, per decode, per (query, key) pair, per block copied to or from a tier."""

    step: float
    prefill: float
    decode: float
    pair: float
    block: dict[Tier, float]
    load: float

    @classmethod
    def draw(cls, rng: random.Random) -> Costs:
        """A machine: some compute faster than they copy, some the other way round."""
        host = 10 ** rng.uniform(-4.5, -1.5)
        return cls(
            step=10 ** rng.uniform(-3, -1.5),
            prefill=10 ** rng.uniform(-4, -2.5),
            decode=10 ** rng.uniform(-4, -3),
            pair=10 ** rng.uniform(-7, -5),
            block={Tier.HOST: host, Tier.DISK: host * rng.uniform(1, 5)},
            load=rng.uniform(0.1, 3),
        )

    def of(self, plan: StepPlan) -> float:
        """Of a step's computation."""
        lens, starts = plan.query_lens[plan.num_decodes :].astype(float), plan.starts[plan.num_decodes :]
        return float(
            self.step
            + self.decode * plan.num_decodes
            + self.prefill * lens.sum()
            + self.pair * (lens * starts + lens * (lens + 1) / 2).sum()
        )

    def timings(self, transfers: Sequence[Transfer]) -> list[TransferTiming]:
        """Of a step's transfers."""
        directions = Counter((transfer.source, transfer.target) for transfer in transfers)
        return [
            TransferTiming(source, target, count, count * self.block[max(source, target)])
            for (source, target), count in directions.items()
        ]


@dataclass(frozen=True)
class Shape:
    """One seed's engine.

    Attributes:
        latency: The longest that a message takes between front end and engine, in seconds.
    """

    config: EngineConfig
    num_blocks: int
    num_host_blocks: int
    num_disk_blocks: int
    vocab_size: int
    eos: tuple[int, ...]
    costs: Costs
    latency: float

    @classmethod
    def draw(cls, rng: random.Random, vocab_size: int, eos: tuple[int, ...]) -> Shape:
        """Small pools, so that everything is scarce."""
        block_size = rng.choice([2, 4, 8, 16])
        num_blocks = rng.randint(64, 256) // block_size + 1
        max_num_seqs = rng.choice([2, 4, 8, 8])
        return cls(
            config=EngineConfig.of(
                max_model_len=rng.choice([96, 128, 160]),
                block_size=block_size,
                prefix_caching=rng.random() < 0.9,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_seqs + rng.choice([4, 16, 64]),
                max_waiting=rng.choice([4, 16, 1024]),
                watermark_ratio=rng.choice([0.0, 0.0, 0.1]),
                lookahead=rng.choice([0, 0, 0, 16]),
                policy=rng.choice(["fcfs", "priority", "fair"]),
                prefer_cached=rng.random() < 0.3,
                preemption=rng.choice(["auto", "auto", "auto", "swap"]),
                max_preemptions=rng.choice([1, 1, 3]),
                pin_ratio=rng.choice([0.0, 0.25, 0.5]),
                tenants=_tenants(rng, num_blocks),
            ),
            num_blocks=num_blocks,
            num_host_blocks=rng.choice([0, 2, 4, num_blocks // 4, num_blocks]),
            num_disk_blocks=rng.choice([0, num_blocks // 2, 2 * num_blocks]),
            vocab_size=vocab_size,
            eos=eos,
            costs=Costs.draw(rng),
            latency=rng.choice([0.0002, 0.005, 0.05]),
        )

    @property
    def max_model_len(self) -> int:
        """The context window, in tokens."""
        assert self.config.model.max_model_len is not None
        return self.config.model.max_model_len

    def scheduler(self, clock: Any) -> Scheduler:
        """A scheduler over an empty pool, as `EngineCore.load` builds it."""
        limits, cache = self.config.scheduler, self.config.cache
        tenants = Tenants(limits.tenants).configs
        manager = BlockManager(
            num_blocks=self.num_blocks,
            block_size=cache.block_size,
            num_rows=limits.max_num_seqs,
            max_blocks_per_row=-(-self.max_model_len // cache.block_size),
            prefix_caching=cache.prefix_caching,
            tiers=Tiers(self.num_host_blocks, self.num_disk_blocks),
            floors=[tenant.floor for tenant in tenants],
            ceilings=[tenant.ceiling for tenant in tenants],
            pin_budget=int(self.num_blocks * limits.pin_ratio),
            clock=clock,
        )
        return Scheduler(
            limits,
            manager,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos,
            clock=clock,
        )


def _tenants(rng: random.Random, num_blocks: int) -> tuple[TenantConfig, ...]:
    ceiling = rng.choice([None, num_blocks // 2])
    floor = rng.choice([0, num_blocks // 4])
    return (TenantConfig(name="default"), TenantConfig(name="a", weight=2.0, floor=floor, ceiling=ceiling))
