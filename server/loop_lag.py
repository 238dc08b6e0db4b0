"""How late the event loop is: what every stream waits for on top, whatever the engine does."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Histogram

_INTERVAL: Final = 0.25  # seconds


async def watch_loop(lag: Histogram) -> None:
    """Measures for ever by how much a timer is late, four times a second."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _INTERVAL
        await asyncio.sleep(_INTERVAL)
        lag.observe(max(0.0, loop.time() - due))
