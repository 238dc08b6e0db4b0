"""Clients of every kind at once: long and short, shared and new prompts, pins, several outputs, leavers, mistakes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from api_keys import ADA, GRACE, bearer

# Ids that every tokenizer of the tests has; the first few are special.
TOKENS = range(3, 250)
COMPLETIONS = "/v1/completions"


class _Client:
    def __init__(self, url: str, key: str, seed: int, ended: threading.Event) -> None:
        self.ended = ended
        self.http = httpx.Client(base_url=url, headers=bearer(key), timeout=60)
        self.chance = random.Random(seed)

    def prompt(self, length: int) -> list[int]:
        return self.chance.choices(TOKENS, k=length)

    def post(self, path: str = COMPLETIONS, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)


def _talk(client: _Client) -> None:
    """Streams answers to prompts that begin alike: hits, and growth that makes others give way."""
    begin = random.Random(1).choices(TOKENS, k=96)
    prompt = begin + client.prompt(client.chance.randrange(8, 40))
    body = {"prompt": prompt, "max_tokens": 160, "ignore_eos": True, "stream": True}
    with client.http.stream("POST", COMPLETIONS, json=body) as answer:
        for _ in answer.iter_lines():
            if client.ended.is_set():
                return


def _wander(client: _Client) -> None:
    """Prompts in turn, more than the pool holds: evictions, and hits in lower tiers."""
    topic = random.Random(client.chance.randrange(8)).choices(TOKENS, k=128)
    client.post(prompt=[*topic, 5], max_tokens=4)


def _sample(client: _Client) -> None:
    """Several outputs: forks and copies on write; and equal ones, whose blocks are duplicates."""
    for temperature in (0, 1):
        client.post(prompt=client.prompt(40), max_tokens=24, n=3, temperature=temperature, ignore_eos=True)


def _pin(client: _Client) -> None:
    """A pin that soon expires, and one more request for what was pinned."""
    prompt = client.prompt(48)
    client.post("/v1/cache/pins", prompt=prompt, ttl=1)
    client.post(prompt=[*prompt, 7], max_tokens=2)


def _leave(client: _Client) -> None:
    """Goes away in the middle of an answer."""
    body = {"prompt": client.prompt(20), "max_tokens": 120, "ignore_eos": True, "stream": True}
    with client.http.stream("POST", COMPLETIONS, json=body) as answer:
        next(answer.iter_lines())


def _err(client: _Client) -> None:
    """What is refused, what is not there, and a field that nobody knows."""
    client.post(prompt=client.prompt(4), max_tokens=-1)
    client.http.get("/v1/nothing")
    client.post(prompt=client.prompt(4), max_tokens=1, colour="green")


_KINDS: tuple[tuple[Callable[[_Client], None], str, int], ...] = (
    (_talk, ADA, 5),
    (_talk, GRACE, 2),
    (_wander, GRACE, 2),
    (_sample, ADA, 1),
    (_pin, ADA, 1),
    (_leave, GRACE, 1),
    (_err, ADA, 1),
)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Keeps a server busy for the length of a with-block; a client that fails makes the block fail at its end."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def work(act: Callable[[_Client], None], client: _Client) -> None:
        try:
            with client.http:
                while not ended.is_set():
                    act(client)
        except Exception as failure:
            failures.append(failure)

    clients = [
        threading.Thread(target=work, args=(act, _Client(url, key, seed, ended)), name=f"{act.__name__} {seed}")
        for act, key, count in _KINDS
        for seed in range(count)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join(60)
    if failures:
        raise failures[0]
