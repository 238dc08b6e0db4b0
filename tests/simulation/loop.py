"""An event loop that never waits: when nothing is ready, its clock jumps to the next timer.

Nothing in it depends on the machine. There are no threads and no sockets, and tasks hash by their number, since code
under test that goes through a set of tasks would otherwise do so in the order of their addresses.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

# Turns without any time passing, after which the loop is taken for going round in circles.
_MOST_TURNS = 100_000

# Timers are a little late, as they are everywhere: code that computes how long to sleep may be an ulp short otherwise,
# and sleep again for no time at all.
_LATE = 1e-6

_OFF_LOOP_SECONDS = 0.002


class Stuck(AssertionError):
    """Everybody waits and nothing will ever happen again, or everybody runs and no time passes."""


class _NumberedFuture(asyncio.Future[Any]):
    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class _NumberedTask(asyncio.Task[Any]):
    def __init__(self, number: int, coro: Any, **options: Any) -> None:
        self.number = number  # before all else: tasks are put into sets when they are made
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs on virtual seconds, from 1,000 on."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1_000.0
        self._turns = 0
        self._numbers = itertools.count()
        self._clock_resolution = 1e-9
        self._selector = self  # whom `BaseEventLoop` asks to wait
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def pause(self, seconds: float) -> None:
        """Lets time pass while nobody runs, as when a machine sleeps: what was due meanwhile is due now."""
        self._now += seconds

    def select(self, timeout: float | None) -> list[Any]:
        """What waiting for sockets is to another loop."""
        if timeout is None:
            raise Stuck("everybody waits and no timer is set")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _MOST_TURNS:
            self._turns = 0  # for those who clean up
            raise Stuck(f"no time has passed for {_MOST_TURNS:,} turns of the loop")
        if timeout > 0:
            self._now += timeout + _LATE
        return []

    def create_future(self) -> asyncio.Future[Any]:
        return _NumberedFuture(next(self._numbers), self)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Runs the work at once and says a little later that it is done."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(_OFF_LOOP_SECONDS, _unless_done, future, future.set_exception, error)
        else:
            self.call_later(_OFF_LOOP_SECONDS, _unless_done, future, future.set_result, result)
        return future

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return _NumberedTask(next(self._numbers), coro, loop=loop, **options)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is nobody to wake: no other thread exists."""


def _unless_done(future: asyncio.Future[Any], finish: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        finish(value)
