"""What a real engine tells of requests: why they wait, what giving way cost, and where their prompts were found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, GRACE, bearer
from serving import Server, serve

pytestmark = pytest.mark.model

BLOCKS = 24  # of 16 tokens
# Two of these do not fit into the pool together.
LARGE = {"max_tokens": 30, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A small pool that is filled to the brim, so that who has been let in may have to give way."""
    folder: Path = tmp_path_factory.mktemp("server")
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{ADA} tenant=ada\n{GRACE} tenant=grace\n{ADMIN} admin\n")
    options = f"--api-keys {keys} --tenants ada;grace --public-metrics --num-blocks {BLOCKS} --max-model-len 320"
    brim = "--dtype float32 --lookahead 0 --watermark-ratio 0"
    with serve(*options.split(), *brim.split(), log=folder / "log") as running:
        yield running


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=120, headers=bearer(ADA)) as client:
        yield client


def complete(http: httpx.AsyncClient, id: str, prompt: list[int], **body: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(
        http.post("/v1/completions", json={"prompt": prompt, **body}, headers={"x-request-id": id})
    )


async def told(http: httpx.AsyncClient, id: str, *states: str) -> Any:
    """What a request says once it is in one of these states."""
    for _ in range(2000):
        response = await http.get(f"/v1/requests/{id}")
        if response.status_code == 200 and response.json()["state"] in states:
            return response.json()
        await asyncio.sleep(0.01)
    raise AssertionError(f"{id} was never {states}: {response.text}")


async def test_a_request_that_waits_for_blocks_says_so_while_it_waits(http: httpx.AsyncClient) -> None:
    first = complete(http, "first", list(range(1000, 1240)), **LARGE)
    await told(http, "first", "running")
    second = complete(http, "second", list(range(2000, 2240)), **LARGE)
    waiting = await told(http, "second", "waiting")
    while waiting["prompts"][0]["wait"]["reason"] == "new":
        waiting = await told(http, "second", "waiting")
    (account,) = waiting["prompts"]
    assert account["wait"]["reason"] == "blocks"
    assert account["wait"]["short"] > 0
    assert f"{account['wait']['short']} block" in account["wait"]["text"]
    assert waiting["summary"].startswith("waiting for ")
    assert {card["id"] for card in (await http.get("/v1/requests")).json()["data"]} == {
        (await told(http, "first", "running"))["id"],
        waiting["id"],
    }
    for key, status in ((GRACE, 404), (ADMIN, 200)):
        assert (await http.get("/v1/requests/second", headers=bearer(key))).status_code == status
    assert (await first).json()["id"].startswith("cmpl-")
    assert (await second).status_code == 200
    (ended,) = (await told(http, "second", "finished"))["prompts"]
    waits = [moment for moment in ended["timeline"] if moment["kind"] == "waiting"]
    assert any("were missing" in moment["text"] for moment in waits)
    assert [moment["kind"] for moment in ended["timeline"]][-3:] == ["admitted", "prompt_done", "finished"]
    assert [moment["at"] for moment in ended["timeline"]] == sorted(moment["at"] for moment in ended["timeline"])


async def test_who_gave_way_tells_it_with_predicted_and_actual_cost(http: httpx.AsyncClient) -> None:
    # What tokens cost is measured first.
    for length in (40, 90, 140, 200):
        await complete(http, f"warm-{length}", list(range(3000 + length, 3000 + 2 * length)), max_tokens=4)
    body = {"max_tokens": 60, "ignore_eos": True, "temperature": 0, "octavo": {"explain": True}}
    pair = [complete(http, f"pair-{start}", list(range(start, start + 150)), **body) for start in (4000, 5000)]
    answers = {start: (await task).json() for start, task in zip((4000, 5000), pair, strict=True)}
    victim = next(start for start, answer in answers.items() if answer["octavo"]["preemptions"])
    other = answers[9000 - victim]
    record = answers[victim]["octavo"]["preemptions"][0]
    assert (record["method"], record["reason"]) == ("recompute", "growth")
    assert record["predicted"] == record["predicted_recompute"] > 0
    assert record["actual"] > 0
    assert record["waited"] > 0
    assert record["recomputed_tokens"] > 0
    assert record["beneficiary"] in ({"id": other["id"]}, None)
    assert "gave way" in record["text"]
    account = await told(http, f"pair-{victim}", "finished")
    texts = [moment["text"] for moment in account["prompts"][0]["timeline"]]
    assert record["text"] in texts
    assert any(line.endswith(record["text"]) for line in answers[victim]["octavo"]["timeline"])
    assert "gave way" in account["summary"]
    hers = await http.get(f"/v1/requests/{answers[victim]['id']}", headers=bearer(GRACE))
    assert hers.status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_what_was_cached_and_why_no_more(http: httpx.AsyncClient, stream: bool) -> None:
    prompt = list(range(6000 + stream, 6100 + stream))
    await complete(http, "before", prompt[:64], max_tokens=1)
    body = {"max_tokens": 3, "stream": stream, "octavo": {"explain": True}}
    response = await complete(http, "after", prompt, **body)
    if stream:
        *_, last, done = [line for line in response.text.split("\n\n") if line]
        assert done == "data: [DONE]"
        answer = json.loads(last.removeprefix("data: "))
        assert answer["choices"] == []
    else:
        answer = response.json()
    octavo = answer["octavo"]
    assert octavo["cached_tokens"] == 64
    assert octavo["prefix_ended"]["reason"] == "never_seen"
    assert octavo["queue_seconds"] >= 0
    assert octavo["prefill_seconds"] > 0
    assert octavo["preemptions"] == []
    assert "with 64 of 100 prompt tokens from the cache (64 device), 36 to compute" in " ".join(octavo["timeline"])
    assert octavo["timeline"][-1].endswith("finished with 3 tokens: it has as many tokens as it may")


async def test_another_tenant_does_not_learn_that_somebody_asked_the_same(http: httpx.AsyncClient) -> None:
    prompt, body = list(range(7000, 7064)), {"max_tokens": 1, "octavo": {"explain": True}}
    await complete(http, "mine", prompt, **body)
    asked = {"prompt": prompt, **body}
    hers = (await http.post("/v1/completions", json=asked, headers=bearer(GRACE))).json()["octavo"]
    assert hers["prefix_ended"]["reason"] == "never_seen"
    admins = (await http.post("/v1/completions", json=asked, headers=bearer(ADMIN))).json()["octavo"]
    assert admins["prefix_ended"]["reason"] == "other_salt"
