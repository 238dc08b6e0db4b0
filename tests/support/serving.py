"""A real server in a process of its own, for tests that act as its clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

# Seconds. Two compilations beside each other on two slow cores have taken more than two minutes.
_LONGEST_START = 400
_METRIC = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)


def free_port() -> int:
    """A port on which nobody listens right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`octavo serve` with options, on a free port of this machine.

    Attributes:
        url: Where it listens. process: the front end's process.
        seconds_to_ready: From the start of the process to the first 200 of /ready.
    """

    def __init__(self, *options: str, log: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        command = [sys.executable, "-m", "octavo", "serve", "--port", str(self.port), *options]
        started = time.monotonic()
        with open(log or os.devnull, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            self._wait_ready(_LONGEST_START)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.seconds_to_ready = time.monotonic() - started

    def _wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended: {self.log()}"
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready in {timeout} s: {self.log()}")

    def log(self) -> str:
        """What it printed so far."""
        return self._log.read_text() if self._log is not None else ""

    def metric(self, name: str, **labels: str) -> float:
        """One value from /metrics, summed over the labels that are not given."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = [
            float(m["value"])
            for m in _METRIC.finditer(text)
            if m["name"] == name and wanted <= set((m["labels"] or "").split(","))
        ]
        assert found, f"no metric {name} with {labels}"
        return sum(found)

    def engine_pid(self) -> int:
        """The engine's process, a child of the front end's."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if "octavo.engine.process" in _command_line(int(pid)))

    def stop(self, timeout: float = 40) -> int:
        """Asks it to end and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def resident_bytes(pid: int) -> int:
    """A process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serve(*options: str, log: Path | None = None) -> Iterator[Server]:
    """A server for the length of a with-block."""
    server = Server(*options, log=log)
    try:
        yield server
    finally:
        server.stop()
