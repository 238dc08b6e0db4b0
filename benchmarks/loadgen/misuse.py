"""Requests as clients send them on a bad day: each kind sends one and tells how it ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx

WORDS = [
    "river",
    "stone",
    "lantern",
    "winter",
    "copper",
    "orchard",
    "signal",
    "harbour",
    "violet",
    "engine",
    "meadow",
    "cipher",
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
BAD = [
    {"n": 0},
    {"max_tokens": 10**6},
    {"logit_bias": {"-1": 1}},
    {"guided_regex": "("},
    {"guided_json": {"type": "colour"}},
    {"response_format": {"type": "xml"}},
    {"stop": ["a"] * 9},
    {"prompt": [10**9]},
]


class Unfinished(Exception):
    """A stream ended without a word."""


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def conversation(chance: random.Random, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [
        {"role": roles[i % 2], "content": text(chance, 1 + chance.randrange(60))} for i in range(chance.choice((1, 3)))
    ]
    return {"messages": turns, "max_tokens": 1 + chance.randrange(48), **more}


async def whole(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    response = await http.post(path, json=body)
    response.json()
    return str(response.status_code)


async def streamed(http: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None) -> str:
    """Reads a stream: to its end, or so many lines."""
    async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        if response.status_code != 200:
            return str(response.status_code)
        read, last = 0, ""
        async for line in response.aiter_lines():
            read, last = read + 1, line.removeprefix("data: ") or last
            if read == leave_after:
                return "left"
    if last == "[DONE]":
        return "200"
    if '"error"' in last:
        return "error event"
    raise Unfinished


async def chat(http: httpx.AsyncClient, chance: random.Random) -> str:
    return await whole(http, "/v1/chat/completions", conversation(chance))


async def stream(http: httpx.AsyncClient, chance: random.Random) -> str:
    return await streamed(http, conversation(chance))


async def leaver(http: httpx.AsyncClient, chance: random.Random) -> str:
    return await streamed(http, conversation(chance, max_tokens=200), leave_after=1 + chance.randrange(60))


async def hasty_leaver(http: httpx.AsyncClient, chance: random.Random) -> str:
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.random()):
            return await chat(http, chance)
    return "left"


async def several(http: httpx.AsyncClient, chance: random.Random) -> str:
    prompts = [text(chance, 8) for _ in range(3)]
    return await whole(http, "/v1/completions", {"prompt": prompts, "n": 2, "max_tokens": 12, "logprobs": 2})


async def document(http: httpx.AsyncClient, chance: random.Random) -> str:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return await whole(http, "/v1/chat/completions", conversation(chance, max_tokens=64, response_format=wanted))


async def tool(http: httpx.AsyncClient, chance: random.Random) -> str:
    choice = chance.choice(("auto", "required"))
    return await streamed(http, conversation(chance, max_tokens=64, tools=[TOOL], tool_choice=choice))


async def bad(http: httpx.AsyncClient, chance: random.Random) -> str:
    return await whole(http, "/v1/completions", {"prompt": "x", **chance.choice(BAD)})


KINDS: dict[str, Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]] = {
    kind.__name__: kind for kind in (chat, stream, leaver, hasty_leaver, several, document, tool, bad)
}
