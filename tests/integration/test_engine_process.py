"""The engine in its own process: aborts, faults, death and return."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from octavo.config import EngineConfig
from octavo.engine.client import ProcessEngineClient
from octavo.engine.messages import AddRequest, packed
from octavo.engine.prepare import prepare_model
from octavo.errors import EngineDeadError, EngineUnavailableError, InvalidRequestError, NeverFitsError
from octavo.scheduler.sampling import SamplingParams

pytestmark = pytest.mark.model


@pytest.fixture
async def client() -> AsyncIterator[ProcessEngineClient]:
    config = EngineConfig.of(num_blocks=512, max_model_len=1024, max_num_seqs=16)
    client = ProcessEngineClient(config, prepare_model(config))
    await client.start()
    yield client
    await client.close()


def request(prompt: list[int], **sampling: object) -> AddRequest:
    return AddRequest(uuid.uuid4().hex, packed(prompt), SamplingParams(temperature=0.0, **sampling))  # type: ignore[arg-type]


async def read(client: ProcessEngineClient, wanted: AddRequest, *, until: float = 2.0) -> list[int]:
    """The request's tokens, leaving after the given share of them."""
    tokens: list[int] = []
    stream = client.generate(wanted)
    try:
        async for delta in stream:
            tokens += delta.token_ids
            if len(tokens) >= until * (wanted.sampling.max_tokens or 1):
                break
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return tokens


async def test_two_hundred_requests_with_random_aborts_leave_no_block_behind(client: ProcessEngineClient) -> None:
    chance = random.Random(5)
    shared = [chance.randrange(1000, 9000) for _ in range(64)]

    async def one() -> None:
        await asyncio.sleep(chance.random() * 2)
        prompt = shared[: chance.randrange(65)] + [
            chance.randrange(1000, 9000) for _ in range(1 + chance.randrange(40))
        ]
        until = chance.choice([0.0, 0.3, 0.7, 2.0, 2.0])
        await read(
            client, request(prompt, max_tokens=chance.randrange(1, 24), n=chance.choice([1, 1, 1, 3])), until=until
        )

    await asyncio.gather(*(one() for _ in range(200)))
    # While all rows are taken, siblings wait instead of being forked off; with rows to spare they must be.
    await read(client, request(shared, max_tokens=4, n=3), until=3.0)
    assert await client.check_integrity() == []
    deadline = time.monotonic() + 5
    while client.stats.running or client.stats.device.used:
        assert time.monotonic() < deadline, client.stats
        await asyncio.sleep(0.05)
    stats = client.stats
    assert stats.device.cached + stats.device.free == stats.device.total
    assert stats.finished["abort"] > 20
    assert stats.prefix_hits["device"] > 0
    assert stats.forks > 0


async def test_a_request_that_can_never_fit_is_refused_at_once(client: ProcessEngineClient) -> None:
    with pytest.raises(NeverFitsError, match="at most 1024 fit") as caught:
        await read(client, request([1] * 1020, max_tokens=100))
    assert caught.value.largest == 1024


async def test_a_token_outside_the_vocabulary_is_refused(client: ProcessEngineClient) -> None:
    with pytest.raises(InvalidRequestError, match="token id 10000000"):
        await read(client, request([10_000_000], max_tokens=1))
    assert len(await read(client, request([1, 2, 3], max_tokens=4, ignore_eos=True))) == 4


async def test_a_killed_engine_is_noticed_and_replaced(client: ProcessEngineClient) -> None:
    streams = [
        asyncio.create_task(read(client, request([5, 6, 7], max_tokens=1000, ignore_eos=True))) for _ in range(4)
    ]
    while client.stats.generated_tokens < 8:
        await asyncio.sleep(0.02)
    assert client.engine_pid is not None
    os.kill(client.engine_pid, signal.SIGKILL)
    killed = time.monotonic()
    results = await asyncio.gather(*streams, return_exceptions=True)
    assert time.monotonic() - killed < 1.0
    assert all(isinstance(result, EngineDeadError) for result in results), results
    assert not client.ready
    with pytest.raises(EngineUnavailableError, match="restarting"):
        await read(client, request([1], max_tokens=1))
    while not client.ready:
        assert time.monotonic() - killed < 60
        await asyncio.sleep(0.1)
    assert client.restarts == 1
    assert len(await read(client, request([5, 6, 7], max_tokens=4, ignore_eos=True))) == 4


async def test_a_frozen_engine_costs_readiness_within_two_seconds(client: ProcessEngineClient) -> None:
    assert client.ready
    assert client.engine_pid is not None
    os.kill(client.engine_pid, signal.SIGSTOP)
    try:
        frozen = time.monotonic()
        while client.ready:
            assert time.monotonic() - frozen < 2.0
            await asyncio.sleep(0.05)
        assert client.status == "silent"
    finally:
        os.kill(client.engine_pid, signal.SIGCONT)
    while not client.ready:
        assert time.monotonic() - frozen < 10
        await asyncio.sleep(0.05)
