"""``octavo serve``: from a validated config to a server that has drained.

The order is the cheapest failure first: the port is taken before the model is looked for, the model is checked
before its engine is started. HTTP answers while the engine loads, with "loading".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from octavo.config import DEFAULT_TENANT, EngineConfig, ServerConfig
from octavo.errors import SetupError
from octavo.server.app import build_app
from octavo.server.connection import BoundedConnection
from octavo.server.console import Narrator
from octavo.server.hosts import check_exposure
from octavo.server.keys import ENVIRONMENT_VARIABLE, Keys, read_keys
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import KEEP_ALIVE_SECONDS, MAX_CONNECTIONS
from octavo.server.loop_lag import watch_loop
from octavo.server.metrics import Metrics
from octavo.server.stats_line import StatsLine
from octavo.server.tls import check_certificate
from octavo.server.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

FORCED_EXIT = 130
LAST_WORDS_SECONDS = 2  # for open streams to tell their clients why they end


def serve(engine_config: EngineConfig, config: ServerConfig, narrator: Narrator) -> int:
    """Serves until asked to stop; returns the process's exit status.

    Raises:
        SetupError: The keys or the certificate are no good, tracing lacks its packages, the port is taken, or the model
            cannot be served.
    """
    # Imported here so that a wrong option or a taken port is told at once.
    from octavo.engine.client import ProcessEngineClient
    from octavo.engine.prepare import prepare_model
    from octavo.engine.tokenizer import Tokenizer

    keys = _read_keys(engine_config, config)
    check_exposure(config, keys)
    if config.tls_cert and config.tls_key:
        check_certificate(config.tls_cert, config.tls_key)
    tracing = open_tracing(config.otlp_endpoint) if config.otlp_endpoint is not None else None
    allow_descriptors(2 * MAX_CONNECTIONS)
    with bind(config) as listener:
        with narrator.working(f"looking for {engine_config.model.model}"):
            model = prepare_model(engine_config, narrator.progress)
            tokenizer = Tokenizer(model.folder)
        client = ProcessEngineClient(engine_config, model, log_format=config.log_format, log_level=config.log_level)
        lifecycle = Lifecycle(config.max_open_requests)
        name = config.served_model_name or model.name
        metrics = Metrics(client, lifecycle, name, config.metrics_compat)
        observers = [tracing.observer(client, name)] if tracing is not None else []
        app = build_app(
            *(client, tokenizer, config),
            model_name=name,
            lifecycle=lifecycle,
            keys=keys,
            metrics=metrics,
            observers=observers,
        )
        watches = [partial(watch_loop, metrics.loop_lag)]
        if config.log_stats_interval:
            watches.append(partial(StatsLine(client).run, config.log_stats_interval))
        uvicorn_config = http_config(app, config.tls_cert, config.tls_key)
        with asyncio.Runner(loop_factory=uvicorn_config.get_loop_factory()) as runner:
            http = HttpServer(uvicorn_config)
            server = Server(
                *(http, client, lifecycle, config.shutdown_timeout, narrator, name, keys),
                watches=watches,
                tracing=tracing,
            )
            return runner.run(server.run(listener))


def _read_keys(engine_config: EngineConfig, config: ServerConfig) -> Keys | None:
    tenants = {DEFAULT_TENANT, *(tenant.name for tenant in engine_config.scheduler.tenants)}
    # Taken out of the environment: the engine's process has no need of it.
    return read_keys(config.api_keys, os.environ.pop(ENVIRONMENT_VARIABLE, None), tenants)


def allow_descriptors(count: int) -> None:
    """Asks for so many open files; connections are files, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard < 0 else min(count, hard), hard))


def bind(config: ServerConfig) -> socket.socket:
    """Takes the address.

    Raises:
        SetupError: It cannot be had; says why.
    """
    try:
        return socket.create_server(
            (config.host, config.port),
            family=socket.AF_INET6 if ":" in config.host else socket.AF_INET,
            # create_server sets SO_REUSEADDR, so a restart need not wait for the last server's connections.
            backlog=2048,
        )
    except OSError as error:
        where = f"{config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE:
            raise SetupError(f"{where} is already in use; choose another --port, or 0 for a free one") from error
        raise SetupError(f"cannot listen on {where}: {error.strerror or error}") from error


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@dataclass(frozen=True)
class Server:
    """The HTTP server and its engine, from the first answer to the last."""

    http: uvicorn.Server
    client: EngineClient
    lifecycle: Lifecycle
    shutdown_timeout: float
    narrator: Narrator
    model_name: str
    keys: Keys | None = None
    watches: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    tracing: Tracing | None = None

    async def run(self, listener: socket.socket) -> int:
        """Serves until asked to stop, drains, and returns the exit status.

        Raises:
            SetupError: The engine cannot start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.lifecycle.stop)
        serving = asyncio.create_task(self.http.serve(sockets=[listener]))
        try:
            if await self._start_engine(address_of(listener, "https" if self.http.config.is_ssl else "http")):
                async with self._watched():
                    await self.lifecycle.stop_requested()
                    await self._drain()
        finally:
            # Streams that are still open now end with an error event instead of silence.
            await self.client.close()
            self.http.should_exit = True
            await serving
            if self.tracing is not None:
                await self.tracing.close()
        return FORCED_EXIT if self.lifecycle.forced else 0

    async def _start_engine(self, address: str) -> bool:
        """True once the engine is ready; False if somebody asked to stop before that."""
        starting = asyncio.create_task(self.client.start(self.narrator.progress))
        stopping = asyncio.create_task(self.lifecycle.stop_requested())
        try:
            with self.narrator.working(f"starting the engine; {address}/ready answers meanwhile"):
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return False
            info = starting.result()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
        report = [*info.report, f"access       {_who(self.keys)}"]
        self.narrator.ready(report, address, self.model_name, needs_key=self.keys is not None)
        return True

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Measures and tells what goes on besides requests, for as long as the block lasts."""
        tasks = [asyncio.create_task(watch()) for watch in self.watches]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> None:
        count = self.lifecycle.open_requests
        if count:
            self.narrator.note(
                f"stopping: {count} open requests have {self.shutdown_timeout:g} s to finish; "
                "Ctrl-C again ends them now"
            )
        if not await self.lifecycle.drain(self.shutdown_timeout):
            self.narrator.note(f"stopped with {self.lifecycle.open_requests} requests unfinished")


def _who(keys: Keys | None) -> str:
    if keys is None:
        return "whoever can reach this address; no API keys"
    return f"API keys: {len(keys)}, of {', '.join(keys.tenants)}"


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers, which would stop it before the requests are drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_config(app: object, tls_cert: str | None = None, tls_key: str | None = None) -> uvicorn.Config:
    """How uvicorn runs the application: quiet, bounded, and without what Octavo does itself."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=BoundedConnection,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,
    )
