"""Requests as bytes, for what no client would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

Connect = Callable[[], socket.socket]


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    """The status and the JSON of a response after which the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return _parsed(received)


def drip(connection: socket.socket, parts: Iterable[bytes]) -> tuple[int, Any]:
    """Sends a little at a time until the server has had enough; then as `read_answer`."""
    for part in parts:
        connection.sendall(part)
        connection.settimeout(0.02)
        try:
            received = connection.recv(65536)
        except TimeoutError:
            continue
        return _parsed(received)
    raise AssertionError("the server took it all")


def is_closed(connection: socket.socket, part: bytes, timeout: float = 5) -> bool:
    """Whether the server closes while it is still being sent to."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            connection.sendall(part)
        except OSError:
            return True
        time.sleep(0.02)
    return False


def _parsed(received: bytes) -> tuple[int, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body
