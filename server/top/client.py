"""Asks a server for what `octavo top` shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from octavo.server.chat.client import ChatError, open_http
from octavo.server.top.readings import Readings

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 8 * 2**20

KEY_VARIABLE = "OPENAI_API_KEY"

Body = TypeVar("Body", bound=BaseModel)


class Card(BaseModel):
    """One open request."""

    id: str
    age: float
    tenant: str | None = None


class _Cards(BaseModel):
    data: list[Card]
    total: int


class _Wait(BaseModel):
    text: str


class Moment(BaseModel):
    """Something that happened to a request, ``at`` seconds after it arrived."""

    at: float
    kind: str
    text: str


class _Prompt(BaseModel):
    wait: _Wait | None = None
    seconds: float
    timeline: list[Moment]


class StoryTold(BaseModel):
    """What has happened to one request."""

    id: str
    state: str
    prompt_tokens: int
    cached_tokens: int
    summary: str
    prompts: list[_Prompt]

    @property
    def now(self) -> str:
        """Why it waits if it does, and else all in one sentence."""
        return next((prompt.wait.text for prompt in self.prompts if prompt.wait is not None), self.summary)

    @property
    def preemptions(self) -> list[tuple[float, str]]:
        """How many seconds ago it gave way, and how."""
        return [
            (max(0.0, prompt.seconds - moment.at), moment.text)
            for prompt in self.prompts
            for moment in prompt.timeline
            if moment.kind == "preempted"
        ]


@dataclass(frozen=True)
class Snapshot:
    """What a server tells at one time.

    Attributes:
        at: Seconds on the monotonic clock.
        metrics: None where the key may not read them.
        cards: The open requests, as many as are told. total: how many there are.
        stories: Of the first of them, by id.
        notes: What could not be read, and why.
    """

    at: float
    metrics: Readings | None
    cards: Sequence[Card]
    total: int
    stories: dict[str, StoryTold]
    notes: list[str] = field(default_factory=list)


class TopClient:
    """One server.

    Args:
        url: Its address; a ``/v1`` at its end is not part of it. api_key: sent with every request, if there is one.

    Raises:
        ChatError: The address or the key cannot be one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._http = open_http(self.url, api_key, httpx.Timeout(TIMEOUT_SECONDS))

    def read(self, most_stories: int) -> Snapshot:
        """All that it tells now, with the stories of so many requests.

        Raises:
            ChatError: It cannot be reached, refuses, or is no Octavo.
        """
        notes: list[str] = []
        metrics = self._metrics(notes)
        cards = self._get(_Cards, "/v1/requests")
        stories: dict[str, StoryTold] = {}
        for card in cards.data[:most_stories]:
            story = self._story(card.id, notes)
            if story is not None:
                stories[card.id] = story
        return Snapshot(time.monotonic(), metrics, cards.data, cards.total, stories, list(dict.fromkeys(notes)))

    def _metrics(self, notes: list[str]) -> Readings | None:
        status, text = self._fetch("/metrics")
        if status == HTTPStatus.FORBIDDEN:
            notes.append("the pool and the speed are told to keys that are marked admin only")
            return None
        self._check(status, text, "/metrics")
        try:
            return Readings.of(text.decode())
        except ValueError as error:
            raise ChatError(f"{self.url}/metrics does not answer as Octavo does: {error}") from error

    def _story(self, id: str, notes: list[str]) -> StoryTold | None:
        status, text = self._fetch(f"/v1/requests/{quote(id, safe='')}")
        if status == HTTPStatus.NOT_FOUND:  # it has ended meanwhile
            return None
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            notes.append("the engine tells no stories now: it is not ready")
            return None
        self._check(status, text, "/v1/requests/…")
        return self._decode(StoryTold, text)

    def _get(self, kind: type[Body], path: str) -> Body:
        status, text = self._fetch(path)
        self._check(status, text, path)
        return self._decode(kind, text)

    def _fetch(self, path: str) -> tuple[int, bytes]:
        try:
            with self._http.stream("GET", f"{self.url}{path}") as response:
                text = b""
                for piece in response.iter_bytes():
                    text += piece
                    if len(text) > MAX_BYTES:
                        raise ChatError(f"{self.url}{path} answers with more than {MAX_BYTES:,} bytes")
                return response.status_code, text
        except httpx.ConnectError as error:
            raise ChatError(
                f"nothing answers at {self.url} ({error}); start a server with `octavo serve`, or name one with --url"
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise ChatError(f"the connection to {self.url} failed: {error or type(error).__name__}") from error

    def _check(self, status: int, text: bytes, path: str) -> None:
        if status == HTTPStatus.UNAUTHORIZED:
            raise ChatError(f"{self.url} asks for an API key that it knows; give one with --key, or in ${KEY_VARIABLE}")
        if status == HTTPStatus.NOT_FOUND:
            raise ChatError(f"{self.url} has no {path}: it is no Octavo, or one without explanations")
        if status >= HTTPStatus.BAD_REQUEST:
            raise ChatError(f"{self.url}{path} answered with {status}: {text[:200].decode(errors='replace')}")

    def _decode(self, kind: type[Body], text: bytes) -> Body:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise ChatError(f"{self.url} does not answer as Octavo does: {reason}") from error
