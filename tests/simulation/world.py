"""One seed's world: an engine, a front end, clients, and what goes wrong between them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import tiny_tokenizer
from invariants import check_empty

from octavo.config import ServerConfig
from octavo.engine.client import ProcessEngineClient
from octavo.engine.connection import EngineProcess
from octavo.engine.messages import EngineInfo, Start
from octavo.engine.prepare import PreparedModel
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.lifecycle import Lifecycle
from simulation import verdict
from simulation.answers import Answer
from simulation.client import Client, Fate
from simulation.clock import VirtualTime
from simulation.disasters import Disasters
from simulation.engine import Engine
from simulation.faults import Faults
from simulation.loop import VirtualLoop
from simulation.pipes import Context, FrontSocket, Pipe
from simulation.probes import check_integrity, probe
from simulation.runner import Violation
from simulation.shape import Shape
from simulation.sometimes import Sometimes
from simulation.workload import Demand, Workload

# Nobody waits longer than that for an answer, whatever goes wrong: then something hangs.
_PATIENCE = 900.0

# The longest pin that anybody sets.
_PIN_SECONDS = 25.0

_EOS = (tiny_tokenizer.EOS_ID, *range(20, 400, 40))


@cache
def tokenizer() -> Tokenizer:
    """The tiny one."""
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer(tiny_tokenizer.write_tokenizer(Path(folder)))


class World:
    """Everything that one seed decides.

    Args:
        lines: Where events are noted.

    Attributes:
        shape, workload, faults: What was drawn. disasters: what goes wrong at some time.
        fates: What befell each sending of a request, by its number.
        seen: Rare paths that were taken.
        chance: For everything that has no chance of its own.
        began: When the first engine was ready.
    """

    def __init__(self, seed: int, loop: VirtualLoop, time: VirtualTime, seen: Sometimes, lines: list[str]) -> None:
        self.loop, self.time, self.seen = loop, time, seen
        self.chance = random.Random(f"{seed}/world")
        self.shape = Shape.draw(random.Random(f"{seed}/shape"), tokenizer().vocab_size, _EOS)
        spare = self.shape.scheduler(loop.time)
        limits = {tenant.name: spare.largest_request(tenant.name) for tenant in spare.state.tenants}
        self.workload = Workload(random.Random(f"{seed}/workload"), self.shape, tokenizer(), limits)
        self.faults = Faults(seed, self.note_fault)
        self.disasters = Disasters(self)
        self.fates: dict[int, Fate] = {}
        self.began = 0.0
        self._lines = lines
        self._engines: list[Engine] = []
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._broken: asyncio.Future[None] = loop.create_future()
        self.lifecycle = Lifecycle()
        self.engine_client = ProcessEngineClient(self.shape.config, PreparedModel(Path("simulated"), "tiny"))
        config = ServerConfig(allowed_hosts=("octavo",))
        self.app = build_app(self.engine_client, tokenizer(), config, model_name="tiny", lifecycle=self.lifecycle)

    # ── what its parts use ────────────────────────────────────────────────────────────────────────────────

    @property
    def engine(self) -> Engine:
        """The latest one."""
        return self._engines[-1]

    def log(self, text: str) -> None:
        """Notes an event."""
        self._lines.append(f"{self.loop.time():.9f} {text}")

    def note_fault(self, site: str) -> None:
        """Notes that something goes wrong."""
        self.log(f"fault: {site}")
        self.seen.note(site)

    def register(self) -> int:
        """A number for one more sending of a request."""
        number = len(self.fates)
        self.fates[number] = Fate(self.loop.time())
        return number

    def close(self, number: int) -> None:
        """A connection is closed."""
        if self.fates[number].gone is None:
            self.fates[number].gone = self.loop.time()

    def judge(self, number: int, demand: Demand, answer: Answer) -> None:
        """Checks an answer that has come to its end."""
        self.log(f"client {number} {answer.how} {answer.status} {answer.error}")
        try:
            verdict.judge(self, number, demand, answer)
        except AssertionError as error:
            raise Violation(f"client {number}: {error}") from error

    def info(self, name: str) -> EngineInfo:
        """What an engine says of itself."""
        return EngineInfo(
            model_name=name,
            vocab_size=self.shape.vocab_size,
            hidden_size=1,
            max_model_len=self.shape.max_model_len,
            eos_token_ids=list(self.shape.eos),
            block_size=self.shape.config.cache.block_size,
            num_blocks=self.shape.num_blocks,
            max_num_seqs=self.shape.config.scheduler.max_num_seqs,
            device="cpu",
            dtype="float32",
            attention_backend="oracle",
            report=[],
        )

    def watched(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose failure ends the run."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._watch)
        return task

    def violate(self, error: BaseException) -> None:
        """Ends the run."""
        if not self._broken.done():
            self._broken.set_exception(error)

    def send(self, demand: Demand) -> None:
        """Adds a client."""
        client = Client(self, demand)
        self._clients[self.watched(client.run())] = client

    def scatter(self) -> None:
        """Makes all clients leave."""
        for client in self._clients.values():
            client.leave()

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """From the engine's start to the server's end."""
        with mock.patch.object(EngineProcess, "spawn", self._spawn):
            running = self.watched(self._run(asyncio.current_task()))
            await asyncio.wait({running, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
            self._broken.cancel()

    async def _run(self, main: asyncio.Task[Any] | None) -> None:
        await self.engine_client.start()
        self.began = self.loop.time()
        for demand in self.workload.demands:
            self.send(demand)
        happening = [self.watched(self.disasters.happen(site)) for site in self.faults.times]
        background = [*happening, self.watched(probe(self)), self.watched(check_integrity(self))]
        if self.chance.random() < 0.2:
            await asyncio.sleep(self.workload.seconds)  # and stop while clients wait
        else:
            await asyncio.wait(happening)
            await self._all_answered()
            await self._settle()
        with self.disasters.trouble():
            await self._stop()
        await self._check_tasks(main, background)

    async def _all_answered(self) -> None:
        deadline = self.loop.time() + _PATIENCE
        while waiting := [task for task in self._clients if not task.done()]:
            await asyncio.wait(waiting, timeout=10.0)
            if self.loop.time() > deadline:
                raise Violation(f"{len(waiting)} clients have no answer after {_PATIENCE:g} s")

    async def _settle(self) -> None:
        """When all have their answer and nothing goes wrong any more, nothing may be left."""
        self.faults.stop()
        deadline = self.loop.time() + _PATIENCE
        await asyncio.sleep(1.0)  # until the last abort is known
        while not self.engine_client.ready or (core := self.engine.core) is None or core.has_work:
            await asyncio.sleep(1.0)
            if self.loop.time() > deadline:
                raise Violation("the engine never comes to rest")
        await asyncio.sleep(_PIN_SECONDS)
        core.scheduler.pinning.expire()
        try:
            check_empty(core.scheduler)
            for tier in core.scheduler.manager.tiers.existing:
                used = core.scheduler.manager.tiers.counts(tier).used
                assert used == 0, f"{used} {tier.name.lower()} blocks are held"
            assert self.lifecycle.open_requests == 0, "requests count as open"
            assert self.engine_client._streams == {}, "streams are open"
        except AssertionError as error:
            raise Violation(f"left behind: {error}") from error

    async def _stop(self) -> None:
        """As `octavo.server.serve.Server` does it."""
        self.lifecycle.stop()
        drained = await self.lifecycle.drain(self.chance.choice([0.0, 0.1, 60.0]))
        self.seen.note("drained" if drained else "stopped with streams open")
        await self.engine_client.close()
        self.faults.stop()
        await self._all_answered()

    async def _check_tasks(self, main: asyncio.Task[Any] | None, background: list[asyncio.Task[None]]) -> None:
        """Whatever was started for a request or an engine has ended."""
        for task in background:
            task.cancel()
        await asyncio.sleep(70.0)  # whatever waits for a timer would have woken up by then
        if left := asyncio.all_tasks() - {main, asyncio.current_task()}:
            raise Violation(f"tasks are left behind: {left}")

    async def _spawn(self, start: Start) -> EngineProcess:
        """`EngineProcess.spawn`, with an engine of ours at the other end."""
        chance = random.Random(self.chance.random())

        def latency() -> float:
            return chance.uniform(0, self.shape.latency)

        incoming, outgoing, alive = Pipe(latency), Pipe(latency), Pipe(latency)
        engine = Engine(self, len(self._engines) + 1, incoming, outgoing, alive)
        self._engines.append(engine)
        self.seen.note("engine replaced twice", len(self._engines) > 2)
        parts: Any = (engine.process, Path("/nowhere/simulated"), Context(incoming, outgoing, alive))
        sockets: Any = (FrontSocket(outgoing, incoming), FrontSocket(alive))
        process = EngineProcess(*parts, *sockets)
        process.send(start)
        return process

    def _watch(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violate(error)
