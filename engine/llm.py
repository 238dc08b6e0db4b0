"""LLM: the same engine inside this process, for offline use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.config import DEFAULT_MODEL, EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.messages import AddRequest, EngineInfo, EngineStats
from octavo.engine.prepare import prepare_model
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import RequestFailedError
from octavo.scheduler.plan import StepResult
from octavo.scheduler.request import FinishReason, split_stream
from octavo.scheduler.sampling import SamplingParams

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Output:
    """One sampled continuation.

    Attributes:
        index: Which of the request's n, from 0.
        text: Without the stop token or stop string that ended it.
        token_ids: All sampled tokens, a stop token included.
        finish_reason: "stop" or "length".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """What came of one prompt.

    Attributes:
        prompt_token_ids: The prompt as the model saw it.
        outputs: n continuations. cached_tokens: the prompt's prefix hit.
    """

    prompt_token_ids: list[int]
    outputs: list[Output]
    cached_tokens: int = 0

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
    ) -> list[RequestOutput]:
        """Continues prompts, as many at once as fit.

        Args:
            prompts: Texts or lists of token ids, or one of them.
            sampling: For all prompts, or one for each.
            stop: Strings that end an output; they are not part of it.

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
        pending = list(zip(texts, params, strict=True))[::-1]
        try:
            while pending or any(not job.done for job in jobs.values()):
                # The queue is bounded; what does not fit into it yet is submitted between steps.
                while pending and self.core.has_room:
                    text, chosen = pending.pop()
                    self._submit(jobs, text, chosen or SamplingParams(), stops)
                self._take(jobs, self.core.step())
        finally:
            # Whatever is still open, an exception or Ctrl-C ended it.
            self.core.abort(key for key, job in jobs.items() if not job.done)
        return [job.output for job in jobs.values()]

    def chat(
        self, messages: Sequence[Mapping[str, Any]], sampling: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Answers a conversation, given as OpenAI-style messages."""
        return self.generate([self.tokenizer.encode_chat(messages)], sampling, **options)[0]

    def _submit(self, jobs: dict[int, _Job], prompt: Prompt, sampling: SamplingParams, stop: list[str]) -> None:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        key, self._next_key = self._next_key, self._next_key + 1
        self.core.add(AddRequest(str(key), ids, sampling, key=key))
        detokenizers = [
            IncrementalDetokenizer(self.tokenizer, stop=stop, min_tokens=sampling.min_tokens) for _ in range(sampling.n)
        ]
        jobs[key] = _Job(RequestOutput(ids, []), detokenizers)

    def _take(self, jobs: dict[int, _Job], result: StepResult) -> None:
        for number, cached in result.started:
            key, _ = split_stream(number)
            jobs[key].output.cached_tokens = max(cached, jobs[key].output.cached_tokens)
        stop_tokens = {end.stream for end in result.finished if end.stop_token_id is not None}
        for number, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            key, index = split_stream(number)
            if jobs[key].push(index, token, hidden=number in stop_tokens):
                self.core.end_sequence(key, index)
        for end in result.finished:
            key, index = split_stream(end.stream)
            if end.reason is FinishReason.ERROR:
                jobs[key].open.clear()
                raise RequestFailedError(end.error or "a step failed")
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
