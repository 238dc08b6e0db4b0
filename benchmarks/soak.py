"""Uses a server for minutes as badly as its clients will, and looks whether it is afterwards as it was before.

    python benchmarks/soak.py --minutes 3
    python benchmarks/soak.py --minutes 60 --clients 24 --kill-every 120 -- --swap-space 256MiB

Starts `octavo serve` with the options after ``--``. Each client is one of several kinds, drawn anew for each request:
conversations, streams that are read to their ends or left at a random point, structured output, tools, several
sequences at once, bad requests. Now and then the engine's process is killed. Meanwhile /health is asked ten times a
second.

At the end, when all clients have left, the table shows requests by kind and outcome, how fast /health answered, and
memory, threads and files of both processes. Exits with 1 if blocks are still used, files are still open, requests are
still running, a request got no proper end, or /health once did not answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from loadgen.misuse import KINDS, Unfinished
from rich.console import Console
from rich.table import Table

WARM_UP_SECONDS = 15.0  # before the first look: caches fill, and threads and arenas are made
SETTLE_SECONDS = 20.0
RESTART_SECONDS = 60.0
FILES_MAY_GROW = 4  # a process's, between two looks at rest
POOL = ("--num-blocks", "1024")  # small enough to be filled in the warm-up: from then on its memory is all there


@dataclass
class Soak:
    """One run.

    Attributes:
        http: To the server. outcomes: kind of request → outcome → count. waits: seconds of each answer of /health.
        unhealthy: Times that /health did not answer. kills: engines killed.
    """

    http: httpx.AsyncClient
    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    waits: list[float] = field(default_factory=list)
    unhealthy: int = 0
    kills: int = 0

    async def client(self, chance: random.Random, until: float) -> None:
        """Sends one request after another."""
        kinds = list(KINDS.values())
        while time.monotonic() < until:
            kind = chance.choice(kinds)
            try:
                outcome = await kind(self.http, chance)
            except (httpx.TransportError, Unfinished, KeyError, ValueError) as error:
                outcome = f"broken: {type(error).__name__}"
            self.outcomes[kind.__name__][outcome] += 1
            if outcome in ("503", "429"):
                await asyncio.sleep(0.2)

    async def probe(self, until: float) -> None:
        """Asks whether the server is alive."""
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                self.unhealthy += (await self.http.get("/health", timeout=10)).status_code != 200
            except httpx.TransportError:
                self.unhealthy += 1
            self.waits.append(time.monotonic() - began)
            await asyncio.sleep(0.1)

    async def killer(self, server: Server, every: float, until: float) -> None:
        """Kills the engine's process now and then, if it is there."""
        while time.monotonic() + every < until:
            await asyncio.sleep(every)
            if (engine := server.engine()) is not None:
                os.kill(engine, signal.SIGKILL)
                self.kills += 1

    def count(self, beginning: str) -> int:
        """Requests whose outcome begins so."""
        outcomes = [item for kind in self.outcomes.values() for item in kind.items()]
        return sum(count for name, count in outcomes if name.startswith(beginning))


@dataclass(frozen=True)
class Look:
    """One process at one time."""

    at: float
    resident: int
    files: int
    threads: int

    @classmethod
    def at_process(cls, pid: int) -> Look:
        folder = Path(f"/proc/{pid}")
        pages = int((folder / "statm").read_text().split()[1])
        files, threads = len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
        return cls(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), files, threads)


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    pid: int
    http: httpx.AsyncClient

    def engine(self) -> int | None:
        """The engine's process, if there is one."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        with suppress(OSError):
            return next((int(pid) for pid in children if b"octavo.engine.process" in _command(int(pid))), None)
        return None

    async def ready(self, seconds: float) -> None:
        """Waits until requests are served.

        Raises:
            TimeoutError: They are not in time.
        """
        async with asyncio.timeout(seconds):
            while True:
                with suppress(httpx.TransportError):
                    if (await self.http.get("/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def metric(self, name: str, labels: str = "") -> float:
        """One value of /metrics, summed over the labels that are not given."""
        text = (await self.http.get("/metrics")).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(float(value) for sample, value in lines if labels in sample)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@asynccontextmanager
async def serving(options: Sequence[str]) -> AsyncIterator[Server]:
    """`octavo serve` on a free port of this machine; its log goes to soak.log."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "octavo", "serve", "--port", port, *POOL, *options]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    with open("soak.log", "w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as http:
        try:
            yield Server(process.pid, http)
        finally:
            process.terminate()
            await process.wait()


