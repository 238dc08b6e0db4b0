"""LLM: the same engine inside this process, for offline use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.block_manager.pins import Pin
from octavo.config import DEFAULT_MODEL, EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.messages import AddRequest, EngineInfo, EngineStats, TokenLogprob
from octavo.engine.prepare import prepare_model
from octavo.engine.scores import packed_scores, unpacked_scores
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError, PinBudgetError, RequestFailedError
from octavo.scheduler.plan import Scores, StepResult
from octavo.scheduler.request import FinishReason
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import split_stream, stream_of
from octavo.scheduler.validation import check_tokens

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Output:
    """One sampled continuation.

    Attributes:
        index: Which of the request's n, from 0.
        text: Without the stop token or stop string that ended it.
        token_ids: All sampled tokens, a stop token included.
        finish_reason: "stop" or "length".
        logprob: Of all its tokens together, where it was chosen by that (``best_of``, beam search).
        logprobs: Of each of ``token_ids``, if they were asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprob: float | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class RequestOutput:
    """What came of one prompt.

    Attributes:
        prompt_token_ids: The prompt as the model saw it.
        outputs: n continuations. cached_tokens: the prompt's prefix hit.
        prompt_logprobs: Of the prompt's tokens by position, from the second on, if they were asked for.
        embedding: Of the prompt, ``hidden_size`` numbers, if ``pooling`` was asked for; not normalized.
    """

    prompt_token_ids: list[int]
    outputs: list[Output]
    cached_tokens: int = 0
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    embedding: list[float] | None = None

    @property
    def text(self) -> str:
        """The first continuation's text."""
        return self.outputs[0].text


