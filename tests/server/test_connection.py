"""Bounds on a request's head and on the time that its parts may take, on real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from octavo.server.connection import BoundedConnection
from octavo.server.limits import MAX_HEADER_BYTES, MAX_HEADERS
from octavo.server.middleware import BodyReader

Connect = Callable[[], socket.socket]


def read_all(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """The status and the error of a response after which the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"y" * (MAX_HEADER_BYTES + 1) + b"\r\n",
        b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS + 1)),
    ],
)
def test_a_head_that_is_too_large(connect: Connect, head: bytes) -> None:
    connection = connect()
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
    status, error = read_all(connection)
    assert status == 431
    assert str(MAX_HEADER_BYTES) in error["message"]


def test_a_path_that_is_too_long(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /" + b"x" * (MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_all(connection)[0] == 431


def test_what_is_not_http(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"hello there\r\n\r\n")
    assert read_all(connection)[0] == 400


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come(connect: Connect, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(BoundedConnection, "header_seconds", 0.2)
    connection = connect()
    connection.sendall(begun)
    assert read_all(connection)[0] == 408


def test_a_kept_connection_may_wait_longer_than_a_head(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "header_seconds", 0.1)
    connection = connect()
    for _ in range(2):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while not received.endswith(b'"}'):
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.fixture
def impatient(app: FastAPI) -> None:
    for middleware in app.user_middleware:
        if middleware.cls is BodyReader:
            middleware.kwargs["seconds"] = 0.2


@pytest.mark.usefixtures("impatient")
def test_a_body_that_does_not_come(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    )
    status, error = read_all(connection)
    assert status == 408
    assert error["code"] == "request_timeout"