@dataclass
class Watch:
    """What was seen of both processes, by name; an engine that replaces another begins anew."""

    server: Server
    looks: defaultdict[str, list[Look]] = field(default_factory=lambda: defaultdict(list))

    def look(self) -> None:
        pids = {"front end": self.server.pid, "engine": self.server.engine()}
        for name, pid in pids.items():
            with suppress(OSError):  # it may just have been killed
                if pid is not None:
                    self.looks[f"{name} {pid}"].append(Look.at_process(pid))

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(2)
            self.look()


def slope(looks: Sequence[Look]) -> float:
    """By how many bytes a minute the resident memory grew in the later half, as a line through the looks has it."""
    looks = looks[len(looks) // 2 :]
    times = np.array([look.at for look in looks]) - looks[0].at
    return float(np.polyfit(times, [look.resident for look in looks], 1)[0]) * 60 if len(looks) > 5 else 0.0


async def soak(arguments: argparse.Namespace) -> int:
    """One run; returns the exit status."""
    screen = Console()
    async with serving(arguments.options) as server:
        run, watch = Soak(server.http), Watch(server)
        await server.ready(120)
        await use(run, watch, arguments, WARM_UP_SECONDS, kill=False)
        before = await at_rest(watch)
        run.outcomes.clear()
        await use(run, watch, arguments, arguments.minutes * 60, kill=True)
        after = await at_rest(watch)
        show(screen, run, watch)
        complaints = [*faults(run), *differences(before, after)]
    for complaint in complaints:
        screen.print(f"[red]{complaint}")
    return 1 if complaints else 0


async def use(run: Soak, watch: Watch, arguments: argparse.Namespace, seconds: float, *, kill: bool) -> None:
    """All clients at once, for so long."""
    until = time.monotonic() + seconds
    clients = [run.client(random.Random(f"{arguments.seed} {n}"), until) for n in range(arguments.clients)]
    killer = [run.killer(watch.server, arguments.kill_every, until)] if kill and arguments.kill_every else []
    await asyncio.gather(run.probe(until), watch.run(until), *clients, *killer)


async def at_rest(watch: Watch) -> dict[str, float]:
    """What should be the same whenever nobody asks for anything."""
    server = watch.server
    await server.ready(RESTART_SECONDS)
    deadline = time.monotonic() + SETTLE_SECONDS
    while await server.metric("octavo_kv_blocks", 'state="used"') and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    engine = server.engine()
    assert engine is not None
    await asyncio.sleep(2)  # statistics come with the engine's heartbeats
    watch.look()
    return {
        "used blocks": await server.metric("octavo_kv_blocks", 'state="used"'),
        "requests": await server.metric("octavo_requests"),
        "files of the front end": Look.at_process(server.pid).files,
        "files of the engine": Look.at_process(engine).files,
    }


def faults(run: Soak) -> list[str]:
    """What went wrong while the server was used."""
    found = {
        "requests without a proper end": run.count("broken"),
        "internal errors": run.count("500"),
        "times /health did not answer": run.unhealthy,
    }
    return [f"{name}: {count}" for name, count in found.items() if count]


def differences(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What did not come back."""
    return [
        f"{name}: {before[name]:g} before, {after[name]:g} after"
        for name in before
        if after[name] - before[name] > (FILES_MAY_GROW if "files" in name else 0)
    ]


def show(screen: Console, run: Soak, watch: Watch) -> None:
    """The tables."""
    table = Table("kind", "outcomes", title="requests")
    for kind, outcomes in sorted(run.outcomes.items()):
        table.add_row(kind, ", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items())))
    screen.print(table)
    table = Table("process", "memory at first", "at last", "grows by, a minute", "files", "threads", title="processes")
    for name, looks in watch.looks.items():
        first, last = looks[0], looks[-1]
        sizes = (
            f"{first.resident / 2**20:.0f} MiB",
            f"{last.resident / 2**20:.0f} MiB",
            f"{slope(looks) / 2**20:.2f} MiB",
        )
        table.add_row(name, *sizes, f"{first.files} → {last.files}", f"{first.threads} → {last.threads}")
    screen.print(table)
    p50, p99 = np.percentile(run.waits, [50, 99]) * 1000
    screen.print(f"/health: {len(run.waits)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms; engines killed: {run.kills}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one soak; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=3.0, help="of use, after a warm-up (3)")
    add("--clients", type=int, default=12, help="at once (12)")
    add("--kill-every", type=float, default=45.0, help="seconds between kills of the engine; 0: none (45)")
    add("--seed", type=int, default=0, help="of what clients send (0)")
    add("options", nargs="*", help="for octavo serve, after --")
    return asyncio.run(soak(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
