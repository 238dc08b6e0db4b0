"""From the engine's tokens to a client's text: one HTTP request's prompts, each with its n sequences."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import UNSET

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.messages import TOKEN_BYTES, AddRequest, SequenceDelta, TokenLogprob, unpacked
from octavo.errors import RequestFailedError
from octavo.server.course import Course
from octavo.server.explain import Explanation, Unexplained
from octavo.server.open_requests import OpenRequests
from octavo.server.request_timer import RequestTimer
from octavo.server.responses import PromptTokensDetails, Told, Usage
from octavo.server.streaming import merge

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in one sequence.

    Attributes:
        index: The choice it belongs to: sequences are numbered through all prompts.
        text: Text that no later token can change.
        token_ids: The tokens taken, with the one that ended the sequence.
        finish_reason: None while the sequence goes on; then "stop" or "length".
        stop_reason: The stop string or token that ended it, if one did and it is not the model's own.
        logprobs: One for each of ``token_ids``, if they were asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Sequence[TokenLogprob] = ()


class Generation:
    """One prompt and its n sequences.

    Args:
        request: What the engine gets.
        new_detokenizer: Makes a detokenizer for each sequence.
        keep_stop_token: Leave the text of a token that ended a sequence in it.
        own_stops: The model's end-of-sequence tokens, which are no reason worth telling.
        prompt_only: Only the prompt is of interest: the token that the engine samples is not given out.
        timer: Measures latencies.

    Attributes:
        cached_tokens: Prompt tokens whose KV came from the prefix cache.
        completion_tokens: Tokens taken so far, of all sequences.
        prompt_logprobs: Of the prompt's tokens by position, as far as they are known.
        course: How it went so far.
    """

    def __init__(
        self,
        request: AddRequest,
        *,
        new_detokenizer: Callable[[], IncrementalDetokenizer],
        keep_stop_token: bool,
        own_stops: frozenset[int],
        prompt_only: bool,
        timer: RequestTimer,
    ) -> None:
        self.request = request
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.prompt_logprobs: dict[int, TokenLogprob] = {}
        self.course = Course()
        self._sequences = [new_detokenizer() for _ in range(request.sampling.n)]
        self._keep_stop_token = keep_stop_token
        self._own_stops = own_stops
        self._prompt_only = prompt_only
        self._timer = timer

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt) // TOKEN_BYTES

    async def run(self, client: EngineClient) -> AsyncGenerator[Piece, None]:
        """Generates. Closing the iterator, or a stop string in every sequence, aborts the request in the engine."""
        running = set(range(len(self._sequences)))
        with self._timer as timer:
            async with aclosing(client.generate(self.request)) as deltas:
                async for delta in deltas:
                    if delta.index not in running and delta.finish_reason != "error":  # which is the whole request's
                        continue
                    piece = self._take(delta)
                    if piece.finish_reason is not None:
                        running.remove(delta.index)
                        if delta.finish_reason is None:  # a stop string, which the engine knows nothing of
                            client.end_sequence(self.request.request_id, delta.index)
                    if not running:
                        timer.finished(piece.finish_reason or "stop")
                    yield piece
                    if not running:
                        break

    def _take(self, delta: SequenceDelta) -> Piece:
        self.course.note(delta)
        if delta.finish_reason in ("error", "abort"):
            raise RequestFailedError(delta.error or "the request was aborted")
        self._timer.take(delta)
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.prompt_logprobs |= delta.prompt_logprobs
        if self._prompt_only:
            return Piece(delta.index, "", [], delta.finish_reason and "length")
        piece = self._decode(delta)
        self.completion_tokens += len(piece.token_ids)
        return piece

    def _decode(self, delta: SequenceDelta) -> Piece:
        sequence = self._sequences[delta.index]
        hide_last = delta.stop_token_id is not None and not self._keep_stop_token
        before = sequence.num_tokens
        text = sequence.push(delta.token_ids[:-1] if hide_last else delta.token_ids)
        if delta.finish_reason is not None:
            text += sequence.flush()
        if sequence.stopped_by is not None:
            taken = slice(sequence.num_tokens - before)
            ids, logprobs = delta.token_ids[taken], delta.logprobs[taken]
            return Piece(delta.index, text, ids, "stop", sequence.stopped_by, logprobs)
        reason = self._stop_reason(delta)
        return Piece(delta.index, text, delta.token_ids, delta.finish_reason, reason, delta.logprobs)

    def _stop_reason(self, delta: SequenceDelta) -> int | None:
        return None if delta.stop_token_id in self._own_stops else delta.stop_token_id


class Batch:
    """All generations of one HTTP request.

    Args:
        generations: One for each prompt, all with the same n.
        client: The engine.
        open_requests: Where the batch is listed while it runs.
        explain: Tells what happened to it; None if nobody asks.

    Attributes:
        names: Under which it can be aborted while it runs.
        finish_reasons: Choice → why it ended, as clients are told; of those that have.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        client: EngineClient,
        open_requests: OpenRequests,
        explain: Callable[[], Awaitable[Explanation | Unexplained]] | None = None,
    ) -> None:
        self.generations = generations
        self.names: tuple[str, ...] = ()
        self.finish_reasons: dict[int, str] = {}
        self._client = client
        self._open_requests = open_requests
        self._explain = explain

    @property
    def n(self) -> int:
        """Sequences per prompt."""
        return self.generations[0].request.sampling.n

    @property
    def size(self) -> int:
        """Choices in the response."""
        return len(self.generations) * self.n

    def prompt_of(self, index: int) -> list[int]:
        """The prompt that a choice continues."""
        return unpacked(self.generations[index // self.n].request.prompt)

    def prompt_logprobs_of(self, index: int) -> list[TokenLogprob | None]:
        """Log-probabilities of the prompt that a choice continues, as far as they are known; the first has none."""
        generation = self.generations[index // self.n]
        return [generation.prompt_logprobs.get(position) for position in range(generation.prompt_tokens)]

    async def run(self) -> AsyncGenerator[Piece, None]:
        """Generates all sequences at once; pieces come as the engine makes them."""
        with self._open_requests.entered([generation.request for generation in self.generations], self.names):
            runs = [generation.run(self._client) for generation in self.generations]
            async with aclosing(runs[0] if len(runs) == 1 else self._merged(runs)) as pieces:
                async for piece in pieces:
                    if piece.finish_reason is not None:
                        self.finish_reasons[piece.index] = piece.finish_reason
                    yield piece

    async def _merged(self, runs: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
        async with aclosing(merge(runs)) as pieces:
            async for number, piece in pieces:
                yield replace(piece, index=number * self.n + piece.index)

    async def collect(self) -> list[Piece]:
        """Runs to the end and returns each choice as one piece."""
        pieces: list[list[Piece]] = [[] for _ in range(self.size)]
        async with aclosing(self.run()) as stream:
            async for piece in stream:
                pieces[piece.index].append(piece)
        return [_joined(parts) for parts in pieces]

    async def explanation(self) -> Told:
        """What happened to it, once it has ended, if its client has asked for that."""
        return UNSET if self._explain is None else await self._explain()

    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = sum(generation.prompt_tokens for generation in self.generations)
        completion = sum(generation.completion_tokens for generation in self.generations)
        cached = sum(generation.cached_tokens for generation in self.generations)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))


def _joined(parts: Sequence[Piece]) -> Piece:
    last = parts[-1]
    text = "".join(part.text for part in parts)
    token_ids = [id for part in parts for id in part.token_ids]
    logprobs = [logprob for part in parts for logprob in part.logprobs]
    return Piece(last.index, text, token_ids, last.finish_reason, last.stop_reason, logprobs)
