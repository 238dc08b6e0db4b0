"""Bounds on a request's head and on the time that its parts may take, on real sockets."""

from __future__ import annotations

from typing import Any

import pytest
from raw_http import Connect, read_answer

from octavo.server.connection import BoundedConnection
from octavo.server.limits import MAX_HEADER_BYTES, MAX_HEADERS


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
    status, body = read_answer(connection)
    assert status == 431
    assert str(MAX_HEADER_BYTES) in body["error"]["message"]


def test_a_path_that_is_too_long(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /" + b"x" * (MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_answer(connection)[0] == 431


def test_what_is_not_http(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"hello there\r\n\r\n")
    assert read_answer(connection)[0] == 400


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come(connect: Connect, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(BoundedConnection, "header_seconds", 0.2)
    connection = connect()
    connection.sendall(begun)
    assert read_answer(connection)[0] == 408


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


@pytest.mark.usefixtures("impatient")
def test_a_body_that_does_not_come(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    )
    status, body = read_answer(connection)
    assert status == 408
    assert body["error"]["code"] == "request_timeout"


def test_one_connection_too_many(connect: Connect, monkeypatch: pytest.MonkeyPatch, wait_until: Any) -> None:
    monkeypatch.setattr(BoundedConnection, "max_connections", 2)
    head = b"GET /health HTTP/1.1\r\nhost: x\r\n"
    first, second = connect(), connect()
    for connection in (first, second):  # which is when the server knows of it
        connection.sendall(head + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    refused = connect().recv(65536)
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: 1\r\n" in refused
    second.sendall(head + b"connection: close\r\n\r\n")
    assert read_answer(second)[0] == 200

    def another_gets_in() -> bool:
        connection = connect()
        try:
            connection.sendall(head + b"connection: close\r\n\r\n")
            return read_answer(connection)[0] == 200
        except OSError:  # it is reset if it was closed before the request came
            return False

    wait_until(another_gets_in)
