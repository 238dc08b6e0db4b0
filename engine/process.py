"""The engine process: a core behind a socket.

    python -m octavo.engine.process ENDPOINT PARENT_PID

The front end binds two Unix sockets. On ENDPOINT it sends `Start` and then `ToEngine` messages, and gets
`FromEngine` messages; on ENDPOINT.alive a thread of this process says several times a second that it is alive, also
while a long step runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import zmq

from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import (
    ALIVE_SUFFIX,
    AbortRequests,
    AddRequest,
    EndSequence,
    FromEngine,
    Heartbeat,
    LoadProgress,
    Question,
    Rejected,
    Shutdown,
    Start,
    StartFailed,
    StepOutput,
    StreamEnd,
    StreamStart,
    ToEngine,
)
from octavo.engine.questions import answer
from octavo.engine.scores import packed_scores
from octavo.errors import CapacityError, ClientError, NeverFitsError, SetupError
from octavo.logs import set_up
from octavo.scheduler.plan import StepResult
from octavo.scheduler.sampling import SamplingParams

log = logging.getLogger("octavo.engine.process")  # where this module is run, its own name is __main__

HEARTBEAT_SECONDS = 0.2
PROCESS = "engine"
_COMPILE_POLL_MS = 2
STATS_SECONDS = 0.1


class EngineLoop:
    """Takes messages between steps, and sends what the steps produce.

    Args:
        core: The engine. socket: the connected message socket.
    """

    def __init__(self, core: EngineCore, socket: zmq.Socket[bytes]) -> None:
        self._core = core
        self._socket = socket
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._stopping = False
        # By key, until their grammars are ready.
        self._compiling: dict[int, tuple[AddRequest, Future[None]]] = {}
        self._next_stats = 0.0

    def run(self) -> None:
        """Works until a `Shutdown` comes."""
        while not self._stopping:
            self._take_messages()
            if self._core.has_work:
                self._send_result(self._core.step())

    def _take_messages(self) -> None:
        if not self._core.has_work and not self._compiling:
            self._send_stats()
            self._socket.poll()  # nothing to do until somebody wants something
        while self._socket.poll(_COMPILE_POLL_MS if self._compiling and not self._core.has_work else 0):
            self._handle(self._decoder.decode(self._socket.recv()))
        for key in [key for key, (_, compiled) in self._compiling.items() if compiled.done()]:
            self._add(*self._compiling.pop(key))

    def _handle(self, message: ToEngine) -> None:
        match message:
            case AddRequest(sampling=SamplingParams(grammar=str(grammar))):
                self._compiling[message.key] = message, self._core.grammars.prepare(grammar)
            case AddRequest():
                self._add(message)
            case AbortRequests():
                waiting = [key for key in message.keys if self._compiling.pop(key, None) is not None]
                self._core.abort(key for key in message.keys if key not in waiting)
            case EndSequence():
                self._core.end_sequence(message.key, message.index)
            case Shutdown():
                self._stopping = True
            case _:
                self._answer(message)

    def _add(self, request: AddRequest, compiled: Future[None] | None = None) -> None:
        try:
            if compiled is not None:
                compiled.result()
            self._core.add(request)
        except Exception as error:  # one request may never end the engine
            send(self._socket, _rejection(request.key, error))

    def _answer(self, question: Question) -> None:
        try:
            send(self._socket, answer(self._core, question))
        except Exception as error:
            send(self._socket, _rejection(question.ticket, error))

    def _send_result(self, result: StepResult) -> None:
        now = time.monotonic()
        due = now >= self._next_stats
        if not due and not len(result.streams) and not result.finished and not result.scores:
            return
        send(
            self._socket,
            StepOutput(
                streams=result.streams.tobytes(),
                tokens=result.tokens.tobytes(),
                started=[StreamStart(*start) for start in result.started],
                finished=[StreamEnd(f.stream, str(f.reason), f.stop_token_id, f.error) for f in result.finished],
                preempted=list(result.preempted),
                stats=self._core.stats() if due else None,
                scores=[packed_scores(scores) for scores in result.scores],
                embeddings=[(embedding.stream, embedding.vector.tobytes()) for embedding in result.embeddings],
                pinned=list(result.pinned),
            ),
        )
        if due:
            self._next_stats = now + STATS_SECONDS

    def _send_stats(self) -> None:
        """Before going idle: the state that will stay true until the next request."""
        send(self._socket, StepOutput(b"", b"", [], [], stats=self._core.stats()))


class _Heart(threading.Thread):
    """Tells the front end that this process gets to run, and ends it when the front end is gone."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, parent: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._context = context
        self._endpoint = endpoint
        self._parent = parent  # told, not asked for: it may have ended while this process was importing

    def run(self) -> None:
        socket = self._context.socket(zmq.PUSH)
        socket.linger = 0
        socket.connect(self._endpoint + ALIVE_SUFFIX)
        beats = 0
        while os.getppid() == self._parent:
            beats += 1
            with contextlib.suppress(zmq.Again):  # nobody has read for long; the check below must go on
                socket.send(msgspec.msgpack.encode(Heartbeat(beats)), zmq.NOBLOCK)
            time.sleep(HEARTBEAT_SECONDS)
        os._exit(1)  # orphaned: nobody will ever ask for anything again


def _rejection(key: int, error: Exception) -> Rejected:
    """Tells why a request or a question came to nothing; what nobody raised on purpose is logged."""
    if not isinstance(error, ClientError | CapacityError):
        log.error("message %d could not be handled", key, exc_info=error)
        return Rejected(key, "RequestFailedError", f"{type(error).__name__}: {error}")
    largest = error.largest if isinstance(error, NeverFitsError) else 0
    param = error.param if isinstance(error, ClientError) else None
    return Rejected(key, type(error).__name__, str(error), param, largest)


def send(socket: zmq.Socket[bytes], message: FromEngine) -> None:
    """Encodes and sends one message."""
    socket.send(msgspec.msgpack.encode(message))


def main(endpoint: str, parent: int) -> int:
    """Serves one front end; returns the exit status."""
    set_up("human", "warning", PROCESS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.connect(endpoint)
    _Heart(context, endpoint, parent).start()
    start = msgspec.msgpack.decode(socket.recv(), type=Start)
    set_up(start.log_format, start.log_level, PROCESS)
    try:
        core = _load(start, lambda text: send(socket, LoadProgress(text)))
    except SetupError as error:
        send(socket, StartFailed(type(error).__name__, str(error)))
        socket.close(linger=1000)
        return 1
    send(socket, core.info)
    log.info(
        "ready: %s on %s, %d blocks of %d tokens",
        *(start.name, core.info.device, core.info.num_blocks, core.info.block_size),
    )
    EngineLoop(core, socket).run()
    socket.close(linger=0)
    return 0


def _load(start: Start, progress: Any) -> EngineCore:
    return EngineCore.load(EngineConfig.of(**start.options), Path(start.folder), name=start.name, progress=progress)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
