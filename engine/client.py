"""What the front end talks to: `EngineClient`, and the engine in a process of its own behind it.

The engine's process is started, watched and, when it dies or falls silent, replaced:

    loading ──► ready ──► restarting ──► ready …          closing ──► stopped
                  │  ▲
                  ▼  │
            silent / stalled: alive on paper, but not breathing or not producing

Every open request of an engine that ended gets an `EngineDeadError`; none of them hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

import msgspec
import numpy as np

import octavo.errors
from octavo.config import EngineConfig, to_mapping
from octavo.engine.connection import EngineProcess
from octavo.engine.known import KnownRequests
from octavo.engine.messages import (
    TOKEN_BYTES,
    AbortRequests,
    AddPin,
    AddRequest,
    Answer,
    CheckIntegrity,
    DropPin,
    EndSequence,
    EngineInfo,
    EngineStats,
    FromEngine,
    IntegrityReport,
    ListPins,
    PinInfo,
    PinReport,
    Question,
    ReadBlock,
    ReadLive,
    ReadStory,
    Rejected,
    SequenceDelta,
    Start,
    StepOutput,
)
from octavo.engine.prepare import PreparedModel
from octavo.engine.streams import RequestStream
from octavo.engine.views import BlockView, LiveView, Story
from octavo.errors import AbortedError, EngineDeadError, EngineUnavailableError, NeverFitsError, OctavoError
from octavo.scheduler.streams import split_stream

AnswerT = TypeVar("AnswerT", IntegrityReport, PinReport, LiveView, BlockView, Story)

log = logging.getLogger(__name__)

# Heartbeats come five times a second. A second without one makes the engine "silent", which only costs readiness;
# `octavo.engine.connection` gives up on it much later, since a machine that swaps or sleeps recovers by itself.
SILENT_AFTER = 1.0
STALLED_AFTER = 60.0

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_HEALTHY_AFTER = 60.0


class EngineClient(Protocol):
    """An engine, wherever it runs. All methods belong to one event loop and none of them blocks it."""

    @property
    def info(self) -> EngineInfo:
        """What is being served; valid once `start` has returned."""

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""

    @property
    def ready(self) -> bool:
        """Loaded, alive, and making progress."""

    @property
    def status(self) -> str:
        """ "loading", "ready", "silent", "stalled", "restarting" or "stopped"."""

    @property
    def restarts(self) -> int:
        """Engines that ended and were replaced."""

    async def start(self, on_progress: Callable[[str], None] = lambda text: None) -> EngineInfo:
        """Starts the engine.

        Raises:
            SetupError: It cannot serve the model as configured.
        """

    def generate(self, request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        """Runs a request, yielding new tokens until each of its n sequences has a finish reason.

        Closing the iterator early aborts the request and frees its blocks.

        Raises:
            ClientError: Before the first item: the request is malformed or can never fit.
            CapacityError: Before the first item: the queue is full, or the engine is not up.
            EngineDeadError: At any time: the engine ended.
        """

    def end_sequence(self, request_id: str, index: int) -> None:
        """Ends one sequence of a running request, whose reader has seen enough; no more of it is yielded."""

    def abort(self, request_id: str) -> bool:
        """Ends a running request: its reader gets an `AbortedError` after what has arrived, its blocks are freed.

        Returns:
            False if there is no such request (any more).
        """

    async def check_integrity(self) -> list[str]:
        """Every invariant of the block pool that does not hold; an empty list is good news.

        Raises:
            EngineUnavailableError: The engine is not up; nor can any other question be answered then.
            EngineDeadError: It ended before it answered.
        """

    async def pin(self, prompt: bytes, ttl: float, *, tenant: str, cache_salt: str = "") -> PinInfo | None:
        """Keeps a prefix resident for ``ttl`` seconds; None if it is not cached: `generate` it with ``pin_ttl`` then.

        Raises:
            ClientError: The prefix fills no block, or more blocks than may ever be pinned.
            PinBudgetError: Other pins leave too little of the budget.
        """

    async def pins(self) -> list[PinInfo]:
        """The pins there are; the one that expires next comes first."""

    async def unpin(self, number: int) -> bool:
        """Lets a pin go; False if there is none of this number (any more)."""

    async def live(self, *, fresh: bool, most_cells: int) -> LiveView:
        """What the live map should show: all of it, or what has changed since the last call.

        Args:
            fresh: All of it. most_cells: of each tier; larger ones get several blocks to a cell.
        """

    async def block(self, tier: str, block: int) -> BlockView:
        """One block of a tier.

        Raises:
            NotFoundError: There is no such tier, or no such block in it.
        """

    async def story(self, request_id: str) -> Story | None:
        """What has happened to a request that runs, or was one of the last to end; None if nothing is known of it."""

    def request_of(self, key: int) -> str | None:
        """The id of the request that has this key in views, if it is open or was one of the last to end."""

    async def close(self) -> None:
        """Stops the engine."""


class ProcessEngineClient:
    """An `EngineClient` whose engine is a child process.

    Args:
        config: The engine's options. model: the prepared model.
        log_format, log_level: How the engine's process logs, see `octavo.logs.set_up`.
    """

    def __init__(
        self, config: EngineConfig, model: PreparedModel, *, log_format: str = "human", log_level: str = "warning"
    ) -> None:
        self._start = Start(to_mapping(config), str(model.folder), model.name, log_format, log_level)
        self._streams: dict[int, RequestStream] = {}
        self._known = KnownRequests()
        self._keys = itertools.count(1)
        self._tickets: dict[int, asyncio.Future[Answer]] = {}
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._status = "loading"
        self._restarts = 0
        self._engine: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._last_progress = time.monotonic()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailableError("the engine is still loading")
        return self._info

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    @property
    def status(self) -> str:
        if self._status != "ready" or self._engine is None:
            return self._status
        if self._engine.silence > SILENT_AFTER:
            return "silent"
        if self._waiting_for_engine and time.monotonic() - self._last_progress > STALLED_AFTER:
            return "stalled"
        return "ready"

    @property
    def restarts(self) -> int:
        return self._restarts

    @property
    def _waiting_for_engine(self) -> bool:
        """Whether a request is open that the engine has not finished; a slow reader alone does not count."""
        return any(not stream.done for stream in self._streams.values())

    @property
    def engine_pid(self) -> int | None:
        """The engine's process id while there is one."""
        return self._engine.pid if self._engine else None

    async def start(self, on_progress: Callable[[str], None] = lambda text: None) -> EngineInfo:
        info = await self._launch(on_progress)
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        return info

    async def generate(self, request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        engine = self._engine
        if engine is None or self._status != "ready":
            raise EngineUnavailableError(f"the engine is {self.status}; try again in a moment", retry_after=2.0)
        key = next(self._keys)
        stream = RequestStream(request.request_id, request.sampling.n, len(request.prompt) // TOKEN_BYTES)
        if not self._waiting_for_engine:
            self._last_progress = time.monotonic()
        try:
            self._streams[key] = stream
            self._known.begin(request.request_id, key)
            engine.send(msgspec.structs.replace(request, key=key))
            async for delta in stream.deltas():
                yield delta
        finally:
            del self._streams[key]
            self._known.end(request.request_id)
            if not stream.done:
                engine.send(AbortRequests([key]))

    def end_sequence(self, request_id: str, index: int) -> None:
        key = self._known.key_of(request_id)
        if key in self._streams and self._engine is not None and self._status == "ready":
            self._streams[key].drop(index)
            self._engine.send(EndSequence(key, index))

    def abort(self, request_id: str) -> bool:
        key = self._known.key_of(request_id)
        if key not in self._streams or self._streams[key].done or self._engine is None:
            return False
        self._engine.send(AbortRequests([key]))
        self._streams[key].fail(AbortedError("the request was aborted, as somebody asked for"))
        return True

    async def check_integrity(self) -> list[str]:
        return (await self._ask(CheckIntegrity(), IntegrityReport)).problems

    async def pin(self, prompt: bytes, ttl: float, *, tenant: str, cache_salt: str = "") -> PinInfo | None:
        report = await self._ask(AddPin(prompt, ttl, cache_salt, tenant), PinReport)
        return report.pins[0] if report.pins else None

    async def pins(self) -> list[PinInfo]:
        return (await self._ask(ListPins(), PinReport)).pins

    async def unpin(self, number: int) -> bool:
        return bool((await self._ask(DropPin(number), PinReport)).pins)

    async def live(self, *, fresh: bool, most_cells: int) -> LiveView:
        return await self._ask(ReadLive(fresh, most_cells), LiveView)

    async def block(self, tier: str, block: int) -> BlockView:
        return await self._ask(ReadBlock(tier, block), BlockView)

    async def story(self, request_id: str) -> Story | None:
        key = self._known.key_of(request_id)
        if key is None:
            return None
        story = await self._ask(ReadStory(key), Story)
        return story if story.known else None

    def request_of(self, key: int) -> str | None:
        return self._known.request_of(key)

    async def _ask(self, question: Question, kind: type[AnswerT]) -> AnswerT:
        """The engine's answer, which is of this kind."""
        if self._engine is None or self._status != "ready":
            raise EngineUnavailableError(f"the engine is {self.status}; try again in a moment", retry_after=2.0)
        ticket = next(self._keys)
        self._tickets[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._engine.send(msgspec.structs.replace(question, ticket=ticket))
            answer = await self._tickets[ticket]
        finally:
            del self._tickets[ticket]
        assert isinstance(answer, kind), f"{type(answer).__name__} is no answer to {type(question).__name__}"
        return answer

    async def close(self) -> None:
        self._status = "stopped"
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_open(EngineUnavailableError("the server is shutting down"))
        if self._engine is not None:
            await self._engine.close()

    # ── the engine's life ─────────────────────────────────────────────────────────────────────────────────

    async def _launch(self, on_progress: Callable[[str], None]) -> EngineInfo:
        self._engine = await EngineProcess.spawn(self._start)
        try:
            self._info = await self._engine.wait_ready(on_progress)
        except BaseException:
            await self._engine.close()
            self._engine = None
            raise
        self._status = "ready"
        return self._info

    async def _supervise(self) -> None:
        """Hands out what the engine says; replaces it when it ends."""
        backoff = _FIRST_BACKOFF
        while True:
            assert self._engine is not None
            born = time.monotonic()
            reason = await self._engine.listen(self._handle)
            self._status = "restarting"
            backoff = _FIRST_BACKOFF if time.monotonic() - born > _HEALTHY_AFTER else backoff
            log.error("the engine ended: %s; starting another in %.1f s", reason, backoff)
            self._fail_open(EngineDeadError(f"the engine ended while this request was running: {reason}"))
            await self._engine.close()
            backoff = await self._relaunch(backoff)

    async def _relaunch(self, backoff: float) -> float:
        """Starts engines until one is ready; returns the wait before the next attempt after that."""
        while True:
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)
            try:
                await self._launch(lambda text: None)
            except Exception as error:  # a full disk, no more processes: whatever it is, it may pass
                log.error("the engine did not start: %s; trying again in %.1f s", error, backoff)
            else:
                self._restarts += 1
                log.warning("the engine is back")
                return backoff

    def _fail_open(self, failure: OctavoError) -> None:
        for stream in self._streams.values():
            stream.fail(failure)
        for answer in self._tickets.values():
            if not answer.done():
                answer.set_exception(failure)

    # ── what the engine says ──────────────────────────────────────────────────────────────────────────────

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepOutput():
                self._handle_step(message)
            case Rejected():
                if stream := self._streams.get(message.key):
                    stream.fail(_rejection(message))
                elif answer := self._unanswered(message.key):
                    answer.set_exception(_rejection(message))
            case IntegrityReport() | PinReport() | LiveView() | BlockView() | Story():
                if answer := self._unanswered(message.ticket):
                    answer.set_result(message)

    def _handle_step(self, output: StepOutput) -> None:
        if output.streams or output.finished or (output.stats is not None and output.stats.steps != self._stats.steps):
            self._last_progress = time.monotonic()
        if output.stats is not None:
            self._stats = output.stats
        for start in output.started:
            if found := self._find(start.stream):
                found[0].start(found[1], start)
        for number in output.preempted:
            if found := self._find(number):
                found[0].give_way(found[1])
        self._take_extras(output)
        streams = np.frombuffer(output.streams, dtype=np.int64).tolist()
        tokens = np.frombuffer(output.tokens, dtype=np.int32).tolist()
        for number, token in zip(streams, tokens, strict=True):
            if found := self._find(number):
                found[0].push(found[1], token)
        for end in output.finished:
            if found := self._find(end.stream):
                found[0].end(found[1], end)

    def _take_extras(self, output: StepOutput) -> None:
        """What was asked for beside tokens; it comes before the tokens that it belongs to."""
        for scores in output.scores:
            if found := self._find(scores.stream):
                found[0].score(found[1], scores)
        for number, vector in output.embeddings:
            if found := self._find(number):
                found[0].embed(vector)
        for number, pin in output.pinned:
            if found := self._find(number):
                found[0].pin(pin)

    def _unanswered(self, ticket: int) -> asyncio.Future[Answer] | None:
        """Where the answer to a question is waited for; None if nobody does (any more)."""
        answer = self._tickets.get(ticket)
        return None if answer is None or answer.done() else answer

    def _find(self, number: int) -> tuple[RequestStream, int] | None:
        """The stream and index of a sequence; None if its reader has left."""
        key, index = split_stream(number)
        stream = self._streams.get(key)
        return (stream, index) if stream is not None else None


def _rejection(message: Rejected) -> OctavoError:
    kind = getattr(octavo.errors, message.kind)
    if kind is NeverFitsError:
        return NeverFitsError(message.message, largest=message.largest, param=message.param)
    if issubclass(kind, octavo.errors.ClientError):
        error: OctavoError = kind(message.message, param=message.param)
    elif issubclass(kind, octavo.errors.CapacityError):
        error = kind(message.message)
    else:
        error = octavo.errors.RequestFailedError(message.message)
    return error
