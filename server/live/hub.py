"""The hub of the live map: asks the engine for all viewers.

Engines tell changes since their last answer, whoever asked: there can be only one hub for an engine.

What looking costs is bounded: the next question comes so much later that neither the engine nor this process spends
more than `LIVE_SHARE` of its time on it. Nothing is asked, nor kept, while nobody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec

from octavo.engine.views import LiveView
from octavo.errors import EngineDeadError, EngineUnavailableError, TooManyRequestsError
from octavo.server.limits import (
    LIVE_CELLS,
    LIVE_INTERVAL_SECONDS,
    LIVE_SHARE,
    LIVE_STATUS_SECONDS,
    MAX_LIVE_BEHIND,
    MAX_LIVE_VIEWERS,
)
from octavo.server.live.messages import Frame, LiveMessage, totals_of
from octavo.server.live.picture import Picture

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

STOPPED: Final = "stopped"


def pause_after(engine_seconds: float, own_seconds: float) -> float:
    """Seconds between an answer and the next question, given what the answer cost the engine and this process."""
    return max(LIVE_INTERVAL_SECONDS, max(engine_seconds, own_seconds) / LIVE_SHARE)


class _Viewer:
    """What waits to be sent to one viewer.

    Attributes:
        lost: It does not know what came before: what it gets next is everything.
    """

    def __init__(self) -> None:
        self.lost = True
        self.waiting: deque[Frame] = deque()
        self.wake = asyncio.Event()

    def push(self, frame: Frame) -> None:
        """Something to send; a viewer that reads too slowly loses all of it and is told everything in its place."""
        if not self.lost:
            self.waiting.append(frame)
            if len(self.waiting) > MAX_LIVE_BEHIND:
                self.lose()
        self.wake.set()

    def lose(self) -> None:
        self.waiting.clear()
        self.lost = True
        self.wake.set()


class LiveHub:
    """Tells viewers what the engine shows.

    Args:
        client: The engine. name_of: what to call the request that has a key; by default its id there.
        most_viewers: So many may look at a time.
        clock: Seconds. sleep: as `asyncio.sleep`.
    """

    def __init__(
        self,
        client: EngineClient,
        name_of: Callable[[int], str | None] | None = None,
        *,
        most_viewers: int = MAX_LIVE_VIEWERS,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._name_of = name_of or client.request_of
        self._most_viewers = most_viewers
        self._clock = clock
        self._sleep = sleep
        self._viewers: set[_Viewer] = set()
        self._polling: asyncio.Task[None] | None = None
        self._forget()

    @property
    def num_viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    async def watch(self) -> AsyncGenerator[msgspec.Struct, None]:
        """Everything, and then what changes, until the server stops.

        Raises:
            TooManyRequestsError: As many look already as may.
        """
        if len(self._viewers) >= self._most_viewers:
            raise TooManyRequestsError(
                f"{self._most_viewers} viewers look at the live map already, the most there may be"
            )
        viewer = _Viewer()
        self._viewers.add(viewer)
        if self._polling is None:
            self._forget()
            self._polling = asyncio.create_task(self._poll(), name="live map")
        try:
            while (frame := await self._next(viewer, self._polling)) is not None:
                yield frame
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._polling is not None:
                self._polling.cancel()
                self._polling = None
                self._forget()

    def _forget(self) -> None:
        self._picture = Picture()
        self._whole: Frame | None = None
        self._status = ""
        self._own_seconds = 0.0  # since the last answer

    async def _next(self, viewer: _Viewer, polling: asyncio.Task[None]) -> Frame | None:
        """What this viewer gets next; None after the last."""
        while True:
            if viewer.lost and not self._picture.empty:
                viewer.lost = False
                return self._everything()
            if viewer.waiting:
                return viewer.waiting.popleft()
            if viewer.lost and self._status:
                viewer.lost = False
                return self._say_status()
            if polling.done():
                # The server stops; or what has ended this is a mistake of ours, which its viewers are told as one.
                polling.result()
                return None
            await viewer.wake.wait()
            viewer.wake.clear()

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────

    async def _poll(self) -> None:
        try:
            await self._poll_until_stopped()
        finally:
            for viewer in self._viewers:
                # By a callback: this task is done by then.
                asyncio.get_running_loop().call_soon(viewer.wake.set)

    async def _poll_until_stopped(self) -> None:
        fresh = True
        while self._client.status != STOPPED:
            cost = 0.0
            try:
                view = await self._answer(self._client.live(fresh=fresh, most_cells=LIVE_CELLS))
            except (EngineUnavailableError, EngineDeadError):
                self._picture, self._whole, fresh = Picture(), None, True
                self._tell_status()
            else:
                cost, fresh = view.cost, not (fresh or self._picture.fits(view, self._client.restarts))
                if fresh:
                    self._picture, self._whole = Picture(), None
                else:
                    self._tell(view)
            await self._rest(cost)
        self._tell_status()

    async def _answer(self, question: Coroutine[Any, Any, LiveView]) -> LiveView:
        """The engine's answer, with word to the viewers of what keeps it from answering meanwhile."""
        asked = asyncio.ensure_future(question)
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=LIVE_STATUS_SECONDS)
                self._tell_status()
            return asked.result()
        finally:
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asked

    async def _rest(self, cost: float) -> None:
        """Waits until the next question may be asked."""
        answered = self._clock()
        while self._client.status != STOPPED:
            # Anew each time: somebody who joins meanwhile adds to what was spent.
            left = answered + pause_after(cost, self._own_seconds) - self._clock()
            if left <= 0:
                break
            await self._sleep(min(left, LIVE_STATUS_SECONDS))
            self._tell_status()
        self._own_seconds = 0.0

    # ── telling ───────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, view: LiveView) -> None:
        began = self._clock()
        self._status = self._client.status
        first = self._picture.empty
        message = self._picture.change(self._message(view))
        self._whole = None
        self._own_seconds += self._clock() - began
        if first:
            for viewer in self._viewers:
                viewer.lose()
        else:
            self._push(self._encoded(message))

    def _message(self, view: LiveView) -> LiveMessage:
        keys = {row.key for row in view.running}
        keys |= {key for row in view.waiting for key in (row.key, row.behind)}
        keys |= {key for row in view.preemptions for key in (row.victim, row.beneficiary)}
        names = {key: self._name_of(key) for key in keys}
        return LiveMessage(
            kind="changes",
            status=self._client.status,
            engine=self._client.restarts,
            seconds=self._clock(),
            interval=pause_after(view.cost, self._own_seconds),
            steps=view.steps,
            tiers=view.tiers,
            running=view.running,
            num_running=view.num_running,
            waiting=view.waiting,
            num_waiting=view.num_waiting,
            preemptions=view.preemptions,
            names={key: name for key, name in names.items() if name is not None},
            totals=totals_of(self._client.stats),
        )

    def _tell_status(self) -> None:
        """Tells the engine's status if it is another than before."""
        if self._client.status != self._status:
            self._status, self._whole = self._client.status, None
            self._push(self._say_status())

    def _push(self, frame: Frame) -> None:
        for viewer in self._viewers:
            viewer.push(frame)

    def _say_status(self) -> Frame:
        return self._encoded(LiveMessage("status", self._status, self._client.restarts, self._clock()))

    def _everything(self) -> Frame:
        """The whole state; made once for all who need it before the next answer."""
        if self._whole is None:
            self._whole = self._encoded(self._picture.whole(self._status))
        return self._whole

    def _encoded(self, message: LiveMessage) -> Frame:
        began = self._clock()
        frame = Frame(b"data: " + msgspec.json.encode(message) + b"\n\n")
        self._own_seconds += self._clock() - began
        return frame
