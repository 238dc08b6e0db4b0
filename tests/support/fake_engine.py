"""An engine client that says what a test tells it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from octavo.engine.messages import AddRequest, EngineInfo, EngineStats, SequenceDelta, TierBlocks, unpacked
from octavo.errors import EngineUnavailableError


class FakeEngine:
    """Repeats each prompt, token by token, in every sequence.

    Attributes:
        script: What every sequence says instead; it ends with `eos` unless max_tokens comes first.
        delay: Seconds before each step. per_delta: tokens in one delta.
        refusal: Raised before a request's first token.
        failure: Raised after ``fail_after`` steps. error: ends the request there with finish_reason "error".
        open: Requests that are running. closed: request id → when its iterator was closed. seen: every request.
        ended: (request id, index) of sequences that their readers left.
    """

    def __init__(self, *, vocab_size: int = 512, max_model_len: int = 256, eos: int = 2) -> None:
        self.info = EngineInfo(
            model_name="tiny",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            eos_token_ids=[eos],
            block_size=16,
            num_blocks=64,
            max_num_seqs=8,
            device="cpu",
            dtype="float32",
            attention_backend="fake",
            report=["a fake engine"],
        )
        self.stats = EngineStats(blocks={"device": TierBlocks(64, 3, 4, 57)}, copies={"copy_on_write": 5})
        self.status = "ready"
        self.restarts = 0
        self.eos = eos
        self.script: list[int] | None = None
        self.delay = 0.0
        self.per_delta = 1
        self.cached_tokens = 0
        self.refusal: Exception | None = None
        self.failure: Exception | None = None
        self.fail_after = 2
        self.error: str | None = None
        self.open: set[str] = set()
        self.ended: set[tuple[str, int]] = set()
        self.closed: dict[str, float] = {}
        self.seen: list[AddRequest] = []
        self.start_failure: Exception | None = None
        self._stopped = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    async def start(self, on_progress: Callable[[str], None] = lambda text: None) -> EngineInfo:
        on_progress("pretending to load")
        await asyncio.sleep(self.delay)
        if self.start_failure is not None:
            raise self.start_failure
        self.status = "ready"
        return self.info

    async def generate(self, request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        self.seen.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.open.add(request.request_id)
        try:
            async for delta in self._deltas(request):
                yield delta
        finally:
            self.open.discard(request.request_id)
            self.closed[request.request_id] = time.monotonic()

    async def _deltas(self, request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        output, reason = self._output(request)
        for step, start in enumerate(range(0, len(output), self.per_delta)):
            await self._pause()
            if step == self.fail_after and self.failure is not None:
                raise self.failure
            failed = step == self.fail_after and self.error is not None
            tokens = output[start : start + self.per_delta]
            last = start + self.per_delta >= len(output)
            for index in range(request.sampling.n):
                if (request.request_id, index) in self.ended:
                    continue
                yield SequenceDelta(
                    request.request_id,
                    index,
                    tokens,
                    finish_reason="error" if failed else reason if last else None,
                    stop_token_id=self.eos if last and reason == "stop" else None,
                    cached_tokens=self.cached_tokens,
                    error=self.error if failed else None,
                )

    def _output(self, request: AddRequest) -> tuple[list[int], str]:
        sampling = request.sampling
        prompt = unpacked(request.prompt)
        room = self.info.max_model_len - len(prompt)
        limit = min(room, sampling.max_tokens or room)
        endless = prompt * (limit // len(prompt) + 1)
        output = endless if self.script is None else [*self.script, self.eos]
        return output[:limit], "stop" if len(output) <= limit else "length"

    async def _pause(self) -> None:
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait({stopped}, timeout=self.delay)
        stopped.cancel()
        if self._stopped.is_set():
            raise EngineUnavailableError("the server is shutting down")

    def end_sequence(self, request_id: str, index: int) -> None:
        self.ended.add((request_id, index))

    async def check_integrity(self) -> list[str]:
        return []

    async def close(self) -> None:
        self.status = "stopped"
        self._stopped.set()