class LLM:
    """Generates text from a model, batching as the server does.

    Example:
        >>> llm = LLM()
        >>> llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0].text

    Args:
        model: A folder, a GGUF file, a Hub id, or a built-in name.
        **options: Any option of `octavo.config.EngineConfig`, by its field name.

    Raises:
        SetupError: The model or an option does not do.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        config = EngineConfig.of(model=model, **options)
        prepared = prepare_model(config)
        self.tokenizer = Tokenizer(prepared.folder)
        self.core = EngineCore.load(config, prepared.folder, name=prepared.name)
        self._next_key = 1

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self.core.info

    @property
    def stats(self) -> EngineStats:
        """The engine's counters now."""
        return self.core.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: str | Sequence[str] = (),
        tenant: str = "",
        cache_salt: str = "",
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Continues prompts, as many at once as fit.

        Args:
            prompts: Texts or lists of token ids, or one of them.
            sampling: For all prompts, or one for each.
            stop: Strings that end an output; they are not part of it.
            tenant: Whose requests they are, one of the option ``tenants``; "" is the default tenant.
            cache_salt: Requests with different salts never share KV blocks.
            priority: Smaller is more urgent, with the option ``policy="priority"``.

        Returns:
            One entry for each prompt, in order.

        Raises:
            ClientError: A prompt or parameter is not acceptable; nothing is returned.
            RequestFailedError: A step failed on one of the prompts.
        """
        texts: list[Prompt] = [prompts] if _is_single(prompts) else list(prompts)  # type: ignore[arg-type, list-item]
        params = [sampling] * len(texts) if not isinstance(sampling, Sequence) else list(sampling)
        jobs: dict[int, _Job] = {}
        stops = [stop] if isinstance(stop, str) else list(stop)
        if stops and any(chosen is not None and chosen.chooses for chosen in params):
            raise InvalidRequestError(
                "stop strings cannot be used with best_of or beam search, which choose by tokens; use stop_token_ids",
                param="stop",
            )
        pending = list(zip(texts, params, strict=True))[::-1]
        try:
            while pending or any(not job.done for job in jobs.values()):
                # The queue is bounded; what does not fit into it yet is submitted between steps.
                while pending and self.core.has_room:
                    text, chosen = pending.pop()
                    ids = self._encode(text)
                    request = AddRequest(
                        "",
                        self._checked(ids),
                        chosen or SamplingParams(),
                        cache_salt=cache_salt,
                        tenant=tenant,
                        priority=priority,
                    )
                    self._submit(jobs, ids, request, stops)
                self._take(jobs, self.core.step())
        finally:
            # Whatever is still open, an exception or Ctrl-C ended it.
            self.core.abort(key for key, job in jobs.items() if not job.done)
        return [job.output for job in jobs.values()]

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        beam_width: int,
        max_tokens: int,
        n: int | None = None,
        length_penalty: float = 1.0,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        **options: Any,
    ) -> list[RequestOutput]:
        """Searches the likeliest continuations, by the rules of transformers' ``generate(num_beams=beam_width)``.

        All beams of a prompt share its KV blocks, and copy a block only when two of them write to it.

        Args:
            beam_width: Beams per prompt; each takes one of ``max_num_seqs`` places.
            n: Outputs per prompt, best first; default: all ``beam_width``.
            length_penalty: Outputs are compared by log-probability / length ** this.
            **options: As for `generate`.

        Raises:
            ClientError: A prompt or parameter is not acceptable, or the beams together can never fit.
            RequestFailedError: A step failed on one of the prompts.
        """
        sampling = SamplingParams(
            n=beam_width if n is None else n,
            beam_width=beam_width,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            stop_token_ids=tuple(stop_token_ids),
            ignore_eos=ignore_eos,
        )
        return self.generate(prompts, sampling, **options)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], sampling: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Answers a conversation, given as OpenAI-style messages."""
        return self.generate([self.tokenizer.encode_chat(messages)], sampling, **options)[0]

    def pin(self, prompt: Prompt, ttl: float, *, tenant: str = "", cache_salt: str = "") -> Pin:
        """Keeps the KV of a prompt's full blocks for ``ttl`` seconds, whoever else wants blocks.

        A prompt that is not cached is computed first.

        Raises:
            ClientError: The prompt fills no block, or more blocks than may ever be pinned.
            PinBudgetError: Other pins leave too little of the budget (the option ``pin_ratio``).
        """
        ids = self._encode(prompt)
        pinning = self.core.scheduler.pinning
        pin = self.core.pin(ids, ttl, tenant=tenant, cache_salt=cache_salt)
        if pin is None:
            request = AddRequest(
                "", self._checked(ids), SamplingParams(max_tokens=1), cache_salt=cache_salt, tenant=tenant, pin_ttl=ttl
            )
            key = self._add(request)
            pinned = dict[int, int]()
            try:
                while stream_of(key, 0) not in pinned:
                    result = self.core.step()
                    pinned.update(result.pinned)
                    if error := next((end.error for end in result.finished if end.error), None):
                        raise RequestFailedError(error)
            finally:
                self.core.abort([key] if self.core.has_work else [])
            pin = next((pin for pin in pinning.listed() if pin.number == pinned[stream_of(key, 0)]), None)
        if pin is None:
            raise PinBudgetError("other pins leave too few of the blocks that may be pinned")
        return pin

    def pins(self) -> list[Pin]:
        """The pins there are; the one that expires next comes first."""
        return self.core.scheduler.pinning.listed()

    def unpin(self, pin: Pin) -> bool:
        """Lets a pinned prompt go; False if it has gone already."""
        return self.core.scheduler.pinning.drop(pin.number)

    def invalidate(self, *, tenant: str = "", cache_salt: str | None = None, prompt: Prompt | None = None) -> int:
        """Forgets cached KV; returns how many blocks.

        Args:
            tenant: Whose. cache_salt: only this salt's; None for all of the tenant's.
            prompt: Only the prompt's last full block, and all that follows it.
        """
        ids = None if prompt is None else self._encode(prompt)
        return self.core.scheduler.invalidate(tenant=tenant, salt=cache_salt, tokens=ids)

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _add(self, request: AddRequest) -> int:
        key, self._next_key = self._next_key, self._next_key + 1
        self.core.add(msgspec.structs.replace(request, key=key))
        return key

    def _checked(self, ids: list[int]) -> bytes:
        """Token ids as a request carries them; raises InvalidRequestError."""
        return check_tokens(ids, vocab_size=self.core.info.vocab_size).tobytes()

    def _submit(self, jobs: dict[int, _Job], ids: list[int], request: AddRequest, stop: list[str]) -> None:
        key, sampling = self._add(request), request.sampling
        detokenizers = [
            IncrementalDetokenizer(self.tokenizer, stop=stop, min_tokens=sampling.min_tokens) for _ in range(sampling.n)
        ]
        jobs[key] = _Job(RequestOutput(ids, []), detokenizers)

    def _take(self, jobs: dict[int, _Job], result: StepResult) -> None:
        for start in result.started:
            key, _ = split_stream(start.stream)
            jobs[key].output.cached_tokens = max(start.cached_tokens, jobs[key].output.cached_tokens)
        stop_tokens = {end.stream for end in result.finished if end.stop_token_id is not None}
        for number, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            key, index = split_stream(number)
            if jobs[key].push(index, token, hidden=number in stop_tokens):
                self.core.end_sequence(key, index)
        for scores in result.scores:
            key, index = split_stream(scores.stream)
            jobs[key].score(index, scores)
        for embedding in result.embeddings:
            key, _ = split_stream(embedding.stream)
            jobs[key].output.embedding = embedding.vector.tolist()
        for end in result.finished:
            key, index = split_stream(end.stream)
            if end.reason is FinishReason.ERROR:
                jobs[key].open.clear()
                raise RequestFailedError(end.error or "a step failed")
            jobs[key].output.outputs[index].logprob = end.logprob
            jobs[key].end(index, str(end.reason))


@dataclass(slots=True)
class _Job:
    output: RequestOutput
    detokenizers: list[IncrementalDetokenizer]
    open: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.open = set(range(len(self.detokenizers)))
        self.output.outputs = [Output(index) for index in self.open]

    @property
    def done(self) -> bool:
        return not self.open

    def push(self, index: int, token: int, *, hidden: bool) -> bool:
        """Takes a token; True if a stop string ended the sequence, which the engine knows nothing of."""
        if index not in self.open:
            return False
        output, detokenizer = self.output.outputs[index], self.detokenizers[index]
        output.token_ids.append(token)
        if not hidden:
            output.text += detokenizer.push([token])
        if detokenizer.stopped_by is None:
            return False
        self.end(index, "stop")
        return True

    def score(self, index: int, scores: Scores) -> None:
        """Takes log-probabilities of the token that came with them, or of some of the prompt."""
        found, output = unpacked_scores(packed_scores(scores)), self.output.outputs[index]
        if scores.position >= len(self.output.prompt_token_ids):
            output.logprobs += found[: len(output.token_ids) - len(output.logprobs)]
        elif index == 0:
            self.output.prompt_logprobs.update(enumerate(found, scores.position))

    def end(self, index: int, reason: str) -> None:
        """Closes a sequence; one that a stop string has closed stays as it is."""
        if index not in self.open:
            return
        self.open.discard(index)
        output = self.output.outputs[index]
        output.finish_reason = reason
        output.text += self.detokenizers[index].flush()


def _is_single(prompts: Prompt | Iterable[Prompt]) -> bool:
    return isinstance(prompts, str) or (isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int))
