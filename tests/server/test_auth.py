"""Who may do what on a server with API keys."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from api_keys import ADA, ADMIN, GRACE, WRONG, bearer, some_keys
from fake_engine import FakeEngine
from fastapi import FastAPI
from starlette.routing import BaseRoute

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.server.app import build_app
from octavo.server.keys import Keys

# Written out here again: whoever opens a route to everybody has to say so twice.
PUBLIC = {"/health", "/ready", "/version", "/ui"} | {
    f"/ui/{name}"
    for name in (
        "colours.js",
        "figures.js",
        "lists.js",
        "main.js",
        "model.js",
        "recording.js",
        "stream.js",
        "style.css",
        "tier_map.js",
        "tooltip.js",
        "words.js",
    )
}
ADMINS_ONLY = {"/metrics", "/ui/stream", "/ui/blocks/{tier}/{block}"}


@pytest.fixture
def keys() -> Keys:
    return some_keys()


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the app answers, of included routers as well."""

    def walk(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
        for route in routes:
            if included := getattr(route, "original_router", None):
                yield from walk(included.routes)
            else:
                for method in route.methods:  # type: ignore[attr-defined]
                    yield method, route.path  # type: ignore[attr-defined]

    return walk(app.router.routes)


@pytest.mark.parametrize("config", [ServerConfig(tokenizer_info=True)])  # all the routes that there can be
async def test_every_route_is_behind_a_key_or_on_the_public_list(
    app: FastAPI, http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.status = "stopped"  # so that the live map's stream has an end
    routes = set(routes_of(app))
    assert {("POST", "/v1/chat/completions"), ("GET", "/openapi.json")} <= routes
    open_routes, for_tenants = set(), set()
    for method, path in routes:
        if (await http.request(method, path)).status_code != 401:
            open_routes.add(path)
        if (await http.request(method, path, headers=bearer(ADA))).status_code not in (401, 403):
            for_tenants.add(path)
        assert (await http.request(method, path, headers=bearer(ADMIN))).status_code not in (401, 403)
    assert open_routes == PUBLIC
    assert for_tenants == {path for _, path in routes} - ADMINS_ONLY


@pytest.mark.parametrize("path", ["/nothing", "/", "/admin", "/v1/models/x"])
async def test_what_is_there_is_not_told_without_a_key(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 401
    assert (await http.get(path, headers=bearer(ADA))).status_code == 404


@pytest.mark.parametrize("headers", [{}, bearer(WRONG), {"x-api-key": WRONG}, bearer("")])
async def test_the_refusal(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await http.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
    assert WRONG not in response.text


async def test_an_admin_route_names_what_it_needs(http: httpx.AsyncClient) -> None:
    response = await http.get("/metrics", headers=bearer(GRACE))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "admin_key_required"


@pytest.mark.parametrize("config", [ServerConfig(public_metrics=True)])
async def test_public_metrics(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics")).status_code == 200
    assert (await http.get("/openapi.json")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {ADA}"}, {"authorization": f"bearer  {ADA} "}, {"x-api-key": ADA},
     {"x-api-key": ADA, "authorization": f"Bearer {ADA}"}, {"x-api-key": ADA, "authorization": "Basic dTpw"}],
)  # fmt: skip
async def test_a_key_is_its_tenant(http: httpx.AsyncClient, engine: FakeEngine, headers: dict[str, str]) -> None:
    body = {"prompt": "x", "max_tokens": 1, "cache_salt": "same"}
    for sent in (headers, bearer(GRACE)):
        assert (await http.post("/v1/completions", json=body, headers=sent)).status_code == 200
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert (await http.post("/v1/chat/completions", json=chat, headers=headers)).status_code == 200
    assert [(request.tenant, request.cache_salt) for request in engine.seen] == [
        ("ada", "same"),
        ("grace", "same"),
        ("ada", ""),
    ]


@pytest.mark.parametrize("keys", [None])
async def test_without_keys_everybody_is_the_default_tenant(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=bearer(WRONG))
    assert engine.seen[0].tenant == "default"
    assert (await http.get("/metrics")).status_code == 200


def test_keys_that_nobody_has_read_do_not_open_the_server(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    with pytest.raises(AssertionError, match="nobody has read them"):
        build_app(engine, tokenizer, ServerConfig(api_keys="keys"), model_name="tiny")


def test_the_official_client(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=ADA) as client:
        assert client.models.list().data[0].id == "tiny"
    with openai.OpenAI(base_url=f"{url}/v1", api_key=WRONG) as client, pytest.raises(openai.AuthenticationError) as no:
        client.models.list()
    assert no.value.code == "invalid_api_key"
