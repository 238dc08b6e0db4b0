"""What runs in the engine's process: the real core and loop, over the oracle."""

from __future__ import annotations

import asyncio
import random
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from factories import OracleEngine
from invariants import check_all

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.config import EngineConfig
from octavo.engine.client import STALLED_AFTER
from octavo.engine.core import EngineCore
from octavo.engine.grammar_compiler import GrammarTokenizer
from octavo.engine.grammars import Grammars
from octavo.engine.messages import AddRequest, EngineInfo, Heartbeat, Start, StartFailed
from octavo.engine.process import EngineLoop
from octavo.errors import ClientError, PinBudgetError, QueueFullError
from octavo.scheduler.request import Request
from octavo.scheduler.scheduler import Scheduler
from simulation.observe import observe_engine
from simulation.pipes import EngineSocket, Pipe, Process, WouldBlock
from simulation.runner import Runner, Violation

if TYPE_CHECKING:
    from simulation.world import World

# Less often than in production, which only costs time; still often enough not to seem silent.
_HEARTBEAT_SECONDS = 0.5


class Core(EngineCore):
    """The engine's core. It knows the clients' requests by the number that they hide in their salt.

    HTTP names no tenant yet, so the salt does that as well: ``tenant|salt|number``.
    """

    def __init__(self, world: World, info: EngineInfo) -> None:
        self.world = world
        self.keys: dict[int, int] = {}  # the engine's key of a request → the client's number for it
        scheduler = world.shape.scheduler(world.time.monotonic)
        runner: Any = Runner(world, scheduler, self.keys)
        # No simulated request has a grammar, which would need a tokenizer.
        super().__init__(info, scheduler, runner, Grammars(scheduler.rows, GrammarTokenizer(Path("none"), 0, ())))
        self._audit = OracleEngine(scheduler)

    def add(self, request: AddRequest) -> None:
        tenant, salt, number = request.cache_salt.split("|")
        self.keys[request.key] = int(number)
        fate = self.world.fates[int(number)]
        try:
            super().add(msgspec.structs.replace(request, tenant=tenant, cache_salt=salt))
        except QueueFullError:
            fate.queue_full = True
            raise
        fate.poisoned |= self.world.faults.strikes("request poisons its steps")

    def end_sequence(self, key: int, index: int) -> None:
        self.world.seen.note("one of several ended by its reader", key in self.scheduler.state.requests)
        super().end_sequence(key, index)

    def audit(self) -> None:
        """Every invariant."""
        self._audit.failed_steps = self.runner.failed_steps  # type: ignore[attr-defined]
        try:
            check_all(self._audit)
        except AssertionError as error:
            raise Violation(f"after step {self.scheduler.counters.steps}: {error}") from error

    def check_orphans(self) -> None:
        """Nobody works for a client that has left longer ago than it takes to say so."""
        for key in self.scheduler.state.requests:
            gone = self.world.fates[self.keys[key]].gone
            if gone is None:
                continue
            told = max(gone, self.world.disasters.last_pause) + self.world.shape.latency + 1e-5
            if self.world.loop.time() > told:
                raise Violation(f"request {self.keys[key]} still runs, and its client left at {gone:.4f}")

    def operate(self) -> None:
        """Somebody pins or invalidates between two steps, perhaps: what a running request began with."""
        running = [sequence.request for sequence in self.scheduler.state.running]
        if running and self.world.faults.strikes("operator pins"):
            self._pin(self.world.faults.chance("operator pins"), running)
        if running and self.world.faults.strikes("operator invalidates"):
            chance = self.world.faults.chance("operator invalidates")
            request = chance.choice(running)
            tokens = chance.choice([None, request.prompt.tolist()])
            forgotten = self.scheduler.invalidate(tenant=request.tenant.name, salt=request.salt, tokens=tokens)
            self.world.seen.note("invalidation", forgotten)

    def _pin(self, chance: random.Random, running: list[Request]) -> None:
        request = chance.choice(running)
        tokens, ttl = request.prompt[: chance.choice([10, 40])], chance.choice([1.0, 20.0])
        try:
            pin = self.scheduler.pin(tokens, ttl, tenant=request.tenant.name, salt=request.salt)
        except (ClientError, PinBudgetError):
            pin = None
        self.world.seen.note("pin", pin is not None)


class Engine:
    """One engine process, from its start to its end.

    Args:
        number: Of the engines started so far, this one included.

    Attributes:
        core: Once it is loaded.
    """

    def __init__(self, world: World, number: int, incoming: Pipe, outgoing: Pipe, alive: Pipe) -> None:
        self.core: Core | None = None
        self.process = Process(number, self._end)
        self._world = world
        self._number = number
        self._incoming, self._outgoing, self._alive = incoming, outgoing, alive
        self._tasks = [world.watched(self._run()), world.watched(self._beat())]

    def _end(self) -> None:
        self._world.log(f"engine {self._number} ended: {self.process.returncode}")
        for task in self._tasks:
            task.cancel()
        if self.core is not None:
            observe_engine(self._world.seen, self.core.scheduler)

    async def _run(self) -> None:
        await self._incoming.news()
        start = msgspec.msgpack.decode(self._incoming.take(), type=Start)
        assert EngineConfig.of(**start.options) == self._world.shape.config, "the options changed on their way"
        await asyncio.sleep(self._world.shape.costs.load)
        await self._thaw()
        if self._number > 1 and self._world.faults.strikes("engine does not start"):
            self._outgoing.send(msgspec.msgpack.encode(StartFailed("MemoryTooSmallError", "something else took it")))
            self.process.exit(1)
            return
        self.core = Core(self._world, self._world.info(start.name))
        self._measure_transfers(self.core.scheduler)
        self._outgoing.send(msgspec.msgpack.encode(self.core.info))
        await self._serve(self.core)
        self.process.exit(0)

    def _measure_transfers(self, scheduler: Scheduler) -> None:
        for tier in scheduler.manager.tiers.existing:
            for direction in ((Tier.DEVICE, tier), (tier, Tier.DEVICE)):
                timing = TransferTiming(*direction, 1, self._world.shape.costs.block[tier])
                scheduler.state.costs.observe_transfer(timing)

    async def _serve(self, core: Core) -> None:
        """`EngineLoop.run`, which cannot be used as it is: it blocks while it waits and while a step runs."""
        loop = EngineLoop(core, EngineSocket(self._incoming, self._outgoing))  # type: ignore[arg-type]
        while not loop._stopping:
            await self._thaw()
            try:
                loop._take_messages()
            except WouldBlock:
                await self._incoming.news()
                continue
            if not loop._stopping:
                core.check_orphans()
            core.operate()
            if core.has_work:
                steps = core.scheduler.counters.steps
                result = core.step()
                if core.scheduler.counters.steps == steps:
                    raise Violation("work waits and nothing can run")
                core.audit()
                await self._pass_time()
                await self._thaw()
                loop._send_result(result)

    async def _pass_time(self) -> None:
        """As long as the step took. If that was long, the engine is alive and counts as stalled in the end."""
        seconds = self._world.time.take_spent()
        with self._world.disasters.trouble() if seconds > STALLED_AFTER else nullcontext():
            await asyncio.sleep(seconds)

    async def _beat(self) -> None:
        beats = 0
        while True:
            await self._thaw()
            beats += 1
            self._alive.send(msgspec.msgpack.encode(Heartbeat(beats)))
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _thaw(self) -> None:
        while (frozen := self._world.disasters.frozen_until - self._world.loop.time()) > 0:
            await asyncio.sleep(frozen)
