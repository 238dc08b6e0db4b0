"""Stands for the model: verifies all KV with the oracle, takes its time, and fails when it is told to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from oracle import OracleRunner

from octavo.block_manager.tiers import Tier, Transfer, TransferOutcome
from octavo.scheduler.plan import Sampled, StepPlan
from octavo.scheduler.scheduler import Scheduler
from simulation.observe import observe_plan
from simulation.workload import origin

if TYPE_CHECKING:
    from simulation.world import World

_GARBAGE = -7


class Violation(BaseException):
    """The product did what it must not. Not an `Exception`, of which the engine survives every one in its steps."""


class Boom(Exception):
    """A step fails, because the simulation wants it to."""


class Oracle(OracleRunner):
    """A model to which equal tokens mean something else in another namespace, where nobody may find their KV."""

    def __init__(self, scheduler: Scheduler, vocab_size: int) -> None:
        super().__init__(scheduler, vocab_size)
        self._scheduler = scheduler

    def origin(self, row: int) -> int:
        request = self._scheduler.state.owner(row).request
        return origin(request.tenant.name, request.salt)


class Runner:
    """Stands for `ModelRunner`: verifies all KV with the oracle, and takes its time."""

    def __init__(self, world: World, scheduler: Scheduler, keys: dict[int, int]) -> None:
        self._world = world
        self._scheduler = scheduler
        self._keys = keys
        self._oracle = Oracle(scheduler, world.shape.vocab_size)
        self._moving: Transfer | None = None
        self.failed_steps = 0

    def transfer(self, transfers: tuple[Transfer, ...]) -> TransferOutcome:
        """Copies blocks between tiers."""
        if self._world.faults.strikes("transfers raise"):
            raise Boom("transfers")
        lost = self._oracle.transfer(self._watched(transfers), self._arrives)
        timings = self._world.shape.costs.timings(transfers)
        self._world.time.spent += sum(timing.seconds for timing in timings)
        self._world.log(f"transfer {len(transfers)}, lost {len(lost)}")
        return TransferOutcome(tuple(lost), tuple(timings))

    def execute(self, plan: StepPlan) -> Sampled:
        """Computes a step."""
        world = self._world
        seconds = world.shape.costs.of(plan) * world.chance.uniform(0.8, 1.3)
        if world.faults.strikes("step takes long"):
            seconds += world.faults.chance("step takes long").choice([1.0, 5.0, 80.0])
        world.time.spent += seconds
        observe_plan(world.seen, self._scheduler, plan)
        self._fail_perhaps(plan)
        try:
            sampled = self._oracle.execute(plan)
        except AssertionError as error:
            raise Violation(f"step {plan.number}: {error}") from error
        world.log(f"step {plan.number} rows {plan.rows.tolist()} {plan.query_lens.tolist()} {sampled.tokens.tolist()}")
        return sampled

    def _watched(self, transfers: Iterable[Transfer]) -> Iterator[Transfer]:
        for self._moving in transfers:
            yield self._moving

    def _arrives(self) -> bool:
        assert self._moving is not None
        if self._world.disasters.disk_down and Tier.DISK in (self._moving.source, self._moving.target):
            return False
        faults, upward = self._world.faults, self._moving.target is Tier.DEVICE
        return not (faults.strikes("transfer is lost") or (upward and faults.strikes("transfer to the device is lost")))

    def _fail_perhaps(self, plan: StepPlan) -> None:
        faults = self._world.faults
        members = [self._scheduler.state.owner(row).request.key for row in plan.rows.tolist()]
        fates = [self._world.fates[self._keys[key]] for key in members]
        poisoned = any(fate.poisoned for fate in fates)
        garbage = faults.strikes("step raises and leaves garbage")
        if not (poisoned or garbage or faults.strikes("step raises before anything was written")):
            return
        self.failed_steps += 1
        for fate in fates:
            fate.failed_steps += 1
            fate.failed_alone |= len(plan.rows) == 1
        if garbage:
            self._write_garbage(plan)
        raise Boom("step")

    def _write_garbage(self, plan: StepPlan) -> None:
        tables, size = self._scheduler.manager.tables, self._scheduler.manager.block_size
        for _, destination in plan.copies:
            self._oracle.kv[destination] = _GARBAGE
        for row, start, length in zip(plan.rows.tolist(), plan.starts.tolist(), plan.query_lens.tolist(), strict=True):
            for position in range(start, start + length):
                self._oracle.kv[tables.ids[row, position // size], position % size] = _GARBAGE
