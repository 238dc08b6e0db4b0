"""Runs one seed."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

from simulation.clock import virtual_time
from simulation.loop import VirtualLoop
from simulation.runner import Violation
from simulation.sometimes import Sometimes
from simulation.world import World


class Record(NamedTuple):
    """All that happened: the events, and a digest of them."""

    lines: list[str]
    digest: str


def simulate(seed: int, seen: Sometimes | None = None, lines: list[str] | None = None) -> Record:
    """Runs one seed.

    Args:
        seen: Notes the rare paths that were taken. lines: get the events, up to a violation if there is one.

    Raises:
        Violation: The product did what it must not.
    """
    lines = [] if lines is None else lines
    gc.disable()  # it would close abandoned generators at moments that depend on the runs before
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            loop: Any = runner.get_loop()
            with virtual_time(loop) as time:
                world = World(seed, loop, time, Sometimes() if seen is None else seen, lines)
                with _watched_logs(world):
                    runner.run(world.run())
    except (Exception, Violation) as error:
        raise Violation(f"seed {seed}, at {lines[-1].split()[0] if lines else 0}: {error}") from error
    finally:
        gc.enable()
    return Record(lines, sha256("\n".join(lines).encode()).hexdigest())


class _ErrorWatch(logging.Handler):
    """Errors that the product met, survived and logged, although nothing made them happen."""

    _EXPECTED = ("Boom", "the engine ended:", "the engine did not start:")

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "octavo.request":  # tells of answers, which clients judge
            return
        text = f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage()
        if not any(expected in text for expected in self._EXPECTED):
            self._world.violate(Violation(f"logged: {text}"))


@contextmanager
def _watched_logs(world: World) -> Iterator[None]:
    handler, loggers = _ErrorWatch(world), [logging.getLogger(name) for name in ("octavo", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
