"""What a route reads from while its request runs: new tokens, merged while nobody reads."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator

from octavo.engine.messages import SequenceDelta, StreamEnd, StreamStart, TokenLogprob, TokenScores
from octavo.engine.scores import unpacked_scores

_NOT_STARTED = StreamStart(0, 0, 0.0, 0.0)


class RequestStream:
    """The open end of one request, filled by the client's receiving task and read by one route.

    A slow reader gets fewer, longer deltas: tokens that pile up are merged per sequence.

    Args:
        request_id: The front end's id. n: sequences to wait for. prompt_len: tokens of the prompt.
    """

    def __init__(self, request_id: str, n: int, prompt_len: int) -> None:
        self._request_id = request_id
        self._open = set(range(n))
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)
        self._ends: dict[int, StreamEnd] = {}
        self._starts: dict[int, StreamStart] = {}
        self._preemptions: Counter[int] = Counter()
        self._prompt_len = prompt_len
        self._logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
        self._prompt_logprobs: dict[int, TokenLogprob] = {}
        self._embedding: bytes | None = None
        self._pin: int | None = None
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether the engine has nothing more to say about this request."""
        return not self._open or self._failure is not None

    def push(self, index: int, token: int) -> None:
        """Adds a token of one sequence."""
        if index in self._open:
            self._tokens[index].append(token)
            self._news.set()

    def start(self, index: int, start: StreamStart) -> None:
        """Notes that a sequence got its first token."""
        self._starts.setdefault(index, start)

    def give_way(self, index: int) -> None:
        """Notes a preemption."""
        self._preemptions[index] += 1

    def score(self, index: int, scores: TokenScores) -> None:
        """Adds log-probabilities: of the token that comes with them, or of some of the prompt."""
        found = unpacked_scores(scores)
        if scores.position >= self._prompt_len:
            if index in self._open:
                self._logprobs[index] += found
        elif index == 0:  # all sequences have the same prompt
            self._prompt_logprobs.update(enumerate(found, scores.position))

    def embed(self, vector: bytes) -> None:
        """Notes the prompt's vector, which comes with the first token."""
        self._embedding = vector

    def pin(self, number: int) -> None:
        """Notes the prompt's pin, which is made with the first token."""
        self._pin = number

    def end(self, index: int, end: StreamEnd) -> None:
        """Ends one sequence; an error ends them all, dropped ones included."""
        if end.reason == "error":
            self._open.clear()
        elif index in self._open:
            self._open.discard(index)
        else:
            return
        self._ends[index] = end
        self._news.set()

    def drop(self, index: int) -> None:
        """Stops listening to one sequence; nothing happens if it has ended meanwhile."""
        self._open.discard(index)
        self._tokens.pop(index, None)
        self._logprobs.pop(index, None)
        self._news.set()

    def fail(self, failure: Exception) -> None:
        """Ends the request with an exception, raised after what has arrived already."""
        if not self.done:
            self._failure = failure
            self._news.set()

    async def deltas(self) -> AsyncGenerator[SequenceDelta, None]:
        """New tokens until every sequence has ended.

        Raises:
            OctavoError: What `fail` was called with.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            for delta in self._take():
                yield delta
            if self._failure is not None:
                raise self._failure
            if self.done and not self._tokens and not self._ends:
                return

    def _take(self) -> list[SequenceDelta]:
        tokens, ends = self._tokens, self._ends
        self._tokens, self._ends = defaultdict(list), {}
        return [self._delta(index, tokens.get(index, []), ends.get(index)) for index in sorted({*tokens, *ends})]

    def _delta(self, index: int, tokens: list[int], end: StreamEnd | None) -> SequenceDelta:
        start = self._starts.get(index, _NOT_STARTED)
        return SequenceDelta(
            request_id=self._request_id,
            index=index,
            token_ids=tokens,
            finish_reason=end.reason if end else None,
            stop_token_id=end.stop_token_id if end else None,
            cached_tokens=start.cached_tokens,
            queue_seconds=start.queue_seconds,
            prefill_seconds=start.prefill_seconds,
            preemptions=self._preemptions[index],
            error=end.error if end else None,
            logprobs=self._logprobs.pop(index, []),
            prompt_logprobs=self._take_prompt_logprobs() if index == 0 else {},
            embedding=self._embedding if index == 0 else None,
            pin=self._pin if index == 0 else None,
        )

    def _take_prompt_logprobs(self) -> dict[int, TokenLogprob]:
        taken, self._prompt_logprobs = self._prompt_logprobs, {}
        return taken
