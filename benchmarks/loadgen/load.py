"""Which requests are sent, and when."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from loadgen.client import Message, Prompt, RequestFailed, Target, complete
from loadgen.metrics import Slo, Summary, Trace, summarize
from loadgen.prompts import PromptMaker

Progress = Callable[[Trace], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Run:
    """One load, run once."""

    summary: Summary
    traces: list[Trace]


@dataclass(frozen=True, kw_only=True)
class RequestLoad:
    """Independent requests: so many at a time (closed loop), or at random times (open loop).

    Attributes:
        concurrency: Requests in flight; the next is sent when one ends. Without effect if there is a rate.
        prompt_tokens: Each request's own part of the prompt. With chat, the template's tokens come on top.
        shared_prefix_tokens: What all prompts begin with, before their own part.
        rate: Requests per second, at the times of a Poisson process, however many are still in flight.
    """

    endpoint: Literal["completions", "chat"] = "completions"
    concurrency: int = 16
    requests: int = 48
    prompt_tokens: int = 200
    shared_prefix_tokens: int = 0
    output_tokens: int = 128
    rate: float | None = None

    @property
    def size(self) -> int:
        """How many requests it sends."""
        return self.requests

    async def run(self, target: Target, maker: PromptMaker, *, slo: Slo, progress: Progress) -> Run:
        """Makes the prompts, then sends them; a request that fails is part of the result."""
        prefix = await maker.text("prefix", self.shared_prefix_tokens) if self.shared_prefix_tokens else ""
        texts = [await maker.text(f"request {i}", self.prompt_tokens, prefix=prefix) for i in range(self.requests)]
        prompts = texts if self.endpoint == "completions" else [[_user(text)] for text in texts]

        async def send(prompt: Prompt, planned: float | None = None) -> Trace:
            trace = await _attempt(target, prompt, self.output_tokens, planned)
            progress(trace)
            return trace

        if self.rate is not None:
            return await _measured(slo, self._open_loop(prompts, send, maker.rng("arrivals")))
        return await _measured(slo, self._closed_loop(prompts, send))

    async def _closed_loop(self, prompts: Sequence[Prompt], send: Callable[[Prompt], Awaitable[Trace]]) -> list[Trace]:
        queue = iter(prompts)

        async def worker() -> list[Trace]:
            return [await send(prompt) for prompt in queue]

        return list(itertools.chain(*await asyncio.gather(*(worker() for _ in range(self.concurrency)))))

    async def _open_loop(
        self, prompts: Sequence[Prompt], send: Callable[[Prompt, float], Awaitable[Trace]], rng: random.Random
    ) -> list[Trace]:
        assert self.rate is not None

        async def at(planned: float, prompt: Prompt) -> Trace:
            await asyncio.sleep(planned - time.perf_counter())
            return await send(prompt, planned)

        times = _poisson(self.rate, time.perf_counter(), rng)
        return await asyncio.gather(*(at(planned, prompt) for planned, prompt in zip(times, prompts, strict=False)))


@dataclass(frozen=True, kw_only=True)
class SessionLoad:
    """Conversations side by side. Each turn sends the whole history, the server's own answers included.

    Attributes:
        prompt_tokens: What the user says in each turn.
        think_time: Mean seconds between an answer and the next turn (exponentially distributed).
    """

    sessions: int = 8
    turns: int = 5
    prompt_tokens: int = 100
    shared_prefix_tokens: int = 0
    output_tokens: int = 64
    think_time: float = 0.0

    @property
    def size(self) -> int:
        """How many requests it sends."""
        return self.sessions * self.turns

    async def run(self, target: Target, maker: PromptMaker, *, slo: Slo, progress: Progress) -> Run:
        """Holds the conversations; one that fails ends there, and its missing turns count as failed."""
        prefix = await maker.text("prefix", self.shared_prefix_tokens) if self.shared_prefix_tokens else ""
        system = [{"role": "system", "content": prefix}] if prefix else []
        texts = [
            [await maker.text(f"session {i} turn {turn}", self.prompt_tokens) for turn in range(self.turns)]
            for i in range(self.sessions)
        ]

        async def converse(index: int) -> list[Trace]:
            rng = maker.rng(f"session {index}")
            history: list[Message] = [*system]
            traces: list[Trace] = []
            for turn, text in enumerate(texts[index]):
                if turn and self.think_time:
                    await asyncio.sleep(rng.expovariate(1 / self.think_time))
                history.append(_user(text))
                trace = await self._turn(target, history, turn, broken=bool(traces and traces[-1].error))
                history.append({"role": "assistant", "content": trace.text})
                traces.append(trace)
                progress(trace)
            return traces

        async def converse_all() -> list[Trace]:
            return list(itertools.chain(*await asyncio.gather(*map(converse, range(self.sessions)))))

        return await _measured(slo, converse_all())

    async def _turn(self, target: Target, history: list[Message], turn: int, *, broken: bool) -> Trace:
        if broken:
            now = time.perf_counter()
            trace = Trace(planned=now, sent=now, error="an earlier turn of the conversation failed")
        else:
            trace = await _attempt(target, history, self.output_tokens)
        trace.turn = turn
        return trace


Load = RequestLoad | SessionLoad


def parameters(load: Load) -> dict[str, Any]:
    """The load for a report."""
    return {"kind": "sessions" if isinstance(load, SessionLoad) else "requests", **asdict(load)}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _poisson(rate: float, start: float, rng: random.Random) -> Iterator[float]:
    while True:
        yield start
        start += rng.expovariate(rate)


async def _attempt(target: Target, prompt: Prompt, max_tokens: int, planned: float | None = None) -> Trace:
    """Like `complete`, with a failure as part of the trace."""
    now = time.perf_counter()
    trace = Trace(planned=now if planned is None else planned, sent=now)
    try:
        await complete(target, prompt, max_tokens, trace)
    except RequestFailed as error:
        trace.error = str(error)
    return trace


def run_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` on uvloop where there is one: the client's own time is part of what it measures."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def _measured(slo: Slo, sending: Awaitable[list[Trace]]) -> Run:
    start, cpu = time.perf_counter(), time.process_time()
    traces = await sending
    duration, client_cpu = time.perf_counter() - start, time.process_time() - cpu
    return Run(summarize(traces, duration=duration, slo=slo, client_cpu=client_cpu), traces)
