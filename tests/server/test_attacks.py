"""What people try against a server with API keys, one attack a test; over real sockets where it is made of bytes.

Heads and bodies that are too large, too slow or malformed are also in test_connection.py, test_errors.py and
test_hosts.py, where the bound is what matters, not whom it holds off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest
from api_keys import ADA, GRACE, WRONG, bearer, some_keys
from fake_engine import FakeEngine
from raw_http import Connect, drip, is_closed, read_answer

from octavo.server.connection import BoundedConnection
from octavo.server.keys import Keys
from octavo.server.limits import MAX_HEADER_BYTES, MAX_HEADERS

KEY = f"authorization: Bearer {ADA}".encode()
BODY = b'{"prompt": "x", "max_tokens": 1}'


@pytest.fixture
def keys() -> Keys:
    return some_keys()


def send(connection: socket.socket, target: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> None:
    lines = [method + b" " + target + b" HTTP/1.1", b"host: x", b"connection: close", *headers, b"", body]
    connection.sendall(b"\r\n".join(lines))


def post(connection: socket.socket, *headers: bytes, body: bytes = b"") -> None:
    send(connection, b"/v1/completions", b"content-type: application/json", *headers, method=b"POST", body=body)


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────


TRICKS = [
    b"//metrics",
    b"/metrics/",
    b"/METRICS",
    b"/metrics%0a",
    b"/metrics%00",
    b"/metrics%20",
    b"/metrics;/health",
    b"/%2e/metrics",
    b"/./metrics",
    b"/health/../metrics",
    b"/health/%2e%2e/metrics",
    b"/health%2f..%2fmetrics",
    b"/health%0a",
    b"/health%00",
    b"/health/",
    b"//health",
    b"/health;x",
    b"/HEALTH",
    b"/v1/models/../../metrics",
    b"/v1/models/..%2f..%2fmetrics",
    b"//v1/models",
    b"/openapi.json%23/health",
    b"http://x/metrics",
    b"http://x//health",
    b"http://x/health/../metrics",
    b"http://x/v1/models#/health",
    b"http:///health/metrics",
    b"*",
    b"x/health",
    b"\\metrics",
]


def test_no_spelling_of_a_path_gets_in_without_a_key(connect: Connect) -> None:
    for target in TRICKS:
        connection = connect()
        send(connection, target)
        assert read_answer(connection)[0] in (400, 401), target


def test_no_spelling_of_a_path_shows_a_tenant_the_metrics(connect: Connect) -> None:
    for target in (*TRICKS, b"/metrics", b"/%6detrics", b"/metrics?x=/health", b"/metrics#/health"):
        connection = connect()
        send(connection, target, KEY)
        status, body = read_answer(connection)
        assert status in (200, 400, 403, 404)
        assert "octavo_kv" not in str(body), target


def test_no_spelling_of_a_path_shows_a_tenant_the_live_map(connect: Connect, engine: FakeEngine) -> None:
    engine.status = "stopped"  # so that a stream would have an end
    for target in (*(trick.replace(b"metrics", b"ui/stream") for trick in TRICKS), b"/ui/stream", b"/u%69/stream?x"):
        connection = connect()
        send(connection, target, KEY)
        status, body = read_answer(connection)
        assert status in (200, 400, 403, 404)
        assert "stopped" not in str(body), target


def test_the_path_decides_and_nothing_around_it(connect: Connect) -> None:
    for target in (b"/health", b"/%68ealth", b"http://evil.example/health", b"/health?x=/metrics"):
        connection = connect()
        send(connection, target)
        assert read_answer(connection) == (200, {"status": "alive"}), target


@pytest.mark.parametrize(
    "header",
    [b"x-original-url: /health", b"x-rewrite-url: /health", b"x-forwarded-prefix: /health",
     b"x-forwarded-for: 127.0.0.1", b"x-http-method-override: OPTIONS"],
)  # fmt: skip
def test_headers_of_proxies_open_nothing(connect: Connect, header: bytes) -> None:
    connection = connect()
    send(connection, b"/v1/models", header)
    assert read_answer(connection)[0] == 401


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"DELETE"])
def test_no_other_method_gets_in(connect: Connect, method: bytes) -> None:
    connection = connect()
    send(connection, b"/v1/models", method=method)
    assert read_answer(connection)[0] == 401


def test_a_tunnel_is_no_way_in(connect: Connect) -> None:
    connection = connect()
    send(connection, b"127.0.0.1:22", method=b"CONNECT")
    assert read_answer(connection)[0] in (400, 401)


def test_an_upgrade_is_no_way_in(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert connection.recv(65536).startswith(b"HTTP/1.1 401")


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────


MISPLACED = [
    f"authorization: {ADA}".encode(),
    f"authorization: Token {ADA}".encode(),
    f"authorization: Bearer{ADA}".encode(),
    f"authorization: Bearer {ADA[:-1]}".encode(),
    f"authorization: Bearer {ADA.upper()}".encode(),
    f"authorization: Bearer {ADA},{ADA}".encode(),
    f"authorization: Bearer sha256:{hashlib.sha256(ADA.encode()).hexdigest()}".encode(),
    b"authorization: Basic " + base64.b64encode(f"x:{ADA}".encode()),
    f"proxy-authorization: Bearer {ADA}".encode(),
    f"cookie: authorization=Bearer {ADA}; api_key={ADA}".encode(),
    f"api-key: {ADA}".encode(),
    f"x-api-key: Bearer {ADA}".encode(),
    b"authorization: Bearer",
    b"authorization:",
    b"x-api-key:",
]


def test_a_key_in_the_wrong_place_or_form(connect: Connect) -> None:
    for header in MISPLACED:
        connection = connect()
        send(connection, f"/v1/models?api_key={ADA}&key={ADA}&access_token={ADA}".encode(), header)
        status, body = read_answer(connection)
        assert status == 401, header
        assert ADA not in json.dumps(body)


@pytest.mark.parametrize(
    "headers",
    [
        (KEY, f"authorization: Bearer {WRONG}".encode()),
        (f"authorization: Bearer {WRONG}".encode(), KEY),
        (KEY, f"x-api-key: {GRACE}".encode()),
        (f"x-api-key: {GRACE}".encode(), f"x-api-key: {ADA}".encode()),
    ],
)
def test_two_keys_are_none(connect: Connect, headers: tuple[bytes, ...]) -> None:
    connection = connect()
    send(connection, b"/v1/models", *headers)
    assert read_answer(connection)[0] == 401


@pytest.mark.parametrize(
    ("key", "status"),
    [
        (b"\xff\xfe\x80" * 10, 401),
        (ADA.encode() + b"\xa0", 401),
        ("ключ".encode() * 5, 401),
        (b"k" * (MAX_HEADER_BYTES - 200), 401),
        (b"k" * MAX_HEADER_BYTES, 431),
        (ADA.encode() + b"\x00", 400),
        (b"k\r" + ADA.encode(), 400),
    ],
)
def test_strange_and_giant_keys(connect: Connect, key: bytes, status: int) -> None:
    connection = connect()
    send(connection, b"/v1/models", b"authorization: Bearer " + key)
    assert read_answer(connection)[0] == status


def test_a_key_behind_the_body_is_none(connect: Connect) -> None:
    connection = connect()
    post(
        connection,
        b"transfer-encoding: chunked",
        b"trailer: authorization",
        body=b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(BODY), BODY, KEY),
    )
    assert read_answer(connection)[0] == 401


def test_a_head_behind_the_body_is_bounded_too(connect: Connect) -> None:
    connection = connect()
    trailers = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(40))
    post(connection, KEY, b"transfer-encoding: chunked", body=b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
    assert read_answer(connection)[0] == 431


async def test_keys_are_neither_echoed_nor_logged(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.refusal = ZeroDivisionError("a bug")
    for key in (WRONG, ADA):
        for headers in (bearer(key), {"x-api-key": key}):
            response = await http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
            assert response.status_code in (401, 500)
            assert key not in response.text + str(response.headers)
    assert "a bug" in caplog.text
    assert ADA not in caplog.text
    assert WRONG not in caplog.text


# ── heads and bodies ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_head_that_drips(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "header_seconds", 0.3)

    def head() -> Iterator[bytes]:
        yield b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
        for number in range(MAX_HEADERS - 10):
            yield b"x-%d: y\r\n" % number

    assert drip(connect(), head())[0] == 408


@pytest.mark.usefixtures("impatient")
def test_a_body_that_drips(connect: Connect) -> None:
    connection = connect()
    post(connection, KEY, b"content-length: 1000")
    assert drip(connection, [b" "] * 1000)[0] == 408


@pytest.mark.parametrize(
    ("length", "part"), [(b"content-length: 1000000", b"x"), (b"transfer-encoding: chunked", b"1\r\nx\r\n")]
)
def test_a_body_without_a_key_is_not_read(connect: Connect, length: bytes, part: bytes) -> None:
    connection = connect()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 401")
    assert is_closed(connection, part)


def test_a_chunked_body_over_the_limit(connect: Connect) -> None:
    connection = connect()
    post(connection, KEY, b"transfer-encoding: chunked")
    assert drip(connection, [b"8000\r\n" + b"x" * 0x8000 + b"\r\n"] * 100)[0] == 413


@pytest.mark.parametrize(
    "headers",
    [
        (b"content-length: 32", b"content-length: 33"),
        (b"content-length: 32", b"transfer-encoding: chunked"),
        (b"transfer-encoding: chunked", b"content-length: 32"),
        (b"content-length: -1",),
        (b"content-length: +32",),
        (b"content-length: 0x20",),
        (b"content-length: 99999999999999999999999",),
        (b"content-length : 32",),
        (b"transfer-encoding: xchunked",),
    ],
)
def test_lengths_that_two_servers_could_read_differently(
    connect: Connect, engine: FakeEngine, headers: tuple[bytes, ...]
) -> None:
    connection = connect()
    post(connection, KEY, *headers, body=BODY)
    assert read_answer(connection)[0] == 400
    assert not engine.seen


def test_what_follows_a_body_is_a_request_of_its_own(connect: Connect, engine: FakeEngine) -> None:
    connection = connect()
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(head + KEY + b"\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY + smuggled)
    received = b""
    while part := connection.recv(65536):
        received += part
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1 401") == 1
    assert len(engine.seen) == 1


@pytest.mark.usefixtures("impatient")
def test_a_body_shorter_than_it_says(connect: Connect, engine: FakeEngine) -> None:
    connection = connect()
    post(connection, KEY, b"content-length: 33", body=BODY)
    assert read_answer(connection)[0] == 408
    assert not engine.seen


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_a_body_two_thousand_levels_deep(http: httpx.AsyncClient, opening: bytes) -> None:
    body = b'{"prompt": ' + opening * 2000
    headers = {"content-type": "application/json"}
    assert (await http.post("/v1/completions", content=body, headers=headers)).status_code == 401
    assert (await http.post("/v1/completions", content=body, headers=headers | bearer(ADA))).status_code == 400


# ── web pages ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keys", [None])
def test_dns_rebinding(connect: Connect, engine: FakeEngine) -> None:
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: evil.example:8000\r\norigin: http://evil.example:8000\r\n"
        b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    )
    status, body = read_answer(connection)
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")
    assert not engine.seen


@pytest.mark.parametrize("keys", [None])
async def test_a_page_elsewhere_cannot_post_without_asking(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"content-type": kind, "origin": "https://evil.example"}
        assert (await http.post("/v1/completions", content=BODY, headers=headers)).status_code == 415
    assert not engine.seen


@pytest.mark.parametrize("keys", [some_keys(), None])
async def test_a_forged_host_opens_nothing(http: httpx.AsyncClient) -> None:
    for host in ("x/health?", "x@octavo", "octavo:8000/health"):
        assert (await http.get("/v1/models", headers={"host": host})).status_code in (401, 403)
