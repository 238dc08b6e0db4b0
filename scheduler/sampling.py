"""SamplingParams: how one request's tokens are chosen and when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import InvalidRequestError

MAX_N = 128
MAX_SEED = 2**63 - 1


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

    def __post_init__(self) -> None:
        self._check_whole("n", 1, MAX_N)
        if self.max_tokens is not None:
            self._check_whole("max_tokens", 1, 2**31 - 1)
        self._check_whole("min_tokens", 0, 2**31 - 1)
        self._check_real("temperature", 0.0, 2.0)
        self._check_whole("top_k", -1, 2**31 - 1)
        self._check_real("top_p", 0.0, 1.0, above=True)
        self._check_real("min_p", 0.0, 1.0)
        self._check_real("length_penalty", -10.0, 10.0)
        self._check_choice()
        if self.seed is not None:
            self._check_whole("seed", -MAX_SEED - 1, MAX_SEED)
        if type(self.ignore_eos) is not bool:
            raise InvalidRequestError(f"ignore_eos must be true or false, not {self.ignore_eos!r}", param="ignore_eos")
        if type(self.stop_token_ids) is not tuple:
            raise InvalidRequestError(
                f"stop_token_ids must be a tuple of token ids, not {self.stop_token_ids!r}", param="stop_token_ids"
            )
        for token in self.stop_token_ids:
            if type(token) is not int or token < 0:
                raise InvalidRequestError(
                    f"stop_token_ids must hold token ids of 0 or more, not {token!r}", param="stop_token_ids"
                )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", param="min_tokens"
            )

    def _check_choice(self) -> None:
        """The parameters by which outputs are chosen among several."""
        if self.best_of is not None:
            self._check_whole("best_of", self.n, MAX_N)
        self._check_whole("beam_width", 0, MAX_N)
        if not self.beam_width:
            return
        if self.n > self.beam_width:
            raise InvalidRequestError(f"n ({self.n}) must not exceed beam_width ({self.beam_width})", param="n")
        if self.best_of is not None:
            raise InvalidRequestError("best_of and beam_width exclude each other", param="best_of")

    @property
    def num_sequences(self) -> int:
        """Sequences that run for one request."""
        return self.beam_width or self.best_of or self.n

    @property
    def chooses(self) -> bool:
        """Whether outputs are given out at the end, when it is known which are the best."""
        return self.num_sequences > self.n or self.beam_width > 0

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probability of each sampled token has to be known."""
        return self.chooses and not self.beam_width

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken: dividing logits by less than this overflows float32."""
        return self.temperature < 1e-5

    def _check_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        # bool is an int to Python, but `"n": true` is a mistake, not 1.
        if type(value) is not int or not low <= value <= high:
            raise InvalidRequestError(f"{name} must be a whole number from {low} to {high}, not {value!r}", param=name)

    def _check_real(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        value = getattr(self, name)
        # NaN is in no range; infinities are outside of every one.
        ok = type(value) in (int, float) and low <= value <= high
        if not ok or (above and value == low):
            bound = f"above {low}, at most {high}" if above else f"from {low} to {high}"
            raise InvalidRequestError(f"{name} must be a number {bound}, not {value!r}", param=name)
