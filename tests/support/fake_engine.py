"""An engine client that says what a test tells it to."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable

import numpy as np
import numpy.typing as npt

from octavo.engine.messages import (
    TOKEN_BYTES,
    AddRequest,
    EngineInfo,
    EngineStats,
    PinInfo,
    SequenceDelta,
    TierBlocks,
    TokenLogprob,
    unpacked,
)
from octavo.engine.views import BlockView, LiveView, Story
from octavo.errors import AbortedError, EngineUnavailableError, NotFoundError


def scored(token: int, tops: int | None) -> TokenLogprob:
    """What this engine thinks of a token: half as likely as the next one."""
    top = ((token + 1, -0.5), (token, -1.0), (token + 2, -2.0))
    return TokenLogprob(-1.0, 2, top[:tops])


class FakeEngine:
    """Repeats each prompt, token by token, in every sequence.

    Attributes:
        script: What every sequence says instead; it ends with `eos` unless max_tokens comes first.
        delay: Seconds before each step. per_delta: tokens in one delta.
        refusal: Raised before a request's first token.
        failure: Raised after ``fail_after`` steps. error: ends the request there with finish_reason "error".
        open: Requests that are running. closed: request id → when its iterator was closed. seen: every request.
        ended: (request id, index) of sequences that their readers left.
        view, blocks: What `live` and `block` answer. stories: what `story` answers, by request id.
        cached: Prompts that can be pinned at once. kept: the pins there are. pin_room: blocks that pins may take.
    """

    def __init__(self, *, vocab_size: int = 512, max_model_len: int = 256, eos: int = 2) -> None:
        self.info = EngineInfo(
            model_name="tiny",
            vocab_size=vocab_size,
            hidden_size=8,
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
        self.view = LiveView(0, 0, 0.0, [], [], 0, [], 0, [])
        self.blocks: dict[tuple[str, int], BlockView] = {}
        self.stories: dict[str, Story] = {}
        self.cached: set[bytes] = set()
        self.kept: list[PinInfo] = []
        self.pin_room = 8
        self._pin_numbers = itertools.count(1)
        self._aborts: dict[str, asyncio.Event] = {}
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
        self._aborts[request.request_id] = asyncio.Event()
        try:
            async for delta in self._deltas(request):
                yield delta
        finally:
            self.open.discard(request.request_id)
            del self._aborts[request.request_id]
            self.closed[request.request_id] = time.monotonic()

    async def _deltas(self, request: AddRequest) -> AsyncGenerator[SequenceDelta, None]:
        output, reason = self._output(request)
        sampling, scores = request.sampling, request.sampling.logprobs is not None
        for step, start in enumerate(range(0, len(output), self.per_delta)):
            await self._pause(self._aborts[request.request_id])
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
                    logprobs=[scored(token, sampling.logprobs) for token in tokens] if scores else [],
                    prompt_logprobs=self._score_prompt(request) if not (step or index) else {},
                    embedding=self.embed(unpacked(request.prompt)).tobytes() if sampling.pooling else None,
                    pin=self._pin_prompt(request) if not (step or index) else None,
                )

    def _score_prompt(self, request: AddRequest) -> dict[int, TokenLogprob]:
        tops = request.sampling.prompt_logprobs
        tokens = enumerate(unpacked(request.prompt))
        return {} if tops is None else {position: scored(token, tops) for position, token in tokens if position}

    def _output(self, request: AddRequest) -> tuple[list[int], str]:
        sampling = request.sampling
        prompt = unpacked(request.prompt)
        room = self.info.max_model_len - len(prompt)
        limit = min(room, sampling.max_tokens or room)
        output = prompt * (limit // len(prompt) + 1) if self.script is None else [*self.script, self.eos]
        return output[:limit], "stop" if len(output) <= limit else "length"

    def embed(self, prompt: list[int]) -> npt.NDArray[np.float32]:
        """What this engine makes of a prompt: its tokens, in the order of the hidden state's numbers."""
        return np.resize(np.array(prompt, dtype=np.float32), self.info.hidden_size)

    def _pin_prompt(self, request: AddRequest) -> int | None:
        if request.pin_ttl is None:
            return None
        pin = self._keep(request.prompt, request.pin_ttl, request.tenant)
        return 0 if pin is None else pin.number

    def _keep(self, prompt: bytes, ttl: float, tenant: str) -> PinInfo | None:
        blocks = len(prompt) // TOKEN_BYTES // self.info.block_size
        if sum(pin.num_blocks for pin in self.kept) + blocks > self.pin_room:
            return None
        pin = PinInfo(next(self._pin_numbers), tenant, blocks * self.info.block_size, blocks, ttl)
        self.kept.append(pin)
        return pin

    async def _pause(self, aborted: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._stopped, aborted)]
        await asyncio.wait(waits, timeout=self.delay, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._stopped.is_set():
            raise EngineUnavailableError("the server is shutting down")
        if aborted.is_set():
            raise AbortedError("the request was aborted")

    def end_sequence(self, request_id: str, index: int) -> None:
        self.ended.add((request_id, index))

    def abort(self, request_id: str) -> bool:
        if request_id in self._aborts:
            self._aborts[request_id].set()
        return request_id in self._aborts

    async def check_integrity(self) -> list[str]:
        return []

    async def pin(self, prompt: bytes, ttl: float, *, tenant: str, cache_salt: str = "") -> PinInfo | None:
        if self.refusal is not None:
            raise self.refusal
        return self._keep(prompt, ttl, tenant) if prompt in self.cached else None

    async def pins(self) -> list[PinInfo]:
        return self.kept

    async def unpin(self, number: int) -> bool:
        left = [pin for pin in self.kept if pin.number != number]
        found, self.kept = len(left) < len(self.kept), left
        return found

    async def live(self, *, fresh: bool, most_cells: int) -> LiveView:
        return self.view

    async def block(self, tier: str, block: int) -> BlockView:
        if (tier, block) not in self.blocks:
            raise NotFoundError(f"there is no block {block} in {tier}")
        return self.blocks[tier, block]

    async def story(self, request_id: str) -> Story | None:
        return self.stories.get(request_id)

    def request_of(self, key: int) -> str | None:
        return self.seen[key - 1].request_id if 0 < key <= len(self.seen) else None

    async def close(self) -> None:
        self.status = "stopped"
        self._stopped.set()
