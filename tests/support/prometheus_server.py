"""A real Prometheus on this machine, for tests that ask it."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from serving import free_port


class Prometheus:
    """A running Prometheus. Attributes: http: a client of it."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of one answer of its HTTP API; an error of Prometheus' fails the test."""
        answer = self.http.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def has_values(self, expression: str) -> bool:
        """Does an expression have a series whose value is a number?"""
        series = self.ask("query", query=expression)["result"]
        return any(math.isfinite(float(one["value"][1])) for one in series)


@contextmanager
def prometheus(binary: str, config: Path, log: Path) -> Iterator[Prometheus]:
    """Prometheus with a config, for the length of a with-block; its data lie beside the config."""
    port = free_port()
    options = {
        "config.file": config,
        "storage.tsdb.path": config.parent / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with log.open("w") as output:
        command = [binary, *(f"--{key}={value}" for key, value in options.items())]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            _wait_ready(http, process, log)
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(30)


def _wait_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Prometheus ended: {log.read_text()}"
        try:
            if http.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"Prometheus was not ready in 30 s: {log.read_text()}")
