"""One engine process: started, spoken to over two Unix sockets, watched, and ended."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

import octavo.errors
from octavo.engine.messages import (
    ALIVE_SUFFIX,
    EngineInfo,
    FromEngine,
    LoadProgress,
    Shutdown,
    Start,
    StartFailed,
    ToEngine,
)
from octavo.engine.threads import bound_spinning
from octavo.errors import SetupError

log = logging.getLogger(__name__)

# Looks for a heartbeat, one a second, after which a silent engine is killed.
KILLED_AFTER = 15


class EngineProcess:
    """One engine process and the two sockets to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        folder: Path,
        context: zmq.asyncio.Context,
        socket: zmq.asyncio.Socket,
        alive: zmq.asyncio.Socket,
    ) -> None:
        self._process = process
        self._folder = folder
        self._context = context
        self._socket = socket
        self._alive = alive
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._last_beat = time.monotonic()

    @classmethod
    async def spawn(cls, start: Start) -> EngineProcess:
        """Starts the process and tells it what to load."""
        # A fresh folder that only this user can enter: nobody else can connect.
        folder = Path(tempfile.mkdtemp(prefix="octavo-"))
        context = zmq.asyncio.Context()
        try:
            return await cls._spawn_at(f"ipc://{folder}/engine", folder, context, start)
        except BaseException as error:
            context.destroy(linger=0)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise SetupError(f"the engine process could not be started: {error}") from error
            raise

    @classmethod
    async def _spawn_at(cls, endpoint: str, folder: Path, context: zmq.asyncio.Context, start: Start) -> EngineProcess:
        socket, alive = context.socket(zmq.PAIR), context.socket(zmq.PULL)
        socket.bind(endpoint)
        alive.bind(endpoint + ALIVE_SUFFIX)
        environment = dict(os.environ)
        bound_spinning(environment)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "octavo.engine.process", endpoint, str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
            # Signals to the terminal or to the process group are the front end's to handle: it drains first.
            start_new_session=True,
        )
        engine = cls(process, folder, context, socket, alive)
        engine.send(start)
        return engine

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._last_beat

    def send(self, message: Start | ToEngine) -> None:
        """Sends without waiting: the queue to the engine is unbounded, the number of requests is not."""
        self._socket.send(msgspec.msgpack.encode(message))

    async def wait_ready(self, on_progress: Callable[[str], None]) -> EngineInfo:
        """Waits until the model is loaded.

        Raises:
            SetupError: The engine said why it cannot start, or ended without a word.
        """
        ended = asyncio.create_task(self._process.wait())
        try:
            while True:
                message = await self._receive_or(ended)
                match message:
                    case EngineInfo():
                        return message
                    case LoadProgress():
                        on_progress(message.text)
                    case StartFailed():
                        raise getattr(octavo.errors, message.kind)(message.message)
                    case None:
                        raise SetupError(f"the engine process ended while loading ({self._exit_words()})")
        finally:
            ended.cancel()

    async def listen(self, handle: Callable[[FromEngine], None]) -> str:
        """Passes on messages until the engine has ended; returns how."""
        self._last_beat = time.monotonic()
        tasks = {
            asyncio.create_task(self._process.wait()),
            asyncio.create_task(self._pass_on(handle)),
            asyncio.create_task(self._watch_heart()),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
                return f"silent for {self.silence:.0f} s, so it was killed"
            return self._exit_words()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends the process, politely first, and removes its sockets."""
        if self._process.returncode is None:
            self.send(Shutdown())
            try:
                await asyncio.wait_for(self._process.wait(), timeout=2.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _receive_or(self, ended: asyncio.Task[int]) -> FromEngine | None:
        """The next message; None if the process ended and left none."""
        incoming = asyncio.ensure_future(self._socket.recv())
        await asyncio.wait({incoming, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not incoming.done():
            # Its last words may still be on their way.
            await asyncio.wait({incoming}, timeout=0.2)
        if incoming.done():
            message: FromEngine = self._decoder.decode(incoming.result())
            return message
        incoming.cancel()
        return None

    async def _pass_on(self, handle: Callable[[FromEngine], None]) -> None:
        while True:
            try:
                handle(self._decoder.decode(await self._socket.recv()))
            except (msgspec.MsgspecError, ValueError, LookupError):
                log.exception("a message from the engine could not be handled")

    async def _watch_heart(self) -> None:
        # Counts looks, not seconds: after a pause of this very process the beats are there and only have to be read.
        misses = 0
        while misses < KILLED_AFTER:
            if await self._alive.poll(timeout=1000):
                await self._alive.recv()
                self._last_beat = time.monotonic()
                misses = 0
            else:
                misses += 1

    def _exit_words(self) -> str:
        code = self._process.returncode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
