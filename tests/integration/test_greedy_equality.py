"""Greedy text over HTTP equals transformers' in float32, however the KV cache is cut, shared and taken away."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import httpx
import pytest
from prompts import PROMPTS, Prompt
from serving import Server, serve

from octavo.engine.tokenizer import Tokenizer

from .conftest import OUTPUT_TOKENS

pytestmark = pytest.mark.model


class Variant(NamedTuple):
    """Options of one server. Every block size, chunk size and cache setting occurs, and each pair of them once."""

    block_size: int
    chunk: int
    prefix_caching: bool
    at_once: int = 16
    prompts: Sequence[Prompt] = PROMPTS
    num_blocks: int | None = None

    @property
    def options(self) -> list[str]:
        num_blocks = self.num_blocks or 4096 // self.block_size
        return [
            *("--dtype", "float32", "--max-model-len", "512"),
            *("--block-size", str(self.block_size), "--num-blocks", str(num_blocks)),
            *("--max-num-batched-tokens", str(self.chunk), "--max-num-seqs", str(min(16, self.chunk))),
            "--prefix-caching" if self.prefix_caching else "--no-prefix-caching",
        ]


# For what takes long: few and short, but one of them fills blocks.
SHORT = (*PROMPTS[:3], next(prompt for prompt in PROMPTS if prompt.name == "question"))

VARIANTS = {
    "block 16, chunk 512, cached": Variant(16, 512, True),
    "block 16, chunk 512, cached, alone": Variant(16, 512, True, at_once=1, prompts=SHORT),
    "block 1, chunk 512, cached": Variant(1, 512, True),
    "block 8, chunk 7, cached": Variant(8, 7, True),
    "block 32, chunk 7, uncached": Variant(32, 7, False, prompts=SHORT),
    "block 1, chunk 7, uncached": Variant(1, 7, False, prompts=SHORT),
    "block 8, chunk 512, uncached": Variant(8, 512, False),
    "block 32, chunk 512, cached": Variant(32, 512, True),
    "block 16, chunk 1, cached": Variant(16, 1, True, prompts=SHORT),
    "block 32, chunk 1, uncached": Variant(32, 1, False, prompts=SHORT),
}


async def complete(client: httpx.AsyncClient, prompt: Prompt) -> dict[str, object]:
    """One greedy request; returns the first choice."""
    body = {"temperature": 0, "max_tokens": OUTPUT_TOKENS, "return_token_ids": True}
    if prompt.turns:
        answer = await client.post("/v1/chat/completions", json={**body, "messages": prompt.messages})
    else:
        answer = await client.post("/v1/completions", json={**body, "prompt": prompt.text})
    assert answer.status_code == 200, answer.text
    choice: dict[str, object] = answer.json()["choices"][0]
    choice["text"] = choice["message"]["content"] if prompt.turns else choice["text"]  # type: ignore[index]
    return choice


async def complete_all(server: Server, prompts: Sequence[Prompt], at_once: int) -> dict[Prompt, dict[str, object]]:
    """All prompts, so many at the same time."""
    places = asyncio.Semaphore(at_once)

    async def one(prompt: Prompt) -> dict[str, object]:
        async with places:
            return await complete(client, prompt)

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        return dict(zip(prompts, await asyncio.gather(*map(one, prompts)), strict=True))


def check(got: dict[Prompt, dict[str, object]], expected: dict[Prompt, list[int]], tokenizer: Tokenizer) -> None:
    for prompt, choice in got.items():
        assert choice["token_ids"] == expected[prompt], prompt.name
        assert choice["text"] == tokenizer.decode(expected[prompt]), prompt.name


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
async def test_equals_transformers(variant: Variant, expected: dict[Prompt, list[int]], tokenizer: Tokenizer) -> None:
    with serve(*variant.options) as server:
        check(await complete_all(server, variant.prompts, variant.at_once), expected, tokenizer)
        if variant.prefix_caching and variant.block_size < 32:
            # Once more, now out of the cache.
            hits = server.metric("octavo_prefix_cache_tokens_total", result="hit_device")
            check(await complete_all(server, variant.prompts, variant.at_once), expected, tokenizer)
            assert server.metric("octavo_prefix_cache_tokens_total", result="hit_device") > hits


PRESSED = {
    "recompute, cached": (True, []),
    "recompute, uncached": (False, []),
    "swap, cached": (True, ["--swap-space", "64MiB", "--preemption", "swap"]),
    "swap, uncached": (False, ["--swap-space", "64MiB", "--preemption", "swap"]),
    "sinking": (True, ["--swap-space", "64MiB", "--preemption", "recompute"]),
    "swap to disk": (True, ["--swap-disk", "64MiB", "--swap-dir", tempfile.gettempdir(), "--preemption", "swap"]),
}


@pytest.mark.parametrize(("prefix_caching", "options"), PRESSED.values(), ids=PRESSED.keys())
async def test_equals_transformers_under_preemption(
    prefix_caching: bool, options: list[str], expected: dict[Prompt, list[int]], tokenizer: Tokenizer
) -> None:
    # The longest prompt and its output fill most of the pool: sixteen at once have to give way to each other.
    variant = Variant(8, 512, prefix_caching, num_blocks=64)
    with serve(*variant.options, "--watermark-ratio", "0", "--lookahead", "0", *options) as server:
        check(await complete_all(server, PROMPTS, at_once=16), expected, tokenizer)
        method = "swap" if "swap" in options else "recompute"
        assert server.metric("octavo_preemptions_total", method=method) > 0
        if "swap" in options:
            assert server.metric("octavo_swapped_tokens_total") > 0
        if method == "recompute" and options:
            assert server.metric("octavo_kv_copies_total", kind="device_to_host") > 0
        assert server.metric("octavo_kv_blocks", state="used") == 0
