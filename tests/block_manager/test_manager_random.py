"""BlockManager under random work without a scheduler, beside a model of what lies in every slot of every tier.

Sequences of two tenants and two salts share beginnings, fork, are swapped out, come back, are pinned, invalidated and
fail, in whatever order chance wants, and more wildly than a scheduler would have it. Each slot remembers for what
history, whose and when its KV was computed. So every read shows whether it was sent to the right slot, and nothing
that was computed before it was invalidated may ever be found again.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pytest
from blocks import Tokens, evict
from factories import make_manager

from octavo.block_manager.manager import BlockCopy, PrefixMatch, SwappedBlocks
from octavo.block_manager.tiers import Tier

SEEDS = 4_000 if os.environ.get("OCTAVO_NIGHTLY") == "1" else 240
STEPS = 40
NUM_ROWS = 5

EVENTS = (
    "hit",
    "fork",
    "copy on write",
    "merge",
    "swap out",
    "no room below",
    "swap in",
    "promotion from host",
    "promotion from disk",
    "own copies of something invalidated",
    "failed step",
    "pin",
    "renewed pin",
    "unpin",
    "invalidation",
    "stopped at its ceiling",
)


class Slot(NamedTuple):
    """KV of one position: for which tokens up to it, whose, and in which step it was computed."""

    history: tuple[int, ...]
    tenant: int
    salt: str
    step: int


class Invalidation(NamedTuple):
    """Forgets what was computed up to a step: all, of one salt, or from a prefix on."""

    step: int
    tenant: int
    salt: str | None
    prefix: tuple[int, ...]  # whole blocks; what is forgotten begins with the last one

    def forbids(self, slots: list[Slot]) -> bool:
        """Whether a full block that holds this must not be found any more."""
        last = slots[-1]
        mine = last.tenant == self.tenant and self.salt in (None, last.salt)
        # A prefix names full blocks: one that was half filled when it was invalidated was not meant yet.
        old = last.step <= self.step if self.prefix else any(slot.step <= self.step for slot in slots)
        return mine and old and last.history[: len(self.prefix)] == self.prefix


@dataclass(eq=False)
class Job:
    """A sequence."""

    tokens: list[int]
    tenant: int
    salt: str
    length: int
    computed: int = 0
    swapped: SwappedBlocks | None = None

    @property
    def array(self) -> Tokens:
        return np.array(self.tokens, dtype=np.int32)


@dataclass
class Step:
    """What is to be computed: row → end of its chunk."""

    ends: dict[int, int] = field(default_factory=dict)
    copies: list[BlockCopy] = field(default_factory=list)


class Work:
    """One seed's manager and sequences."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.size = rng.choice([1, 2, 3, 4])
        num_blocks = rng.choice([6, 10, 20])
        ceiling = rng.choice([None, None, num_blocks // 2])
        self.manager = make_manager(
            num_blocks,
            self.size,
            NUM_ROWS,
            caching=rng.random() < 0.9,
            host_blocks=rng.choice([0, 2, 5, 20]),
            disk_blocks=rng.choice([0, 3, 20]),
            floors=[0, rng.choice([0, 2])],
            ceilings=[None, ceiling],
            pin_budget=num_blocks // 3,
        )
        self.slots: dict[tuple[Tier, int], list[Slot | None]] = {}
        self.rows: dict[int, Job] = {}
        self.waiting: list[Job] = []
        self.invalidations: list[Invalidation] = []
        self.number = 0
        self.seen = Counter[str]()

    # ── between steps ─────────────────────────────────────────────────────────────────────────────────────

    def add(self) -> None:
        rng = self.rng
        tenant = rng.randrange(2)
        largest = self.manager.max_tokens(tenant)
        length = min(largest, rng.randint(2, 6 * self.size))
        if length > 1:
            prompt = [rng.choice([0, 0, 0, 1]) for _ in range(rng.randint(1, length - 1))]
            self.waiting.append(Job(prompt, tenant, rng.choice(["", "a"]), length))

    def leave(self) -> None:
        """A sequence ends, gives way and starts over, or gives way and is swapped out."""
        if not self.rows:
            return
        row = self.rng.choice(list(self.rows))
        job, how = self.rows[row], self.rng.choice(["end", "recompute", "swap", "swap"])
        if how == "swap" and job.computed:
            before = self.manager.tiers.room
            job.swapped = self.manager.swap_out(row, job.computed)
            self.seen["swap out" if job.swapped else "no room below"] += 1
            assert job.swapped or self.manager.tiers.room == before
        if how != "end":
            self.waiting.append(job)
        self.release(row)

    def release(self, row: int) -> None:
        self.manager.release(row)
        del self.rows[row]

    def give_up(self) -> None:
        """A waiting sequence ends."""
        if self.waiting:
            job = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            if job.swapped is not None:
                self.manager.drop_swapped(job.swapped)

    def known_tokens(self) -> tuple[Tokens, str, int]:
        """The beginning of some sequence."""
        jobs = [*self.rows.values(), *self.waiting]
        job = self.rng.choice(jobs or [Job([0] * 4 * self.size, 0, "", 0)])
        return job.array[: self.rng.randint(0, len(job.tokens))], job.salt, job.tenant

    def pin(self) -> None:
        tokens, salt, tenant = self.known_tokens()
        blocks, namespace = self.manager.find_pinnable(tokens, salt, tenant)
        idle = sum(self.manager.pool.owners(block) == 0 for block in blocks)
        if blocks and not self.manager.pins.missing(blocks) and idle <= self.manager.room(tenant):
            pins = len(self.manager.pins)
            self.manager.pin(blocks, namespace, tenant, self.rng.random())
            self.seen["pin" if len(self.manager.pins) > pins else "renewed pin"] += 1

    def unpin(self) -> None:
        if pins := self.manager.pins.listed():
            self.manager.unpin(self.rng.choice(pins))
            self.seen["unpin"] += 1

    def flush(self) -> None:
        """Everything idle is needed for something else."""
        evict(self.manager, self.rng.randint(0, self.manager.pool.available))

    def invalidate(self) -> None:
        tokens, salt, tenant = self.known_tokens()
        count = len(tokens) // self.size
        if self.rng.random() < 0.5:
            if not count:
                return
            prefix = tuple(tokens[: count * self.size].tolist())
            forgotten = self.manager.invalidate_prefix(tokens, salt, tenant)
            self.invalidations.append(Invalidation(self.number, tenant, salt, prefix))
        else:
            which = self.rng.choice([salt, None])
            forgotten = self.manager.invalidate_namespaces(tenant, which)
            self.invalidations.append(Invalidation(self.number, tenant, which, ()))
        self.seen["invalidation"] += forgotten > 0

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        actions = [self.leave, self.give_up, self.pin, self.unpin, self.flush]
        for action in self.rng.sample(actions, self.rng.randint(0, len(actions))):
            action()
        if self.rng.random() < 0.1:
            self.invalidate()
        self.check()
        self.number += 1
        step = Step()
        self.grow(step)
        self.admit(step)
        self.check()
        self.execute(step)
        self.check()

    def grow(self, step: Step) -> None:
        """Lets running sequences compute on."""
        manager = self.manager
        for row, job in self.rows.items():
            missing = len(job.tokens) - job.computed
            if missing == 1 and job.computed == manager.tables.lengths[row] * self.size:
                if not manager.room(job.tenant):
                    self.seen["stopped at its ceiling"] += manager.quota.at_ceiling(job.tenant, 1)
                    continue
                manager.grow([row])
            elif missing == 1:
                if manager.copies_needed([(row, job.computed)]) > manager.room(job.tenant):
                    continue
                copies = manager.make_writable(row, job.computed)
                step.copies += copies
                self.seen["copy on write"] += len(copies)
            self.compute(step, row)

    def compute(self, step: Step, row: int) -> None:
        job = self.rows[row]
        step.ends[row] = self.rng.randint(job.computed + 1, len(job.tokens))
        self.manager.publish(row, job.array, step.ends[row])

    def admit(self, step: Step) -> None:
        """Lets sequences in that fit."""
        for job in list(self.waiting):
            row = next((row for row in range(NUM_ROWS) if row not in self.rows), None)
            if row is None:
                return
            match = self.manager.match_prefix(job.array, job.salt, job.tenant, job.swapped)
            if self.manager.shortfall(match, len(job.tokens), 0, job.tenant) or self.rng.random() < 0.3:
                continue
            assert len(match.blocks) * self.size <= match.num_tokens < len(job.tokens)
            self.manager.reserve(row, match, job.array, job.tenant)
            self.waiting.remove(job)
            self.count_hits(match, job.swapped)
            self.seen["own copies of something invalidated"] += match.private
            if job.swapped is not None:
                self.manager.drop_swapped(job.swapped)
                job.swapped = None
            job.computed = match.num_tokens
            self.rows[row] = job
            self.compute(step, row)

    def count_hits(self, match: PrefixMatch, swapped: SwappedBlocks | None) -> None:
        self.seen["hit"] += len(match.blocks)
        if swapped is not None:
            self.seen["swap in"] += len(match.below)
        else:
            self.seen["promotion from host"] += sum(place.tier is Tier.HOST for place in match.below)
            self.seen["promotion from disk"] += sum(place.tier is Tier.DISK for place in match.below)

    def execute(self, step: Step) -> None:
        for source, source_block, target, target_block in self.manager.take_transfers():
            self.slots[target, target_block] = list(self.block(source, source_block))
        if step.ends and self.rng.random() < 0.1:
            self.fail(step)
            return
        for copy in step.copies:
            self.slots[Tier.DEVICE, copy.destination] = list(self.block(Tier.DEVICE, copy.source))
        writers: dict[int, int] = {}
        for row, end in step.ends.items():
            self.write(row, end, writers)
        for row, end in step.ends.items():
            self.read(row, end)
        self.take(step)

    def block(self, tier: Tier, block: int) -> list[Slot | None]:
        return self.slots.setdefault((tier, block), [None] * self.size)

    def write(self, row: int, end: int, writers: dict[int, int]) -> None:
        job = self.rows[row]
        for position in range(job.computed, end):
            block = int(self.manager.tables.ids[row, position // self.size])
            assert writers.setdefault(block, row) == row, f"block {block} has two writers"
            slot = Slot(tuple(job.tokens[: position + 1]), job.tenant, job.salt, self.number)
            self.block(Tier.DEVICE, block)[position % self.size] = slot

    def read(self, row: int, end: int) -> None:
        job = self.rows[row]
        for position in range(end):
            block = int(self.manager.tables.ids[row, position // self.size])
            slot = self.block(Tier.DEVICE, block)[position % self.size]
            assert slot is not None, f"row {row} position {position} was never computed"
            mine = (tuple(job.tokens[: position + 1]), job.tenant, job.salt)
            assert slot[:3] == mine, f"row {row} position {position}: {slot}"

    def take(self, step: Step) -> None:
        for row, end in step.ends.items():
            self.rows[row].computed = end
        for row in self.manager.rows_with_duplicates:
            self.seen["merge"] += 1
            self.manager.merge_duplicates(row, self.rows[row].array, self.rows[row].computed)
        assert not self.manager.rows_with_duplicates
        for row in step.ends:
            job = self.rows[row]
            if job.computed < len(job.tokens):
                continue
            if len(job.tokens) >= job.length:
                self.release(row)
                continue
            self.fork(row)
            job.tokens.append(self.rng.choice([0, 0, 1]))

    def fork(self, row: int) -> None:
        target = next((row for row in range(NUM_ROWS) if row not in self.rows), None)
        if target is not None and self.rng.random() < 0.2:
            job = self.rows[row]
            self.manager.fork(row, target)
            self.rows[target] = replace(job, tokens=[*job.tokens, self.rng.choice([0, 0, 1])])
            self.seen["fork"] += 1

    def fail(self, step: Step) -> None:
        """The step computes nothing; whoever was in it starts over."""
        for row in step.ends:
            self.manager.retract(row, self.rows[row].computed)
        self.manager.retract_orphans(list(step.ends))
        for row in step.ends:
            self.waiting.append(self.rows[row])
            self.release(row)
        self.seen["failed step"] += 1

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        manager = self.manager
        assert manager.check_integrity(job.swapped for job in self.waiting if job.swapped is not None) == []
        held = [set[int](), set[int]()]
        for row, job in self.rows.items():
            held[job.tenant].update(manager.tables.blocks(row))
        for pin in self.manager.pins.listed():
            held[pin.tenant].update(pin.blocks)
        assert manager.quota.used == [len(blocks) for blocks in held]

    def check_what_can_be_found(self) -> None:
        """Nothing that was invalidated is indexed in any tier, and all that is indexed is what its name says."""
        cache = self.manager.cache
        for block in range(1, self.manager.pool.num_blocks + 1):
            if block in cache:
                self.check_block(Tier.DEVICE, block, cache.content_of(block).digest)
        for tier in self.manager.tiers.existing:
            index = self.manager.tiers._levels[tier].cache
            for block in list(index._contents):
                self.check_block(tier, block, index.content_of(block).digest)

    def check_block(self, tier: Tier, block: int, digest: bytes) -> None:
        slots = [slot for slot in self.block(tier, block) if slot is not None]
        assert len(slots) == self.size, f"{tier.name} block {block} is indexed and was not computed"
        history = slots[-1].history
        assert [slot.history for slot in slots] == [history[: len(history) - i] for i in range(self.size - 1, -1, -1)]
        assert digest == self.digest(slots[-1]), f"{tier.name} block {block} holds {slots[-1]}"
        assert not any(event.forbids(slots) for event in self.invalidations), (
            f"{tier.name} block {block} was invalidated"
        )

    def digest(self, slot: Slot) -> bytes:
        content = self.manager.cache.content_of(self.manager.cache.namespaces.id_of((slot.tenant, slot.salt)))
        history = np.array(slot.history, dtype=np.int32)
        for start in range(0, len(history), self.size):
            content = content.followed_by(history[start : start + self.size].tobytes())
        return content.digest

    def run(self) -> None:
        for _ in range(STEPS):
            if self.rng.random() < 0.5:
                self.add()
            self.step()
            self.check_what_can_be_found()
        for row in list(self.rows):
            self.release(row)
        while self.waiting:
            self.give_up()
        while len(self.manager.pins):
            self.unpin()
        self.check()
        assert self.manager.pool.counts.used == 0
        assert all(self.manager.tiers.counts(tier).used == 0 for tier in self.manager.tiers.existing)


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What happened in all runs together."""
    return Counter[str]()


@pytest.mark.parametrize("chunk", range(10))
def test_every_slot_holds_what_is_read_from_it(chunk: int, seen: Counter[str]) -> None:
    for seed in range(chunk, SEEDS, 10):
        work = Work(seed)
        try:
            work.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        seen.update(work.seen)
    seen["runs"] += 1


@pytest.mark.parametrize("event", EVENTS)
def test_every_rare_path_was_taken(event: str, seen: Counter[str]) -> None:
    if seen["runs"] < 10:
        pytest.skip("needs all the runs above")
    assert seen[event] > 0
