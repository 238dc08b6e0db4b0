"""Clients: they send, read at their own pace, leave when they like, and come back when told to come later."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from simulation.answers import Answer
from simulation.transport import StreamingTransport
from simulation.workload import Demand

if TYPE_CHECKING:
    from simulation.world import World

_RETRIED = (429, 503)


@dataclass
class Fate:
    """What befell one sending of a request, beside what its client was told.

    Attributes:
        sent: When.
        gone: When the connection was closed, by whichever side.
        poisoned: Steps with it in them fail. failed_steps, failed_alone: those that did, with others and without.
        queue_full: The engine refused it.
        abort_asked, aborted: Somebody wanted to end it while it ran; and was told that it has ended.
        stalled: Seconds in which the client read nothing.
    """

    sent: float
    gone: float | None = None
    poisoned: bool = False
    failed_steps: int = 0
    failed_alone: bool = False
    queue_full: bool = False
    abort_asked: bool = False
    aborted: bool = False
    stalled: float = 0.0


class Client:
    """Whoever wants one demand met."""

    def __init__(self, world: World, demand: Demand) -> None:
        self._world = world
        self._demand = demand
        self._sending: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Sends the request, and again if it is refused for now."""
        await asyncio.sleep(max(0.0, self._world.began + self._demand.at - self._world.loop.time()))
        for attempt in range(1 + self._demand.patience):
            answer, retry_after = await self._send()
            if answer.status not in _RETRIED or answer.how != "complete":
                self._world.seen.note("refused, tried again, answered", attempt > 0 and answer.finished)
                return
            await asyncio.sleep(retry_after)

    def leave(self) -> None:
        """Leaves, wherever it stands."""
        if self._sending is not None:
            self._sending.cancel()

    async def _send(self) -> tuple[Answer, float]:
        world = self._world
        number = world.register()
        fate, answer, retry = world.fates[number], Answer(), [0.0]
        reader = Reader(world.faults.chance("client reads slowly"), fate)
        leaves = world.faults.strikes("client leaves")
        seconds = world.faults.chance("client leaves").uniform(0, 1.0) if leaves else None
        self._sending = asyncio.create_task(self._exchange(number, answer, reader, retry))
        aborting = [world.watched(self._abort(number))] if world.faults.strikes("request is aborted") else []
        await asyncio.wait({self._sending}, timeout=seconds)
        if not self._sending.done():
            self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        for task in aborting:
            task.cancel()
        if self._sending.cancelled():
            answer.how = "left"
        else:
            self._sending.result()
        self._sending = None
        world.judge(number, self._demand, answer)
        return answer, retry[0]

    async def _exchange(self, number: int, answer: Answer, reader: Reader, retry: list[float]) -> None:
        world, demand = self._world, self._demand
        body = {**demand.body, "cache_salt": f"{demand.body['cache_salt']}|{number}"}
        transport = StreamingTransport(world.app, reader.capacity, lambda: world.close(number))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://octavo", timeout=None, trust_env=False) as http,
            http.stream("POST", demand.path, json=body, headers={"x-request-id": _name(number)}) as response,
        ):
            answer.status = response.status_code
            retry[0] = float(response.headers.get("retry-after", 0))
            try:
                if response.headers["content-type"].startswith("text/event-stream"):
                    async for data in response.aiter_raw():
                        world.log(f"client {number} reads {data!r}")
                        answer.take_bytes(data)
                        await reader.pause(world)
                    answer.check_end()
                else:
                    data = await response.aread()
                    world.log(f"client {number} reads {data!r}")
                    answer.take_whole(data)
                answer.how = "complete"
            except httpx.RemoteProtocolError:
                answer.how = "cut"

    async def _abort(self, number: int) -> None:
        """Somebody ends the request at some time, if it runs then; from there on nobody works for it."""
        world = self._world
        await asyncio.sleep(world.faults.chance("request is aborted").uniform(0, 1.0))
        world.fates[number].abort_asked = True
        transport = StreamingTransport(world.app, 1_000_000)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://octavo", timeout=None, trust_env=False
        ) as http:
            response = await http.delete(f"/v1/requests/{_name(number)}")
        assert response.status_code in (200, 404), response.text
        if response.status_code == 200:
            world.fates[number].aborted = True
            world.close(number)


def _name(number: int) -> str:
    return f"sending-{number}"


class Reader:
    """How fast one client reads a stream.

    Attributes:
        capacity: Bytes that the connection holds for it.
    """

    def __init__(self, chance: random.Random, fate: Fate) -> None:
        self._chance = chance
        self._fate = fate
        self.capacity = chance.choice([400, 2_000, 64_000])
        self._pace = 0.0
        self._asked = False

    async def pause(self, world: World) -> None:
        """What it does between two events."""
        if not self._asked:
            self._asked = True
            slow = world.faults.strikes("client reads slowly")
            self._pace = self._chance.uniform(0.05, 1.5) if slow else 0.0
        seconds = self._pace
        if world.faults.strikes("client stops reading"):
            seconds = self._chance.choice([3.0, 20.0, 70.0])
        if seconds:
            self._fate.stalled += seconds
            await asyncio.sleep(seconds)
