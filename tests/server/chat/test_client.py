"""What the client of `octavo chat` makes of endpoints, whatever they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from octavo.server.chat import client as client_module
from octavo.server.chat.client import ChatClient, ChatError

URL = "http://model.example/v1"
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ChatClient]:
    """Makes a client whose endpoint answers as a function says."""
    real = httpx.Client

    def make(answer: Answer, url: str = URL, api_key: str | None = None) -> ChatClient:
        def client(**options: Any) -> httpx.Client:
            return real(**options, transport=httpx.MockTransport(answer))

        monkeypatch.setattr(httpx, "Client", client)
        return ChatClient(url, api_key)

    return make


def says(text: str | bytes, status: int = 200) -> Answer:
    return lambda request: httpx.Response(status, content=text)


def ask(client: ChatClient) -> str:
    return "".join(chunk.text for chunk in client.stream("m", [{"role": "user", "content": "?"}], {}))


def test_the_first_model_and_the_key(answering: Callable[..., ChatClient]) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("authorization")))
        return httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})

    assert answering(answer, URL + "/", "key\n").first_model() == "a"
    assert answering(answer).first_model() == "a"
    assert seen == [(f"{URL}/models", "Bearer key"), (f"{URL}/models", None)]


def test_texts_may_hold_any_separator(answering: Callable[..., ChatClient]) -> None:
    # Those at which str.splitlines cuts: JSON may hold them as they are.
    text = "a\u2028b\u2029c\x85d"
    event = f'{{"choices": [{{"delta": {{"content": "{text}"}}}}]}}'
    body = f": a comment\r\n\r\nevent: x\r\ndata: {event}\r\n\r\ndata:{event}\n\ndata: [DONE]\n\n"
    assert ask(answering(says(body.encode()))) == text * 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says('{"error": {"message": "no [such] model"}}', 404), r"^no \[such\] model$"),
        (says('{"error": "too much"}', 429), "^too much$"),
        (says("<html>", 502), "answered with 502 Bad Gateway"),
        (says("", 307), "answered with 307 Temporary Redirect"),
        (says('data: {"error": {"message": "the engine died"}}\n\n'), "^the engine died$"),
        (says('data: {"choices": []}\n\n'), "ended the answer before it was complete"),
        (says("data: {\n\n"), "does not answer as an OpenAI-compatible endpoint does: .*JSON"),
        (says('data: {"choices": 5}\n\n'), "does not answer as an OpenAI-compatible endpoint does: choices"),
        (says("data: " + "x" * (client_module.MAX_EVENT_BYTES + 1)), "an event of more than 1,048,576 bytes"),
    ],
)
def test_what_goes_wrong_is_told(answering: Callable[..., ChatClient], answer: Answer, words: str) -> None:
    with pytest.raises(ChatError, match=words):
        ask(answering(answer))


def test_what_goes_wrong_on_the_way(answering: Callable[..., ChatClient]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def hang_up(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("the peer hung up")

    with pytest.raises(ChatError, match=r"nothing answers at .* \(refused\); start a server with `octavo serve`"):
        ask(answering(refuse))
    with pytest.raises(ChatError, match=r"the connection to .* failed: the peer hung up"):
        ask(answering(hang_up))


def test_a_model_has_to_be_there(answering: Callable[..., ChatClient]) -> None:
    with pytest.raises(ChatError, match="serves no model"):
        answering(says('{"data": []}')).first_model()
    with pytest.raises(ChatError, match="does not answer as"):
        answering(says("hello")).first_model()
    with pytest.raises(ChatError, match="most endpoints end in /v1"):
        answering(says("", 404), url="http://model.example").first_model()


@pytest.mark.parametrize("url", ["", "model", "ftp://model", "http://", "http://[::1", "http://a:b:c", "http://\udcff"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ChatError):
        ChatClient(url)


@pytest.mark.parametrize("key", ["schlüssel", "a\nb"])
def test_keys_that_cannot_be_sent_are_not_shown(key: str) -> None:
    with pytest.raises(ChatError, match="the API key has characters") as raised:
        ChatClient(URL, key)
    assert key not in str(raised.value)
