"""The load generator's arithmetic, and how it reads what servers send."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loadgen.client import (
    Dialect,
    RequestFailed,
    StreamReader,
    Target,
    body_of,
    find_dialect,
    generation_config,
    ignore_eos,
    plain,
)
from loadgen.load import RequestLoad, Run, SessionLoad
from loadgen.metrics import Slo, Spread, Trace, finite, percentile, summarize
from loadgen.prompts import PromptMaker
from loadgen.sse import EventParser


def trace(*arrivals: float, planned: float = 0.0, **values: Any) -> Trace:
    values = {"sent": planned, "ended": arrivals[-1], "output_tokens": len(arrivals)} | values
    return Trace(planned=planned, arrivals=list(arrivals), **values)


class TestPercentile:
    @pytest.mark.parametrize("size", [1, 2, 3, 10, 101])
    @pytest.mark.parametrize("percent", [0, 50, 90, 99, 100])
    def test_is_numpys(self, size: int, percent: float) -> None:
        values = np.sort(np.random.default_rng(size).normal(size=size))
        assert percentile(values.tolist(), percent) == pytest.approx(np.percentile(values, percent))

    def test_of_nothing_is_nan(self) -> None:
        assert math.isnan(percentile([], 50))
        assert math.isnan(Spread.of([]).mean)


class TestTrace:
    def test_latencies_count_from_the_planned_time(self) -> None:
        seen = trace(3.0, 3.5, 4.5, planned=1.0, sent=2.0)
        assert (seen.ttft, seen.e2e, seen.itl) == (2.0, 3.5, [0.5, 1.0])

    def test_tpot_divides_by_the_servers_tokens_not_by_pieces(self) -> None:
        assert trace(1.0, 5.0, output_tokens=9).tpot == 0.5

    def test_one_token_has_no_tpot(self) -> None:
        assert trace(1.0).tpot is None


class TestSummary:
    def test_rates_and_goodput(self) -> None:
        traces = [trace(0.1, 0.2, 0.3, prompt_tokens=7), trace(1.0, 1.1, 1.2, prompt_tokens=7)]
        got = summarize(traces, duration=2.0, slo=Slo(ttft=0.5, tpot=0.2), client_cpu=0.1)
        assert (got.request_rate, got.output_rate, got.total_rate, got.goodput) == (1.0, 3.0, 10.0, 0.5)
        assert got.client_cpu_ratio == 0.05

    def test_failures_are_counted_by_message_and_kept_out_of_latencies(self) -> None:
        traces = [trace(0.1, 0.2), Trace(planned=0.0, sent=0.0, error="HTTP 429: full")]
        got = summarize(traces, duration=1.0, slo=Slo(), client_cpu=0.0)
        assert (got.requests, got.failed, got.errors) == (2, 1, {"HTTP 429: full": 1})
        assert got.ttft.max == 0.1
        assert got.goodput == 1.0

    def test_nothing_answered(self) -> None:
        got = summarize([Trace(planned=0.0, sent=0.0, error="x")], duration=1.0, slo=Slo(), client_cpu=0.0)
        assert got.output_rate == 0.0
        assert finite({"a": [got.ttft.p50, 1.0]}) == {"a": [None, 1.0]}

    def test_turns_and_prefix_hits(self) -> None:
        traces = [trace(0.4, turn=0, prompt_tokens=10, cached_tokens=0)]
        traces += [trace(0.1, turn=1, prompt_tokens=30, cached_tokens=20)]
        got = summarize(traces, duration=1.0, slo=Slo(), client_cpu=0.0)
        assert (got.ttft_by_turn, got.cached_ratio) == ([0.4, 0.1], 0.5)


class TestEvents:
    STREAM = b': hello\n\ndata: {"a": 1}\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:[DONE]\n\n'

    @pytest.mark.parametrize("size", [1, 2, 7, 1000])
    def test_chunks_may_end_anywhere(self, size: int) -> None:
        parser = EventParser()
        pieces = [self.STREAM[i : i + size] for i in range(0, len(self.STREAM), size)]
        assert [event for piece in pieces for event in parser.feed(piece)] == [b'{"a": 1}', b"one\ntwo", b"[DONE]"]


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


class TestStream:
    def read(self, *chunks: bytes) -> Trace:
        reader = StreamReader(Trace(planned=0.0, sent=0.0))
        for now, chunk in enumerate(chunks):
            reader.feed(chunk, float(now))
        reader.close()
        return reader.trace

    def test_completion(self) -> None:
        got = self.read(
            event(choices=[{"text": "a"}]),
            event(choices=[{"text": "b", "finish_reason": "length"}]),
            event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 3}) + b"data: [DONE]\n\n",
        )
        assert (got.text, got.arrivals, got.ended, got.prompt_tokens, got.output_tokens) == ("ab", [0, 1], 1, 5, 3)
        assert got.counted_by_server

    def test_chats_opening_is_no_token(self) -> None:
        got = self.read(
            event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
            event(choices=[{"delta": {"content": "a"}}]),
            event(choices=[{"delta": {}, "finish_reason": "stop"}]),
        )
        assert (got.text, got.arrivals, got.ended, got.output_tokens) == ("a", [1], 2, 1)
        assert not got.counted_by_server

    @pytest.mark.parametrize(
        ("chunk", "reason"),
        [
            (event(choices=[{"text": "a"}]), "without a finish_reason"),
            (event(choices=[{"text": "", "finish_reason": "stop"}]), "empty"),
            (event(error={"message": "engine died"}), "engine died"),
            (event(error="out of blocks"), "out of blocks"),
            (b"data: nonsense\n\n", "not an event"),
        ],
    )
    def test_what_is_not_an_answer_fails(self, chunk: bytes, reason: str) -> None:
        with pytest.raises(RequestFailed, match=reason):
            self.read(chunk)


class FakeServer:
    """Answers as a server would that knows only some fields.

    Attributes:
        unwelcome: A field that makes it answer 422. refuse: How many further requests it refuses with a 503.
        bodies: What it was asked.
    """

    def __init__(self, unwelcome: str = "", refuse: int = 0) -> None:
        self.unwelcome = unwelcome
        self.refuse = refuse
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = json.loads(await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0])))
        if self.unwelcome in body:
            self._refusal(writer, 422, {"detail": f"unexpected {self.unwelcome}"})
        elif self.refuse:
            self.refuse -= 1
            self._refusal(writer, 503, {"error": {"message": "full"}})
        else:
            self.bodies.append(body)
            text = {"text": "x"} if "prompt" in body else {"delta": {"content": "x"}}
            stream = event(choices=[text]) * (body["max_tokens"] - 1)
            stream += event(choices=[text | {"finish_reason": "length"}])
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream), stream))
        await writer.drain()
        writer.close()

    def _refusal(self, writer: asyncio.StreamWriter, status: int, error: dict[str, Any]) -> None:
        raw = json.dumps(error).encode()
        writer.write(b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (status, len(raw), raw))

    async def serve(self, use: Callable[[Target], Any]) -> Any:
        async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await use(Target(f"http://127.0.0.1:{port}/v1", "fake", timeout=10.0))


async def run(server: FakeServer, load: RequestLoad | SessionLoad) -> Run:
    maker = PromptMaker(0, None)
    return await server.serve(lambda target: load.run(target, maker, slo=Slo(), progress=lambda trace: None))


class TestClient:
    @pytest.mark.parametrize(
        ("unwelcome", "dialect"), [("", "ignore_eos"), ("ignore_eos", "generation_config"), ("temperature", "")]
    )
    async def test_finds_how_to_ask_for_equal_lengths(self, unwelcome: str, dialect: str) -> None:
        server = FakeServer(unwelcome or "nothing")
        if dialect:
            assert (await server.serve(find_dialect)).dialect.__name__ == dialect
        else:
            with pytest.raises(RequestFailed, match="unexpected temperature"):
                await server.serve(find_dialect)

    def test_messages_go_to_chat(self) -> None:
        path, body = body_of(Target("", "m"), [{"role": "user", "content": "hi"}], 4)
        assert path == "/chat/completions"
        assert json.loads(body)["max_tokens"] == 4

    @pytest.mark.parametrize("dialect", [ignore_eos, plain])
    def test_samples_as_told(self, dialect: Dialect) -> None:
        sampling = {"temperature": 0.7, "top_k": 5}
        asked = json.loads(body_of(Target("", "m", dialect=dialect, sampling=sampling), "hi", 4)[1])
        assert {name: asked[name] for name in sampling} == sampling
        assert json.loads(body_of(Target("", "m", dialect=dialect), "hi", 4)[1])["temperature"] == 0

    def test_transformers_samples_as_told(self) -> None:
        def config_of(target: Target) -> dict[str, object]:
            asked = json.loads(body_of(target, "hi", 4)[1])
            return {"asked": asked["temperature"], **json.loads(asked["generation_config"])}

        drawn = config_of(Target("", "m", dialect=generation_config, sampling={"top_p": 0.5}))
        assert drawn == {"asked": 1, "max_new_tokens": 4, "eos_token_id": -1, "do_sample": True, "top_p": 0.5}
        assert config_of(Target("", "m", dialect=generation_config))["do_sample"] is False

    async def test_nobody_there(self) -> None:
        with pytest.raises(RequestFailed, match="no connection"):
            await find_dialect(Target("http://127.0.0.1:1/v1", "m"))


class TestLoads:
    @pytest.mark.parametrize("rate", [None, 500.0])
    async def test_sends_every_request_once(self, rate: float | None) -> None:
        server = FakeServer("nothing", refuse=2)
        load = RequestLoad(
            concurrency=3, requests=7, prompt_tokens=4, shared_prefix_tokens=5, output_tokens=2, rate=rate
        )
        summary = (await run(server, load)).summary
        assert (summary.requests, summary.failed, summary.errors) == (7, 2, {"HTTP 503: full": 2})
        assert summary.output_tokens == 10
        prompts = {body["prompt"] for body in server.bodies}
        assert len(prompts) == 5
        assert len({tuple(prompt.split()[:5]) for prompt in prompts}) == 1

    async def test_a_conversation_repeats_the_servers_words(self) -> None:
        server = FakeServer("nothing")
        got = await run(server, SessionLoad(sessions=1, turns=3, prompt_tokens=2, output_tokens=4))
        assert [len(body["messages"]) for body in server.bodies] == [1, 3, 5]
        assert server.bodies[2]["messages"][1] == {"role": "assistant", "content": "xxxx"}
        assert len(got.summary.ttft_by_turn) == 3

    async def test_a_broken_conversation_counts_its_missing_turns(self) -> None:
        got = await run(FakeServer("nothing", refuse=1), SessionLoad(sessions=1, turns=3, prompt_tokens=2))
        assert (got.summary.requests, got.summary.failed) == (3, 3)


class TestPrompts:
    async def test_the_length_is_exact_even_if_words_are_not_tokens(self) -> None:
        async def letters(text: str) -> int:
            return sum(1 + len(word) // 5 for word in text.split())

        maker = PromptMaker(3, letters)
        prefix = await maker.text("prefix", 50)
        assert await letters(prefix) == 50
        assert await letters(await maker.text("a", 20, prefix=prefix)) == 70

    async def test_the_seed_and_the_label_decide(self) -> None:
        texts = [
            await PromptMaker(seed, None).text(label, 20) for seed, label in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
        ]
        assert texts[0] == texts[1]
        assert len(set(texts)) == 3
