"""Somebody looks after the server while it serves: health, readiness, metrics, and the engine's own integrity check."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx

from octavo.errors import CapacityError, EngineDeadError
from simulation.transport import StreamingTransport

if TYPE_CHECKING:
    from simulation.world import World

_EVERY = 10.0


async def probe(world: World) -> None:
    """Asks again and again; it is always answered, and at once, also while the engine is not."""
    transport = StreamingTransport(world.app, 1_000_000)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo", timeout=None, trust_env=False) as http:
        while True:
            began, was_ready = world.loop.time(), _is_ready(world)
            health, ready, metrics = [await http.get(path) for path in ("/health", "/ready", "/metrics")]
            assert world.loop.time() == began, "a probe had to wait"
            assert (health.status_code, metrics.status_code) == (200, 200)
            assert (ready.status_code == 200) in (was_ready, _is_ready(world))
            assert "octavo_exporter_errors_total 0.0" in metrics.text, "a metric could not be read"
            world.seen.note("stalled engine", world.engine_client.status == "stalled")
            world.log(f"probe {ready.status_code} {_readings(metrics.text)}")
            await asyncio.sleep(_EVERY)


async def check_integrity(world: World) -> None:
    """Asks the engine again and again whether all is well; that may have to wait for the end of a step."""
    while True:
        with contextlib.suppress(CapacityError, EngineDeadError):
            problems = await world.engine_client.check_integrity()
            assert problems == [], problems
        await asyncio.sleep(_EVERY)


def _readings(text: str) -> list[str]:
    """The values; without the times at which counters were made, which Prometheus' client takes from the real clock."""
    return [line for line in text.splitlines() if not line.startswith("#") and "_created" not in line]


def _is_ready(world: World) -> bool:
    return world.engine_client.ready and not world.lifecycle.stopping
