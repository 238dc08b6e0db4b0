"""Tenants by API key, against a real server: what they share, what they do not, and a queue with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_keys import ADA, ADMIN, GRACE, bearer
from serving import Server, serve

pytestmark = pytest.mark.model

MAX_WAITING = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sequence runs, two may wait; Ada has a second key."""
    folder: Path = tmp_path_factory.mktemp("server")
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{ADA} tenant=ada\n{ADA}-2 tenant=ada\n{GRACE} tenant=grace\n{ADMIN} admin\n")
    options = f"--api-keys {keys} --tenants ada;grace --public-metrics --num-blocks 1024 --max-num-seqs 1"
    with serve(*options.split(), "--max-waiting", str(MAX_WAITING), log=folder / "log") as running:
        yield running


def cached_tokens(server: Server, key: str, prompt: list[int], **body: str) -> int:
    asked = {"prompt": prompt, "max_tokens": 1, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=asked, headers=bearer(key), timeout=60).json()
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize("salt", [{}, {"cache_salt": "the same"}])
def test_only_keys_of_one_tenant_share_what_is_cached(server: Server, salt: dict[str, str]) -> None:
    prompt = list(range(1000 + len(salt), 1100))
    assert cached_tokens(server, ADA, prompt, **salt) == 0
    assert cached_tokens(server, GRACE, prompt, **salt) == 0
    assert cached_tokens(server, ADMIN, prompt, **salt) == 0
    for key in (ADA, f"{ADA}-2", GRACE, ADMIN):
        assert cached_tokens(server, key, prompt, **salt) >= 80
    assert cached_tokens(server, ADA, prompt, cache_salt="another") == 0


async def until(server: Server, state: str, count: int) -> None:
    for _ in range(1000):
        if await asyncio.to_thread(server.metric, "octavo_requests", state=state) == count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"there never were {count} {state} requests")


async def test_the_queue_is_full_at_its_bound_and_not_before(server: Server) -> None:
    body = {"prompt": "Count:", "max_tokens": 4000, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, headers=bearer(ADA)) as http:
        taken = [asyncio.create_task(http.post("/v1/completions", json=body))]
        await until(server, "running", 1)
        for waiting in range(MAX_WAITING):
            taken.append(asyncio.create_task(http.post("/v1/completions", json=body)))
            await until(server, "waiting", waiting + 1)
        for stream in (True, False):
            refused = await http.post("/v1/completions", json=body | {"stream": stream})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        assert not any(task.done() for task in taken)
        for task in taken:
            task.cancel()
        await until(server, "waiting", 0)
        assert (await http.post("/v1/completions", json=body | {"max_tokens": 1})).status_code == 200
