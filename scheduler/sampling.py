"""SamplingParams: how one request's tokens are chosen and when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from octavo.errors import InvalidRequestError

MAX_N = 128
GREEDY_BELOW = 1e-5  # dividing logits by such a temperature overflows float32
MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_WHOLE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a parameter may be.

    Attributes:
        low: The least, or with ``above`` the bound that they have to be above. high: The greatest.
        whole: Only whole numbers.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def __contains__(self, value: object) -> bool:
        # bool is an int to Python, but `"n": true` is a mistake, not 1. NaN is in no range.
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return (
            f"{kind} above {self.low}, at most {self.high}" if self.above else f"{kind} from {self.low} to {self.high}"
        )


RANGES: Final[Mapping[str, Range]] = {
    "n": Range(1, MAX_N, whole=True),
    "max_tokens": Range(1, MAX_WHOLE, whole=True),
    "min_tokens": Range(0, MAX_WHOLE, whole=True),
    "temperature": Range(0.0, 2.0),
    "top_k": Range(-1, MAX_WHOLE, whole=True),
    "top_p": Range(0.0, 1.0, above=True),
    "min_p": Range(0.0, 1.0),
    "seed": Range(-MAX_SEED - 1, MAX_SEED, whole=True),
    "best_of": Range(1, MAX_N, whole=True),
    "beam_width": Range(0, MAX_N, whole=True),
    "length_penalty": Range(-10.0, 10.0),
    "presence_penalty": Range(-2.0, 2.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(0.0, 10.0, above=True),
    "logprobs": Range(0, MAX_LOGPROBS, whole=True),
    "prompt_logprobs": Range(0, MAX_LOGPROBS, whole=True),
}
BIASES: Final = Range(-100, 100)
_OPTIONAL: Final = frozenset({"max_tokens", "seed", "best_of", "logprobs", "prompt_logprobs"})
POOLINGS = (None, "last", "mean")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Validated sampling parameters of one request.

    Stop *strings* are not here: they are matched on text, by whoever detokenizes, who then aborts the request.

    Attributes:
        n: Sequences sampled from the one prompt; they share its KV blocks.
        max_tokens: Output tokens per sequence, at most. None: as many as the context window leaves.
        min_tokens: Output tokens before an end-of-sequence or stop token may end the sequence.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_k: Sample among the k likeliest tokens; 0 means all.
        top_p: Sample among the likeliest tokens whose probabilities reach this sum.
        min_p: Drop tokens less likely than this share of the likeliest one's probability.
        seed: Makes sampling reproducible, whatever else is in the batch. None: drawn by the engine.
        stop_token_ids: Tokens that end the sequence, beside the model's own end-of-sequence tokens.
        ignore_eos: Go on after the model's end-of-sequence tokens (for benchmarks).
        best_of: Sequences to sample, of which the n likeliest per token are given out when all have ended; None: n.
        beam_width: Search for the likeliest outputs with so many beams instead of sampling; 0: sample. Its n best
            are given out when the search has ended.
        length_penalty: Beams are compared by log-probability / length ** this.
        presence_penalty: Taken from the logits of tokens that the output holds.
        frequency_penalty: The same, once for each time that it holds them.
        repetition_penalty: Logits of tokens that prompt or output hold are divided by it if positive, else multiplied.
        logit_bias: (token, number to add to its logit) pairs.
        allowed_token_ids: Only these may be sampled; empty: all.
        bad_words: Runs of tokens that the output must not hold.
        grammar: What the output must follow, in llguidance's form.
        logprobs: Give each sampled token's log-probability, and the so many likeliest tokens'; None: do not.
        prompt_logprobs: The same for the prompt's tokens, from the second on.
        pooling: Make one vector of the prompt's hidden states: the "last" token's, or their "mean". The one token
            that is sampled then means nothing.

    Raises:
        InvalidRequestError: A value is out of range; names the field, the value and the range.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    best_of: int | None = None
    beam_width: int = 0
    length_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: str | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pooling: str | None = None

    def __post_init__(self) -> None:
        for name, accepted in RANGES.items():
            value = getattr(self, name)
            if value not in accepted and not (value is None and name in _OPTIONAL):
                raise InvalidRequestError(f"{name} must be {accepted}, not {value!r}", param=name)
        self._check_choice()
        self._check_logits()
        self._check_scores()
        self._check_pooling()
        if type(self.ignore_eos) is not bool:
            raise InvalidRequestError(f"ignore_eos must be true or false, not {self.ignore_eos!r}", param="ignore_eos")
        self._check_tokens("stop_token_ids", self.stop_token_ids)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", param="min_tokens"
            )

    def _check_choice(self) -> None:
        """The parameters by which outputs are chosen among several."""
        if self.best_of is not None and self.best_of < self.n:
            accepted = Range(self.n, MAX_N, whole=True)
            raise InvalidRequestError(f"best_of must be {accepted}, not {self.best_of!r}", param="best_of")
        if not self.beam_width:
            return
        if self.n > self.beam_width:
            raise InvalidRequestError(f"n ({self.n}) must not exceed beam_width ({self.beam_width})", param="n")
        if self.best_of is not None:
            raise InvalidRequestError("best_of and beam_width exclude each other", param="best_of")

    def _check_logits(self) -> None:
        """The parameters that change logits."""
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(
                f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, not {len(self.logit_bias)}", param="logit_bias"
            )
        self._check_tokens("logit_bias", tuple(token for token, _ in self.logit_bias))
        for _, bias in self.logit_bias:
            if bias not in BIASES:
                raise InvalidRequestError(f"logit_bias: each must be {BIASES}, not {bias!r}", param="logit_bias")
        self._check_tokens("allowed_token_ids", self.allowed_token_ids)
        for word in self.bad_words:
            self._check_tokens("bad_words", word)
        if self.grammar is not None and (self.beam_width or self.min_tokens or self.ignore_eos):
            other = "beam search" if self.beam_width else "min_tokens" if self.min_tokens else "ignore_eos"
            raise InvalidRequestError(
                f"structured output and {other} exclude each other: the grammar decides where the output ends",
                param="beam_width" if self.beam_width else other,
            )

    def _check_scores(self) -> None:
        """The parameters that ask for log-probabilities."""
        if self.logprobs is not None and self.chooses:
            raise InvalidRequestError(
                "logprobs cannot be given with best_of above n or beam search, whose outputs are chosen at the end",
                param="logprobs",
            )

    def _check_pooling(self) -> None:
        """A prompt's vector is known when the prompt is complete, and nothing follows it."""
        if self.pooling not in POOLINGS:
            raise InvalidRequestError(f"pooling must be last or mean, not {self.pooling!r}", param="pooling")
        if self.pooling and (self.num_sequences, self.max_tokens, self.beam_width) != (1, 1, 0):
            raise InvalidRequestError("pooling takes one sequence and max_tokens 1", param="pooling")

    def _check_tokens(self, name: str, tokens: object) -> None:
        if type(tokens) is not tuple:
            raise InvalidRequestError(f"{name} must be a tuple of token ids, not {tokens!r}", param=name)
        for token in tokens:
            if type(token) is not int or token < 0:
                raise InvalidRequestError(f"{name} must hold token ids of 0 or more, not {token!r}", param=name)

    @property
    def num_sequences(self) -> int:
        """Sequences that run for one request."""
        return self.beam_width or self.best_of or self.n

    @property
    def chooses(self) -> bool:
        """Whether outputs are given out at the end, when it is known which are the best."""
        return self.num_sequences > self.n or self.beam_width > 0

    @property
    def reads_cache(self) -> bool:
        """Whether what is cached of the prompt may be used: not where every token's hidden state is asked for."""
        return self.prompt_logprobs is None and self.pooling != "mean"

    @property
    def edits_logits(self) -> bool:
        """Whether some tokens are favoured or forbidden."""
        return bool(self.logit_bias or self.allowed_token_ids or self.bad_words)

    @property
    def is_plain(self) -> bool:
        """Whether each token is simply the likeliest one, and nothing is to be told of it."""
        # Whoever starts is asked, so no other property is: each is a call.
        return (
            self.temperature < GREEDY_BELOW
            and self.logprobs is None
            and self.grammar is None
            and self.repetition_penalty == 1.0
            and not (self.presence_penalty or self.frequency_penalty or self.min_tokens)
            and not (self.best_of or self.beam_width or self.logit_bias or self.allowed_token_ids or self.bad_words)
        )

    @property
    def token_ids(self) -> Iterable[tuple[str, int]]:
        """Every token id among the parameters, with the parameter's name."""
        return self._named_token_ids() if self.stop_token_ids or self.edits_logits else ()

    def _named_token_ids(self) -> Iterator[tuple[str, int]]:
        yield from (("stop_token_ids", token) for token in self.stop_token_ids)
        yield from (("logit_bias", token) for token, _ in self.logit_bias)
        yield from (("allowed_token_ids", token) for token in self.allowed_token_ids)
        yield from (("bad_words", token) for word in self.bad_words for token in word)

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW
