"""What people try in a request's body: to run a template, to have things fetched or logged, to cost too much."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.server.limits import MAX_MESSAGES, MAX_SEQUENCES

CHAT = "/v1/chat/completions"


async def chat(http: httpx.AsyncClient, content: Any = "x", **body: Any) -> httpx.Response:
    return await http.post(CHAT, json={"messages": [{"role": "user", "content": content}], "max_tokens": 1, **body})


def test_no_middleware_hides_disconnects(app: FastAPI) -> None:
    assert app.user_middleware
    assert not any(issubclass(middleware.cls, BaseHTTPMiddleware) for middleware in app.user_middleware)


# ── chat templates ────────────────────────────────────────────────────────────────────────────────────────────


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{% for n in range(10**9) %}x{% endfor %}",
    "{{ messages.append('x') }}",
    "{{ raise_exception('x') }}",
    "{% include '/etc/passwd' %}",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("text", ESCAPES)
async def test_a_template_in_a_message_is_text(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, text: str
) -> None:
    assert (await chat(http, text)).status_code == 200
    assert text in tokenizer.decode(unpacked(engine.seen[0].prompt), skip_special_tokens=False)


@pytest.mark.parametrize("text", ["{{ messages }}", "", ESCAPES[0]])
async def test_a_template_of_the_requests_own_is_refused(http: httpx.AsyncClient, text: str) -> None:
    error = (await chat(http, chat_template=text)).json()["error"]
    assert (error["param"], error["code"]) == ("chat_template", "unsupported_parameter")


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": [{"role": "system", "content": "x"}]},
        {"add_generation_prompt": False},
        {"tools": []},
        {"raise_exception": 1},
        {"self": 1},
        {"enable_thinking": {"__class__": 1}},
        {"date_string": ["x"]},
    ],
)
async def test_variables_that_are_the_servers_cannot_be_set(http: httpx.AsyncClient, variables: dict[str, Any]) -> None:
    response = await chat(http, chat_template_kwargs=variables)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"


async def test_a_conversation_too_long_for_the_window_is_not_tokenized(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", _never)
    response = await http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES // 4)})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def _never(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("this should not have been asked for")


# ── text only ─────────────────────────────────────────────────────────────────────────────────────────────────


URL = "http://169.254.169.254/latest/meta-data"
PARTS = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "video_url", "video_url": {"url": URL}},
    {"type": "file", "file": {"file_id": URL}},
    {"type": "text", "text": {"url": URL}},
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection, and any name that is looked up, is a failure."""
    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, _never)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("part", PARTS)
async def test_nothing_is_fetched_for_a_request(http: httpx.AsyncClient, part: dict[str, Any]) -> None:
    response = await chat(http, [{"type": "text", "text": "see"}, part])
    assert response.status_code == 400
    assert "text" in response.json()["error"]["message"]


@pytest.mark.usefixtures("offline")
async def test_an_address_in_a_text_is_text(http: httpx.AsyncClient) -> None:
    assert (await chat(http, f"![x]({URL})")).status_code == 200


# ── logs ──────────────────────────────────────────────────────────────────────────────────────────────────────


SECRET = "correct-horse-battery-staple"


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that hold a secret: answered, refused, and in a place that nobody knows."""
    message = {"role": "user", "content": SECRET}
    for body in (
        {},
        {"n": 0},
        {"colour": SECRET},
        {"stop": [SECRET] * 5},
        {"stream": True},
        {"logit_bias": {SECRET: 1}},
    ):
        yield "/v1/completions", {"prompt": SECRET, "max_tokens": 1, **body}
        yield CHAT, {"messages": [message], "max_tokens": 1, **body}
    yield CHAT, {"messages": [{"role": "assistant", "content": SECRET}]}
    yield CHAT, {"messages": [message], "tools": [{"type": "function", "function": {"name": SECRET + "!"}}]}
    yield "/tokenize", {"prompt": SECRET}


@pytest.mark.parametrize("failure", [None, ZeroDivisionError("a bug")])
async def test_what_is_asked_is_not_logged(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture, failure: Exception | None
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.refusal = failure
    for path, body in bodies():
        assert (await http.post(path, json=body)).status_code in (200, 400, 500)
    assert SECRET not in caplog.text
    assert ("a bug" in caplog.text) == (failure is not None)


async def test_a_name_in_the_log_cannot_begin_a_line(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await chat(http, **{"x\n2026-01-01 ERROR octavo: forged\x1b[2J": 1})
    assert "forged" in caplog.text
    assert not any("\n" in record.getMessage() or "\x1b" in record.getMessage() for record in caplog.records)


# ── fan-out ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fan", [{"n": 2}, {"best_of": 2}, {"n": 2, "use_beam_search": True}])
async def test_every_way_to_multiply_is_counted(
    http: httpx.AsyncClient, engine: FakeEngine, fan: dict[str, Any]
) -> None:
    prompts = [[5]] * (MAX_SEQUENCES // 2 + 1)
    response = await http.post("/v1/completions", json={"prompt": prompts, "max_tokens": 1, **fan})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert not engine.seen
