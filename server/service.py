"""What every route shares: the engine's client, the tokenizer, and the rules by which a request is admitted."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.messages import TOKEN_BYTES, AddRequest, EngineInfo, packed
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineUnavailableError, InvalidRequestError, NeverFitsError, NotFoundError
from octavo.scheduler.sampling import SamplingParams
from octavo.server.explain import Explanation, Unexplained
from octavo.server.explainer import Explainer
from octavo.server.fields import Prompt
from octavo.server.generation import Batch, Generation
from octavo.server.keys import Identity
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import INLINE_BYTES
from octavo.server.metrics import Metrics
from octavo.server.open_requests import OpenRequests
from octavo.server.protocol import (
    ChatMessage,
    EmbeddingRequest,
    GenerationRequest,
    ModelRequest,
    PinRequest,
    Request,
    TokenizeRequest,
)
from octavo.server.request_timer import RequestTimer
from octavo.server.structured import grammar_of, text_size
from octavo.server.tools.formats import ToolSupport
from octavo.server.tools.use import ToolUse

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
        tools: How tools work with this model.
        open_requests: What is being worked at.
        explainer: Tells what happened to it.
        created: When the server started, in Unix seconds.
    """

    client: EngineClient
    tokenizer: Tokenizer
    model_name: str
    metrics: Metrics
    lifecycle: Lifecycle
    tools: ToolSupport
    open_requests: OpenRequests
    explainer: Explainer
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
            EngineUnavailableError: The server is stopping, or its engine is not up.
        """
        self.lifecycle.check_accepting()
        # A silent engine nearly always comes back, from a pause of the whole machine for instance; if not, it is killed
        # soon, and whoever waits for it is told so.
        if self.client.status not in ("ready", "silent"):
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

    def check(self, body: Request) -> None:
        """Everything about a request that does not depend on its prompt's length.

        Raises:
            NotFoundError, InvalidRequestError: The request is refused.
        """
        self.check_model(body.model)
        body.check()
        self.note_ignored(body)

    def note_ignored(self, body: Request) -> None:
        """Counts the fields of a request that Octavo does not know."""
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
            self._check_text_length(prompt, info.max_model_len, param)
            return await _off_loop_if(
                max(size, len(prompt)), partial(self.tokenizer.encode, prompt, add_special_tokens)
            )
        _check_ids(prompt, info.vocab_size, param)
        return prompt

    async def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return await _off_loop_if(len(ids), partial(self.tokenizer.decode, ids, skip_special_tokens))

    async def encode_chat(
        self, messages: Sequence[ChatMessage], use: ToolUse, *, add_generation_prompt: bool, **variables: Any
    ) -> list[int]:
        """A conversation's token ids.

        Args:
            use: The tools that the model is told of.
            **variables: Further names that the chat template may read.

        Raises:
            InvalidRequestError: The model has no chat template, or its template refuses the messages.
            NeverFitsError: The text is longer than any that fits.
        """
        info = self.engine_info()
        turns, tools = use.messages([message.for_template() for message in messages])
        size = sum(len(turn["content"]) for turn in turns)

        def encode() -> list[int]:
            text = self.tokenizer.render_chat(turns, add_generation_prompt, **tools, **variables)
            self._check_text_length(text, info.max_model_len)
            return self.tokenizer.encode(text, add_special_tokens=False)

        return await _off_loop_if(size, encode)

    async def encode_either(
        self, body: TokenizeRequest | PinRequest, *, add_special_tokens: bool = True, add_generation_prompt: bool
    ) -> list[int]:
        """The token ids of a body that has either a prompt or a conversation.

        Raises:
            InvalidRequestError: It has both or neither; or as `encode_prompt` and `encode_chat`.
            NeverFitsError: As they do.
        """
        if body.messages is not None and body.prompt is None:
            use = ToolUse.of(dict(body), self.tools)
            return await self.encode_chat(body.messages, use, add_generation_prompt=add_generation_prompt)
        if body.prompt is not None and body.messages is None:
            return await self.encode_prompt(body.prompt, add_special_tokens=add_special_tokens)
        raise InvalidRequestError("send either prompt or messages", param="prompt")

    async def grammar(self, body: GenerationRequest) -> str | None:
        """What a request's answer has to follow, if anything.

        Raises:
            InvalidRequestError: As `octavo.server.structured.grammar_of`.
        """
        fields = dict(body)
        return await _off_loop_if(text_size(fields), partial(grammar_of, fields))

    def sampling(self, body: GenerationRequest, grammar: str | None, **overrides: Any) -> SamplingParams:
        """A request's sampling parameters, with those that only the tokenizer can tell.

        Args:
            grammar: What the answer has to follow, if anything.

        Raises:
            InvalidRequestError: A parameter is out of range.
        """
        return body.sampling(grammar=grammar, bad_words=self._bad_words(body.bad_words), **overrides)

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each word, at the beginning of a text and behind a blank."""
        spellings = (spelling for word in words for spelling in (word, f" {word.lstrip()}"))
        return tuple(dict.fromkeys(tuple(self.tokenizer.encode(spelling, False)) for spelling in spellings))

    def truncated(self, body: GenerationRequest | EmbeddingRequest, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The prompts' last ``truncate_prompt_tokens`` tokens."""
        most = body.truncate_prompt_tokens
        return list(prompts) if most is None else [prompt[-most:] for prompt in prompts]

    def batch(
        self,
        body: GenerationRequest,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        identity: Identity,
        kept: frozenset[int] = frozenset(),
    ) -> Batch:
        """Checks every prompt against the context window and prepares its generation; nothing is started.

        Args:
            identity: Whose request it is.
            kept: Control tokens that are part of the text all the same.

        Raises:
            InvalidRequestError: A stop token is not in the vocabulary.
            NeverFitsError: A prompt, or what it would become, is longer than the context window.
        """
        info = self.engine_info()
        for name, token in sampling.token_ids:
            _check_ids([token], info.vocab_size, name)
        requests = self.requests(body, prompts, sampling, identity, pin_ttl=body.prompt_cache_retention)
        generations = [self._generation(body, request, kept, info) for request in requests]
        return Batch(generations, self.client, self.open_requests, self._explain(body, requests, identity))

    def _explain(
        self, body: GenerationRequest, requests: Sequence[AddRequest], identity: Identity
    ) -> Callable[[], Awaitable[Explanation | Unexplained]] | None:
        """What tells what happened to these, if their client has asked for that."""
        if body.octavo is None or not body.octavo.explain:
            return None
        return partial(self.explainer.explain, [request.request_id for request in requests], identity)

    def requests(
        self,
        body: ModelRequest,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        identity: Identity,
        *,
        pin_ttl: float | None = None,
        param: str = "prompt",
    ) -> list[AddRequest]:
        """What the engine is to get, one for each prompt.

        Args:
            pin_ttl: Seconds for which to pin the prompts, if that was asked for.
            param: The request field that the prompts came in.

        Raises:
            NeverFitsError: A prompt, or what it would become, is longer than the context window.
        """
        room = self.engine_info().max_model_len
        for prompt in prompts:
            _check_fits(len(prompt), sampling.max_tokens, room, param)
        return [
            AddRequest(
                uuid.uuid4().hex,
                packed(prompt),
                sampling,
                cache_salt=body.cache_salt or "",
                tenant=identity.tenant,
                priority=body.priority or 0,
                pin_ttl=pin_ttl,
                arrival=body.arrival,
            )
            for prompt in prompts
        ]

    def _generation(
        self, body: GenerationRequest, request: AddRequest, kept: frozenset[int], info: EngineInfo
    ) -> Generation:
        return Generation(
            request,
            new_detokenizer=partial(
                IncrementalDetokenizer,
                self.tokenizer,
                stop=body.stop,
                include_stop_str_in_output=body.include_stop_str_in_output,
                skip_special_tokens=body.skip_special_tokens,
                kept=kept,
                min_tokens=request.sampling.min_tokens,
            ),
            keep_stop_token=body.include_stop_str_in_output,
            own_stops=frozenset(info.eos_token_ids),
            prompt_only=body.prompt_only,
            timer=RequestTimer(self.metrics, request.tenant, len(request.prompt) // TOKEN_BYTES, body.arrival),
        )

    def _check_text_length(self, text: str, max_model_len: int, param: str = "prompt") -> None:
        # A text too long by this measure is not worth the seconds it takes to tokenize.
        least = -(-len(text) // self.tokenizer.longest_token)
        if least > max_model_len:
            raise _too_long(f"at least {least}", max_model_len, param)


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


def _check_fits(prompt: int, max_tokens: int | None, max_model_len: int, param: str) -> None:
    if prompt == 0:
        raise InvalidRequestError(f"the {param} is empty: it has no tokens", param=param)
    if prompt >= max_model_len:
        raise _too_long(str(prompt), max_model_len, param)
    if prompt + (max_tokens or 1) > max_model_len:
        raise NeverFitsError(
            f"this model's maximum context length is {max_model_len} tokens; the prompt's {prompt} and max_tokens' "
            f"{max_tokens} make {prompt + (max_tokens or 1)}",
            largest=max_model_len,
            param="max_tokens",
        )


def _too_long(prompt: str, max_model_len: int, param: str) -> NeverFitsError:
    return NeverFitsError(
        f"this model's maximum context length is {max_model_len} tokens, prompt and output together; "
        f"the {param} alone has {prompt}",
        largest=max_model_len,
        param=param,
    )
