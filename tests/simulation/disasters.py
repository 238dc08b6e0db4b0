"""What goes wrong at some time, whatever the parts are doing just then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simulation.runner import Violation

if TYPE_CHECKING:
    from simulation.world import World

# Within which everybody who waits for an engine that was killed is told.
_TOLD_WITHIN = 0.1

# A silent engine is not ready any more, and after a longer time given up.
_SILENT_AFTER = 2.0
_FATAL_SECONDS = 40.0


class Disasters:
    """Brings the faults of `simulation.faults.TIMED` about.

    Attributes:
        disk_down: Whether the disk tier is out of order.
        frozen_until: The engine's process does nothing before.
    """

    def __init__(self, world: World) -> None:
        self.disk_down = False
        self.frozen_until = 0.0
        self._world = world
        self._pauses: list[tuple[float, float]] = []
        self._troubles: list[tuple[float, float]] = []

    @property
    def last_pause(self) -> float:
        """When the clock went on after its latest pause."""
        return self._pauses[-1][1] if self._pauses else 0.0

    def paused_since(self, start: float) -> float:
        """Seconds that passed in pauses."""
        return sum(over - begun for begun, over in self._pauses if over > start)

    def had_trouble(self, start: float, end: float) -> bool:
        """Whether the engine was away, or the server stopping, in some time."""
        return any(begun <= end and start <= over for begun, over in self._troubles)

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """In this block the engine may be away."""
        began = self._world.loop.time()
        self._troubles.append((began, float("inf")))
        try:
            yield
        finally:
            self._troubles.remove((began, float("inf")))
            self._troubles.append((began, self._world.loop.time()))

    async def happen(self, site: str) -> None:
        """Lets a fault happen whenever its time has come."""
        acts: dict[str, Callable[[random.Random], Coroutine[Any, Any, None]]] = {
            "engine is killed": self._kill,
            "engine freezes": self._freeze,
            "clock pauses": self._pause,
            "disk is down": self._break_disk,
            "all clients leave": self._scatter,
        }
        world = self._world
        for moment in world.faults.moments(site, 1.5 * world.workload.seconds):
            await asyncio.sleep(max(0.0, world.began + moment - world.loop.time()))
            world.note_fault(site)
            await acts[site](world.faults.chance(site))

    async def _kill(self, chance: random.Random) -> None:
        world = self._world
        with self.trouble():
            waiting = dict(world.engine_client._streams)
            world.engine.process.kill()
            await asyncio.sleep(_TOLD_WITHIN)
            still = world.engine_client._streams
            if any(not stream.done and key in still for key, stream in waiting.items()):
                raise Violation("the engine is dead, and somebody still waits for it")
            await self._until_ready()

    async def _freeze(self, chance: random.Random) -> None:
        world = self._world
        engine = world.engine
        watched = engine.core is not None  # while an engine loads, nobody listens to its heart
        began, seconds = world.loop.time(), chance.choice([3.0, 8.0, _FATAL_SECONDS])
        self.frozen_until = began + seconds
        with self.trouble():
            while engine.process.returncode is None and world.loop.time() < self.frozen_until:
                silent = watched and world.loop.time() > began + _SILENT_AFTER
                if silent and engine is world.engine and world.engine_client.ready:
                    raise Violation("the engine is silent and counts as ready")
                await asyncio.sleep(0.5)
            self.frozen_until = world.loop.time()
            # Looks for a heartbeat are counted, and a pause is one look only.
            fatal = watched and seconds >= _FATAL_SECONDS and not self.paused_since(began)
            if fatal and engine.process.returncode is None:
                raise Violation(f"the engine was silent for {seconds:g} s and was not replaced")
            world.seen.note("silent engine was replaced", engine.process.returncode is not None)
            await self._until_ready()
        world.seen.note("silent engine came back", engine is world.engine)

    async def _until_ready(self) -> None:
        await asyncio.sleep(0.1)
        while not self._world.engine_client.ready:
            await asyncio.sleep(0.1)

    async def _pause(self, chance: random.Random) -> None:
        began = self._world.loop.time()
        with self.trouble():
            self._world.loop.pause(chance.uniform(0.1, 20.0))
        self._pauses.append((began, self._world.loop.time()))

    async def _break_disk(self, chance: random.Random) -> None:
        self.disk_down = True
        await asyncio.sleep(chance.uniform(0.1, 5.0))
        self.disk_down = False

    async def _scatter(self, chance: random.Random) -> None:
        world = self._world
        for demand in world.workload.storm(world.loop.time() - world.began):
            world.send(demand)
        await asyncio.sleep(chance.uniform(0, 0.05))
        world.scatter()
