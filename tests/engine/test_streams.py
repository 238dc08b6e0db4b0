"""What a route reads: merged while it is slow, complete at the end, and an exception when the engine is gone."""

from __future__ import annotations

import asyncio

import pytest

from octavo.engine.messages import SequenceDelta, StreamEnd, StreamStart
from octavo.engine.streams import RequestStream
from octavo.errors import EngineDeadError


async def collect(stream: RequestStream) -> list[SequenceDelta]:
    return [delta async for delta in stream.deltas()]


async def test_tokens_that_pile_up_are_merged() -> None:
    stream = RequestStream("r", 1, prompt_len=3)
    stream.start(0, StreamStart(0, 16, 0.5, 0.25))
    stream.give_way(0)
    for token in range(5):
        stream.push(0, token)
    stream.end(0, StreamEnd(0, "length"))
    (delta,) = await collect(stream)
    assert (delta.token_ids, delta.finish_reason, delta.cached_tokens) == ([0, 1, 2, 3, 4], "length", 16)
    assert (delta.queue_seconds, delta.prefill_seconds, delta.preemptions) == (0.5, 0.25, 1)


async def test_what_is_made_of_the_prompt_comes_with_the_first_sequence() -> None:
    stream = RequestStream("r", 2, prompt_len=3)
    stream.embed(b"vector")
    stream.pin(7)
    for index in range(2):
        stream.push(index, 1)
        stream.end(index, StreamEnd(index, "length"))
    assert [(d.embedding, d.pin) for d in await collect(stream)] == [(b"vector", 7), (None, None)]


async def test_the_stream_ends_when_all_sequences_have() -> None:
    stream = RequestStream("r", 2, prompt_len=3)
    reader = asyncio.create_task(collect(stream))
    stream.push(0, 1)
    await asyncio.sleep(0)
    stream.end(0, StreamEnd(0, "stop", 2))
    await asyncio.sleep(0)
    assert not reader.done()
    stream.push(1, 3)
    stream.end(1, StreamEnd(1, "length"))
    assert [(d.index, d.token_ids, d.finish_reason) for d in await reader][-1] == (1, [3], "length")
    assert stream.done


async def test_a_failure_comes_after_what_has_arrived() -> None:
    stream = RequestStream("r", 1, prompt_len=3)
    stream.push(0, 7)
    stream.fail(EngineDeadError("gone"))
    deltas = stream.deltas()
    assert (await anext(deltas)).token_ids == [7]
    with pytest.raises(EngineDeadError, match="gone"):
        await anext(deltas)


async def test_an_error_in_one_sequence_ends_the_request() -> None:
    stream = RequestStream("r", 3, prompt_len=3)
    stream.end(1, StreamEnd(1, "error", error="bad"))
    (delta,) = await collect(stream)
    assert (delta.index, delta.finish_reason, delta.error) == (1, "error", "bad")


async def test_nothing_more_comes_of_a_dropped_sequence() -> None:
    stream = RequestStream("r", 2, prompt_len=3)
    stream.drop(0)
    stream.push(0, 1)
    stream.end(0, StreamEnd(0, "stop"))
    stream.push(1, 2)
    stream.end(1, StreamEnd(1, "length"))
    assert [(d.index, d.token_ids) for d in await collect(stream)] == [(1, [2])]


async def test_dropping_the_last_sequence_ends_the_stream() -> None:
    stream = RequestStream("r", 1, prompt_len=3)
    stream.drop(0)
    assert await collect(stream) == []


async def test_dropping_a_sequence_that_has_ended_leaves_its_siblings_open() -> None:
    stream = RequestStream("r", 2, prompt_len=3)
    stream.end(1, StreamEnd(1, "stop"))
    stream.drop(1)
    assert not stream.done
    stream.push(0, 5)
    stream.end(0, StreamEnd(0, "length"))
    assert next((d.index, d.token_ids) for d in await collect(stream)) == (0, [5])


async def test_an_error_told_for_a_dropped_sequence_ends_the_others() -> None:
    stream = RequestStream("r", 2, prompt_len=3)
    stream.drop(1)
    stream.end(1, StreamEnd(1, "error", error="bad"))
    (delta,) = await collect(stream)
    assert delta.error == "bad"
