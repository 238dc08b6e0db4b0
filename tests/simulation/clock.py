"""The one place where the product's own ideas of time and chance are replaced.

Modules of the front end and of the engine ask the modules `time` and `uuid` directly; scheduler and block manager are
given a clock. `tests/simulation/test_loop.py` checks that no module is forgotten.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

from octavo.server.protocol import GenerationRequest
from simulation.loop import VirtualLoop

# Modules that look at the clock while they serve.
CLOCKED = (
    "octavo.engine.chat_template",
    "octavo.engine.client",
    "octavo.engine.connection",
    "octavo.engine.core",
    "octavo.engine.meter",
    "octavo.engine.process",
    "octavo.server.lifecycle",
    "octavo.server.middleware",
    "octavo.server.protocol",
    "octavo.server.request_timer",
    "octavo.server.routes.answer",
    "octavo.server.service",
)
# Modules that draw identifiers.
NAMING = ("octavo.server.middleware", "octavo.server.routes.answer", "octavo.server.service")

_EPOCH = 1_700_000_000.0


class VirtualTime:
    """Stands for the modules `time` and `uuid`.

    Attributes:
        spent: Seconds that the engine's step has taken so far. A step is one call that nothing interrupts; to whoever
            looks at the clock inside of it time passes, and the engine sleeps for as long when it returns.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._names = itertools.count()
        self.spent = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self._loop.time() + self.spent

    def time(self) -> float:
        """Seconds since 1970."""
        return _EPOCH + self.monotonic()

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.time() * 1e9)

    def uuid4(self) -> uuid.UUID:
        """The next identifier."""
        return uuid.UUID(int=next(self._names))

    def take_spent(self) -> float:
        """What the step took; the next one starts at 0."""
        spent, self.spent = self.spent, 0.0
        return spent


@contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[VirtualTime]:
    """Lets the product run on the loop's clock."""
    now = VirtualTime(loop)
    with ExitStack() as patches:
        for names, attribute in ((CLOCKED, "time"), (NAMING, "uuid")):
            for name in names:
                patches.enter_context(mock.patch.object(import_module(name), attribute, now))
        # The field's default took hold of the function itself.
        arrival: Any = GenerationRequest.__private_attributes__["_arrival"]
        patches.enter_context(mock.patch.object(arrival, "default_factory", now.monotonic))
        yield now
