"""Talks to an OpenAI-compatible endpoint: which model it has, and the pieces of an answer as they come."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

CONNECT_SECONDS = 10.0
MAX_EVENT_BYTES = 2**20
EXAMPLE = "http://127.0.0.1:8000/v1"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ChatError(Exception):
    """The endpoint cannot be reached, refuses, or breaks off; the message is one line for the person who asked."""


class Details(BaseModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int | None = None


class Usage(BaseModel):
    """What an answer took, in tokens."""

    completion_tokens: int
    prompt_tokens_details: Details | None = None


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Fault(BaseModel):
    message: str


class _Failure(BaseModel):
    error: _Fault | str


class Chunk(BaseModel):
    """One event of a streamed answer."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Fault | str | None = None

    @property
    def text(self) -> str:
        """What it adds to the answer."""
        return "".join(choice.delta.content or "" for choice in self.choices)

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ends here, if it does."""
        return next((choice.finish_reason for choice in self.choices if choice.finish_reason), None)


class _Card(BaseModel):
    id: str


class _Cards(BaseModel):
    data: list[_Card]


Body = TypeVar("Body", bound=BaseModel)


def open_http(url: str, api_key: str | None, timeout: httpx.Timeout) -> httpx.Client:
    """What asks a server at an address, with a key if there is one.

    Raises:
        ChatError: The address or the key cannot be one.
    """
    headers = {"authorization": f"Bearer {_checked(api_key.strip())}"} if api_key else {}
    try:
        host = httpx.URL(url).host
        if not url.startswith(("http://", "https://")) or not host:
            raise ChatError(f"{url!r} is not an address; write it as {EXAMPLE}")
        return httpx.Client(headers=headers, timeout=timeout, trust_env=host not in _LOOPBACK)  # no proxy leads there
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise ChatError(f"{url!r} cannot be used: {error}") from error


class ChatClient:
    """One endpoint.

    Args:
        url: Its address, ``/v1`` included. api_key: sent with every request, if there is one.

    Raises:
        ChatError: The address or the key cannot be one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        # An answer may take its time; who waits for it has Ctrl-C.
        self._http = open_http(self.url, api_key, httpx.Timeout(None, connect=CONNECT_SECONDS))

    def first_model(self) -> str:
        """The first model that the endpoint offers.

        Raises:
            ChatError: It has none, or does not say.
        """
        with self._request("GET", "/models") as response:
            cards = self._decode(_Cards, response.read()).data
        if not cards:
            raise ChatError(f"{self.url} serves no model")
        return cards[0].id

    def stream(self, model: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Generator[Chunk]:
        """Asks for an answer; closing the iterator ends the request.

        Raises:
            ChatError: The endpoint refuses, or the answer breaks off.
        """
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        with self._request("POST", "/chat/completions", json=body) as response:
            for data in _events(response):
                if data == b"[DONE]":
                    return
                chunk = self._decode(Chunk, data)
                if chunk.error is not None:
                    raise ChatError(_words(chunk.error))
                yield chunk
        raise ChatError(f"{self.url} ended the answer before it was complete")

    @contextmanager
    def _request(self, method: str, path: str, **body: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, f"{self.url}{path}", **body) as response:
                if not response.is_success:
                    raise ChatError(_refusal(response, self.url))
                yield response
        except httpx.ConnectError as error:
            raise ChatError(
                f"nothing answers at {self.url} ({error}); start a server with `octavo serve`, or name one with --url"
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise ChatError(f"the connection to {self.url} failed: {error or type(error).__name__}") from error

    def _decode(self, kind: type[Body], data: str | bytes) -> Body:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise ChatError(f"{self.url} does not answer as an OpenAI-compatible endpoint does: {reason}") from error


def _events(response: httpx.Response) -> Iterator[bytes]:
    """The data of a response's events, each of one line.

    Lines end in LF: httpx's ``iter_lines`` would also cut at separators that JSON leaves inside texts.
    """
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
        if len(rest) > MAX_EVENT_BYTES:
            raise ChatError(f"the server sent an event of more than {MAX_EVENT_BYTES:,} bytes")


def _checked(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ChatError("the API key has characters that no header can carry")
    return key


def _words(error: _Fault | str) -> str:
    return error if isinstance(error, str) else error.message


def _refusal(response: httpx.Response, url: str) -> str:
    """What the endpoint says about a status that is not a success."""
    advice = ""
    if response.status_code == httpx.codes.NOT_FOUND and not url.endswith("/v1"):
        advice = "; most endpoints end in /v1, and this --url does not"
    try:
        return f"{_words(_Failure.model_validate_json(response.read()).error)}{advice}"
    except ValidationError:
        return f"{response.request.url} answered with {response.status_code} {response.reason_phrase}{advice}"
