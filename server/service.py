"""What every route shares: the engine's client, the tokenizer, and the rules by which a request is admitted."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.messages import AddRequest, EngineInfo, packed
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineUnavailableError, InvalidRequestError, NeverFitsError, NotFoundError
from octavo.scheduler.sampling import SamplingParams
from octavo.server.generation import Batch, Generation
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import INLINE_BYTES
from octavo.server.metrics import Metrics, RequestTimer
from octavo.server.protocol import ChatMessage, GenerationRequest, Prompt

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """One model behind one engine.

    Attributes:
        client: The engine, as `octavo.engine.client` shows it.
        tokenizer: The model's tokenizer.
        model_name: The name that clients use.
        metrics: Where everything is counted.
        lifecycle: Whether new work is taken.
        created: When the server started, in Unix seconds.
    """

    client: EngineClient
    tokenizer: Tokenizer
    model_name: str
    metrics: Metrics
    lifecycle: Lifecycle
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def status(self) -> str:
        """The server's state in words; "ready" if requests are served."""
        return "draining" if self.lifecycle.stopping else self.client.status

    @property
    def ready(self) -> bool:
        """True if requests are served."""
        return self.client.ready and not self.lifecycle.stopping

    def engine_info(self) -> EngineInfo:
        """What the engine serves.

        Raises:
            EngineUnavailableError: The server is stopping, or its engine is not ready.
        """
        self.lifecycle.check_accepting()
        if not self.client.ready:
            raise EngineUnavailableError(f"the engine is not ready: {self.client.status}", retry_after=2.0)
        return self.client.info

    def check_model(self, name: str | None) -> None:
        """Refuses requests for other models. A request that names none means this one.

        Raises:
            NotFoundError: The name is another model's.
        """
        if name not in (None, self.model_name):
            raise NotFoundError(
                f"the model {name!r} does not exist; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def check(self, body: GenerationRequest) -> None:
        """Everything about a request that does not depend on its prompt's length.

        Raises:
            NotFoundError, InvalidRequestError: The request is refused.
        """
        self.check_model(body.model)
        body.check()
        if ignored := body.ignored_fields():
            self.metrics.ignored_fields.inc(len(ignored))
            logger.warning("ignored unknown request fields: %s", ", ".join(f"{name[:40]!r}" for name in ignored[:10]))

    async def encode_prompt(
        self, prompt: Prompt, *, add_special_tokens: bool = True, param: str = "prompt", size: int = 0
    ) -> list[int]:
        """A prompt's token ids.

        Args:
            prompt: A text, or ids that are checked and returned.
            add_special_tokens: Add what the model wants around a prompt.
            param: The request field that the prompt came in.
            size: Of all prompts of the request, if there are several; large ones are encoded off the event loop.

        Raises:
            InvalidRequestError: An id is not in the vocabulary.
            NeverFitsError: The text is longer than any that fits.
        """
        info = self.engine_info()
        if isinstance(prompt, str):
            self._check_text_length(prompt, info.max_model_len)
            return await _off_loop_if(
                max(size, len(prompt)), partial(self.tokenizer.encode, prompt, add_special_tokens)
            )
        _check_ids(prompt, info.vocab_size, param)
        return prompt

    async def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return await _off_loop_if(len(ids), partial(self.tokenizer.decode, ids, skip_special_tokens))

    async def encode_chat(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool, **variables: Any
    ) -> list[int]:
        """A conversation's token ids.

        Raises:
            InvalidRequestError: The model has no chat template, or its template refuses the messages.
            NeverFitsError: The text is longer than any that fits.
        """
        info = self.engine_info()
        size = sum(len(message.content) for message in messages)
        turns = [message.for_template() for message in messages]

        def encode() -> list[int]:
            text = self.tokenizer.render_chat(turns, add_generation_prompt, **variables)
            self._check_text_length(text, info.max_model_len)
            return self.tokenizer.encode(text, add_special_tokens=False)

        return await _off_loop_if(size, encode)

    def batch(self, body: GenerationRequest, prompts: Sequence[list[int]], sampling: SamplingParams) -> Batch:
        """Checks every prompt against the context window and prepares its generation; nothing is started.

        Raises:
            InvalidRequestError: A stop token is not in the vocabulary.
            NeverFitsError: A prompt, or what it would become, is longer than the context window.
        """
        info = self.engine_info()
        _check_ids(sampling.stop_token_ids, info.vocab_size, "stop_token_ids")
        for prompt in prompts:
            _check_fits(len(prompt), sampling.max_tokens, info.max_model_len)
        generations = [self._generation(body, prompt, sampling, info) for prompt in prompts]
        return Batch(generations, self.client, self.lifecycle)

    def _generation(
        self, body: GenerationRequest, prompt: list[int], sampling: SamplingParams, info: EngineInfo
    ) -> Generation:
        return Generation(
            AddRequest(
                uuid.uuid4().hex,
                packed(prompt),
                sampling,
                cache_salt=body.cache_salt or "",
                priority=body.priority or 0,
                arrival=body.arrival,
            ),
            new_detokenizer=partial(
                IncrementalDetokenizer,
                self.tokenizer,
                stop=body.stop,
                include_stop_str_in_output=body.include_stop_str_in_output,
                skip_special_tokens=body.skip_special_tokens,
                min_tokens=sampling.min_tokens,
            ),
            keep_stop_token=body.include_stop_str_in_output,
            own_stops=frozenset(info.eos_token_ids),
            timer=RequestTimer(self.metrics, body.arrival),
        )

    def _check_text_length(self, text: str, max_model_len: int) -> None:
        # A text too long by this measure is not worth the seconds it takes to tokenize.
        least = -(-len(text) // self.tokenizer.longest_token)
        if least > max_model_len:
            raise _too_long(f"at least {least}", max_model_len)


def with_default_limit(
    sampling: SamplingParams, prompts: Sequence[list[int]], default: int, room: int
) -> SamplingParams:
    """Limits the output where the client did not: to ``default`` tokens, or to what the longest prompt leaves."""
    if sampling.max_tokens is not None:
        return sampling
    return replace(sampling, max_tokens=max(1, sampling.min_tokens, min(default, room - max(map(len, prompts)))))


async def _off_loop_if(size: int, work: Callable[[], T]) -> T:
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


def _check_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        bad = next(id for id in ids if not 0 <= id < vocab_size)
        raise InvalidRequestError(f"{param}: token id {bad} is not between 0 and {vocab_size - 1}", param=param)


def _check_fits(prompt: int, max_tokens: int | None, max_model_len: int) -> None:
    if prompt == 0:
        raise InvalidRequestError("the prompt is empty: it has no tokens", param="prompt")
    if prompt >= max_model_len:
        raise _too_long(str(prompt), max_model_len)
    if prompt + (max_tokens or 1) > max_model_len:
        raise NeverFitsError(
            f"this model's maximum context length is {max_model_len} tokens; the prompt's {prompt} and max_tokens' "
            f"{max_tokens} make {prompt + (max_tokens or 1)}",
            largest=max_model_len,
            param="max_tokens",
        )


def _too_long(prompt: str, max_model_len: int) -> NeverFitsError:
    return NeverFitsError(
        f"this model's maximum context length is {max_model_len} tokens, prompt and output together; "
        f"the prompt alone has {prompt}",
        largest=max_model_len,
        param="prompt",
    )
