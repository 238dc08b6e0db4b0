"""Bugs planted one at a time, each of which the simulation has to find.

That every bug still fits the source is checked always; looking for them takes minutes and is done with
OCTAVO_NIGHTLY=1.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from importlib import import_module
from typing import Any, NamedTuple

import pytest

from simulation.run import simulate
from simulation.runner import Violation
from simulation.sometimes import RARE, Sometimes

SEEDS = 75


class Bug(NamedTuple):
    """A bug: ``before`` occurs once in the function that ``where`` names."""

    name: str
    where: str
    before: str
    after: str = "pass"


BUGS = [
    # what lies between the client and the engine
    Bug(
        "a client that leaves is not aborted",
        "octavo.engine.client:ProcessEngineClient.generate",
        "engine.send(AbortRequests([key]))",
    ),
    Bug(
        "an abort does not reach the engine",
        "octavo.engine.client:ProcessEngineClient.abort",
        "self._engine.send(AbortRequests([key]))",
    ),
    Bug(
        "an abort is not told to whoever waits",
        "octavo.engine.client:ProcessEngineClient.abort",
        'self._streams[key].fail(AbortedError("the request was aborted, as somebody asked for"))',
    ),
    Bug(
        "nobody watches for clients that leave",
        "octavo.server.streaming:_disconnect",
        'while (await receive())["type"] != "http.disconnect":\n        pass',
        "await asyncio.Event().wait()",
    ),
    Bug(
        "streams are not told that their engine has died",
        "octavo.engine.client:ProcessEngineClient._supervise",
        'self._fail_open(EngineDeadError(f"the engine ended while this request was running: {reason}"))',
    ),
    Bug(
        "an engine that is being replaced counts as ready",
        "octavo.engine.client:ProcessEngineClient._supervise",
        'self._status = "restarting"',
    ),
    Bug(
        "silence goes unnoticed",
        "octavo.engine.connection:EngineProcess._watch_heart",
        "misses += 1",
    ),
    Bug(
        "tokens are lost when a slow reader has many to come",
        "octavo.engine.streams:RequestStream.push",
        "self._tokens[index].append(token)",
        "self._tokens[index] = [*self._tokens[index][-2:], token]",
    ),
    Bug(
        "steps without an end are not sent",
        "octavo.engine.process:EngineLoop._send_result",
        "if not due and not len(result.streams) and not result.finished and not result.scores:",
        "if not due and not result.finished:",
    ),
    Bug(
        "a full queue swallows the request",
        "octavo.engine.process:EngineLoop._add",
        "send(self._socket, _rejection(request.key, error))",
    ),
    Bug(
        "an error told for a sequence that has ended is not heard",
        "octavo.server.generation:Generation.run",
        ' and delta.finish_reason != "error":',
        ":",
    ),
    Bug(
        "text that was held back is not handed out at the end",
        "octavo.server.generation:Generation._decode",
        "text += sequence.flush()",
    ),
    Bug(
        "a stop string ends nothing in the engine",
        "octavo.server.generation:Generation.run",
        "client.end_sequence(self.request.request_id, delta.index)",
    ),
    Bug(
        "several prompts are not closed when the client leaves",
        "octavo.server.generation:merge",
        "closing.push_async_callback(stream.aclose)",
    ),
    Bug(
        "an error is followed by the end of a good stream",
        "octavo.server.streaming:EventStream._frames",
        "    else:\n        if self._dialect.done:\n            yield self._dialect.done",
        "    yield self._dialect.done",
    ),
    Bug(
        "slow readers are waited for",
        "octavo.server.streaming:EventStream._write",
        "asyncio.timeout(SLOW_READER_SECONDS)",
        "asyncio.timeout(None)",
    ),
    Bug(
        "open requests are not counted down",
        "octavo.server.lifecycle:Lifecycle.request",
        "self._open[tenant] -= 1",
        "self._open[tenant] -= self._open[tenant] > 1",
    ),
    # the engine
    Bug(
        "transfers that were lost count as done",
        "octavo.engine.core:EngineCore._execute",
        "self.scheduler.lose(plan, outcome.lost) if outcome.lost else plan",
        "plan",
    ),
    Bug(
        "a failed step fails nobody",
        "octavo.engine.core:EngineCore._execute",
        'return self.scheduler.fail(left, f"{type(error).__name__}: {error}")',
        "return StepResult()",
    ),
    Bug(
        "a failed step's blocks stay published",
        "octavo.scheduler.scheduler:Scheduler.fail",
        "self.manager.retract(sequence.row, int(self.rows.num_computed[sequence.row]))",
    ),
    Bug(
        "waiting sequences survive their abort",
        "octavo.scheduler.scheduler:Scheduler._finish",
        "self.state.waiting.remove(sequence)",
    ),
    Bug(
        "copies of swapped-out sequences are held for ever",
        "octavo.scheduler.state:State.drop_swapped",
        "self.manager.drop_swapped(sequence.swapped)",
    ),
    Bug(
        "salts share blocks",
        "octavo.block_manager.manager:BlockManager.match_prefix",
        "id_of((tenant, salt))",
        'id_of((tenant, ""))',
    ),
    Bug(
        "what is cheaper is not asked",
        "octavo.scheduler.preemption:Preemption._swap_out",
        'wanted == "auto" and',
        "False and",
    ),
]

nightly = pytest.mark.skipif(os.environ.get("OCTAVO_NIGHTLY") != "1", reason="takes minutes; set OCTAVO_NIGHTLY=1")
each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)


@each_bug
def test_the_bug_fits_the_source(bug: Bug) -> None:
    assert _source(bug).count(bug.before) == 1


@nightly
@each_bug
def test_the_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(bug, monkeypatch)
    seen = Sometimes()
    try:
        for seed in range(SEEDS):
            simulate(seed, seen)
    except Violation:
        return
    assert not all(seen[path] for path in RARE), "neither a violation nor a path that is not taken any more"


def _plant(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = _find(bug)
    scope = inspect.unwrap(getattr(owner, name)).__globals__
    source = "from __future__ import annotations\n" + _source(bug).replace(bug.before, bug.after)
    names: dict[str, Any] = {}
    exec(compile(source, bug.name, "exec"), scope, names)
    monkeypatch.setattr(owner, name, names[name])


def _source(bug: Bug) -> str:
    owner, name = _find(bug)
    return textwrap.dedent(inspect.getsource(getattr(owner, name)))


def _find(bug: Bug) -> tuple[Any, str]:
    """Who has the function as an attribute, and under which name."""
    module, _, path = bug.where.partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name
