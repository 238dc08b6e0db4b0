"""The virtual clock: it jumps, it never stands still for ever, and nothing in the product looks past it."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import octavo
from simulation.clock import CLOCKED, NAMING
from simulation.loop import Stuck, VirtualLoop

# Modules that no simulated request gets to, or that are given another clock.
ELSEWHERE = {
    "octavo.block_manager.manager",  # takes a clock, as the next one does
    "octavo.block_manager.pool",
    "octavo.engine.host_link",  # copies tensors
    "octavo.engine.live",  # measures what looking costs; no simulated request is looked at
    "octavo.engine.machine",  # `octavo doctor` measures with it
    "octavo.scheduler.scheduler",  # takes a clock
    "octavo.server.chat.conversation",  # `octavo chat`
    "octavo.server.console",  # the start-up on a terminal
    "octavo.server.course",  # takes a clock, as the next four do, and tells the log
    "octavo.server.live.hub",
    "octavo.server.open_requests",
    "octavo.server.request_log",
    "octavo.server.stats_line",
    "octavo.server.routes.response_answer",  # no simulated request gets there
    "octavo.server.commands.top",  # `octavo top`, as the next one
    "octavo.server.top.client",
}
NAMES_ELSEWHERE = {
    "octavo.server.keys",  # makes them for `octavo key`
    "octavo.server.routes.messages",  # no simulated request gets to these two
    "octavo.server.routes.response_answer",
    "octavo.server.tools.formats",  # names calls; no simulated request has tools
}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def test_a_year_passes_at_once() -> None:
    async def sleep() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(asyncio.sleep(day * 86_400) for day in range(365)))
        return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    assert run(sleep()) == pytest.approx(364 * 86_400)
    assert time.monotonic() - began < 5.0


def test_what_was_due_during_a_pause_is_done_after_it() -> None:
    async def pause() -> list[str]:
        loop, said = asyncio.get_running_loop(), list[str]()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(5, said.append, "second")
        loop.call_later(2, said.append, "first")
        loop.pause(10)
        await asyncio.sleep(0.001)
        return said

    assert run(pause()) == ["first", "second"]


def test_a_deadlock_is_told() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="everybody waits"):
        run(wait())


def test_a_livelock_is_told() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="no time has passed"):
        run(spin())


def test_sets_of_tasks_and_futures_have_the_order_of_their_making() -> None:
    async def make() -> tuple[list[int], list[int]]:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(asyncio.sleep(0, number)) for number in range(40)]
        done, _ = await asyncio.wait(tasks)
        futures = [loop.create_future() for _ in range(40)]
        return [task.result() for task in done], [futures.index(future) for future in set(futures)]

    first, second = run(make()), run(make())
    assert first == second


def test_work_off_the_loop_takes_time_and_no_thread() -> None:
    async def work() -> tuple[int, float]:
        began = asyncio.get_running_loop().time()
        result = await asyncio.to_thread(lambda: 7)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return result, asyncio.get_running_loop().time() - began

    result, seconds = run(work())
    assert result == 7
    assert seconds > 0


def test_no_module_of_the_product_looks_at_another_clock() -> None:
    timed, named = set[str](), set[str]()
    root = Path(octavo.__file__).parent
    for package in ("block_manager", "scheduler", "engine", "server"):
        for file in (root / package).rglob("*.py"):
            module = ".".join(("octavo", *file.relative_to(root).with_suffix("").parts))
            imported = _imports(ast.parse(file.read_text()))
            timed |= {module} if imported & {"time", "datetime"} else set()
            named |= {module} if imported & {"uuid", "secrets"} else set()
    assert timed == {*CLOCKED, *ELSEWHERE}, "replace the clock in simulation.clock, or say here why not"
    assert named == {*NAMING, *NAMES_ELSEWHERE}, "replace what it draws in simulation.clock"


def _imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found
