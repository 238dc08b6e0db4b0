"""Which names the server answers to, which pages may use it, and when it may be open to other machines."""

from __future__ import annotations

import httpx
import pytest
from api_keys import ADA, bearer, some_keys
from fastapi import FastAPI
from raw_http import Connect, read_answer

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.hosts import check_exposure
from octavo.server.keys import Keys

PAGE = "https://chat.example"


async def status_for(http: httpx.AsyncClient, host: str) -> int:
    return (await http.get("/version", headers={"host": host})).status_code


@pytest.mark.parametrize("config", [ServerConfig(allowed_hosts=("Octavo", "gpu.example")), ServerConfig(host="octavo")])
@pytest.mark.parametrize(
    "host",
    ["octavo", "OCTAVO:8000", "localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.0.7:80"],
)
async def test_names_of_the_server(http: httpx.AsyncClient, host: str) -> None:
    assert await status_for(http, host) == 200


@pytest.mark.parametrize("config", [ServerConfig(), ServerConfig(host="0.0.0.0", allow_anonymous=True)])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example@localhost",
     "localhost:80:80", "localhost/", "[evil.example]", "[::1", "", ":8000", "::1", b"localhost\xff"],
)  # fmt: skip
async def test_other_names(http: httpx.AsyncClient, host: str) -> None:
    response = await http.get("/version", headers={"host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


async def test_two_names_at_once(http: httpx.AsyncClient) -> None:
    response = await http.get("/version", headers=[("host", "localhost"), ("host", "localhost")])
    assert response.status_code == 403


def test_a_probe_that_knows_no_names(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
    assert read_answer(connection) == (200, {"status": "ready"})


@pytest.mark.parametrize("config", [ServerConfig(allowed_hosts=("*",)), ServerConfig()])
@pytest.mark.parametrize("keys", [some_keys()])
async def test_any_name_with_keys_or_when_asked_for(http: httpx.AsyncClient) -> None:
    assert await status_for(http, "evil.example") == 200


@pytest.mark.parametrize("config", [ServerConfig(allowed_hosts=("gpu.example",))])
@pytest.mark.parametrize("keys", [some_keys()])
async def test_names_may_be_listed_with_keys_too(http: httpx.AsyncClient) -> None:
    assert await status_for(http, "gpu.example") == 200
    assert await status_for(http, "evil.example") == 403


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        "host": "localhost",
    }


@pytest.mark.parametrize("keys", [some_keys(), None])
@pytest.mark.parametrize("config", [ServerConfig(cors_origins=(PAGE,))])
async def test_pages_that_may_use_the_server(http: httpx.AsyncClient, keys: Keys | None) -> None:
    allowed = await http.options("/v1/completions", headers=preflight(PAGE))
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    other = await http.options("/v1/completions", headers=preflight("https://evil.example"))
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers
    # A page can read why it was refused.
    headers = {"origin": PAGE, "host": "localhost", "authorization": "Bearer wrong"}
    answer = await http.get("/nothing", headers=headers)
    assert answer.status_code == (401 if keys else 404)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("config", [ServerConfig(cors_origins=("*",))])
async def test_any_page_never_with_credentials(http: httpx.AsyncClient) -> None:
    answer = await http.get("/version", headers={"origin": PAGE, "host": "localhost", "cookie": "a=b"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_by_default_no_page(app: FastAPI, http: httpx.AsyncClient) -> None:
    assert (await http.options("/v1/completions", headers=preflight(PAGE))).status_code == 405
    answer = await http.get("/version", headers={"origin": PAGE} | bearer(ADA))
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_an_open_server_on_this_machine(host: str) -> None:
    check_exposure(ServerConfig(host=host), None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "gpu.example"])
def test_an_open_server_for_other_machines_has_to_be_meant(host: str) -> None:
    with pytest.raises(ConfigError, match="--allow-anonymous"):
        check_exposure(ServerConfig(host=host), None)
    check_exposure(ServerConfig(host=host, allow_anonymous=True), None)
    check_exposure(ServerConfig(host=host), some_keys())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cors_origins": ("https://chat.example/",)}, "--cors-origins: 'https://chat.example/'"),
        ({"cors_origins": ("chat.example",)}, "write it as https://chat.example"),
        ({"allowed_hosts": ("http://gpu.example",)}, "--allowed-hosts"),
        ({"allowed_hosts": ("gpu.example:80",)}, "without a port"),
        ({"allowed_hosts": ("*.example",)}, "or \\* for any"),
    ],
)
def test_lists_that_would_never_match(options: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**options)  # type: ignore[arg-type]
