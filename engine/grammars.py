"""Structured output: which tokens a grammar allows next, worked out beside the forward.

llguidance compiles the grammars and makes the masks. A matcher follows the tokens of one sequence; one that is missing
(its sequence was forked, or has waited for long) is made again from the tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor

from octavo.engine.grammar_compiler import GrammarTokenizer, compiled
from octavo.engine.grammar_trial import GrammarTrial
from octavo.scheduler.rows import Int32s, Rows

_MAX_COMPILED = 64
_MAX_COMPILED_BYTES = 4 * 2**20  # of their texts


class Grammars:
    """The grammars of running sequences.

    Args:
        rows: The scheduler's running sequences.
        tokenizer: The model's.

    Attributes:
        failures: Stream → why its grammar cannot go on, until they are taken.
    """

    def __init__(self, rows: Rows, tokenizer: GrammarTokenizer) -> None:
        self._rows = rows
        self._source = tokenizer
        self._trial = GrammarTrial(tokenizer)
        self._loaded: Any = None
        self._loading = Lock()
        self._compiled = OrderedDict[str, Any]()
        self._lock = Lock()
        self._matchers: dict[int, _Follower] = {}  # by stream
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")  # so that nobody's mask waits for it
        self.failures: dict[int, str] = {}

    def take_failures(self) -> dict[int, str]:
        """Hands over which streams' grammars could not go on, and why; they are forgotten here."""
        failures, self.failures = self.failures, {}
        return failures

    def prepare(self, grammar: str) -> Future[None]:
        """Starts to compile a grammar: a millisecond for most, and not much more than 5 s for any.

        Returns:
            Nothing to come; or an InvalidRequestError, as from `check`.
        """
        return self._compiling.submit(self.check, grammar)

    def check(self, grammar: str) -> None:
        """Compiles a grammar, if that has not been done.

        Raises:
            InvalidRequestError: It is not a grammar, too large, or takes too long.
        """
        if grammar not in self._compiled:
            self._trial.check(grammar)
        self._compile(grammar)

    def begin(self, chosen: Int32s) -> Future[Tensor] | None:
        """Starts to find out what may come next, while the forward runs.

        Args:
            chosen: int32 ``[num_samples]``, rows that are about to be sampled for.

        Returns:
            bool ``[num_constrained, vocab_size]`` to come, for the constrained ones of them; None if there are none.
        """
        constrained = chosen[self._rows.constrained[chosen]]
        if not len(constrained):
            return None
        return self._masking.submit(self._masks, constrained)

    def _masks(self, rows: Int32s) -> Tensor:
        streams = self._rows.stream[rows].tolist()
        followers = [self._follow(stream, row) for stream, row in zip(streams, rows.tolist(), strict=True)]
        if len(self._matchers) > 2 * len(self._rows.owner):  # most of those have ended
            self._matchers = dict(zip(streams, followers, strict=True))
        bits = llguidance.numpy.allocate_token_bitmask(len(rows), self._tokenizer.vocab_size)
        matchers = [(follower.matcher, place) for place, follower in enumerate(followers)]
        llguidance.numpy.fill_next_token_bitmask_par(_executor(), matchers, bits)
        for stream, (matcher, place) in zip(streams, matchers, strict=True):
            if matcher.is_error():
                self.failures[stream] = f"the grammar cannot go on: {matcher.get_error()}"
                bits[place] = -1  # the row is sampled and thrown away
        return torch.from_numpy(np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").view(np.bool_))

    def _follow(self, stream: int, row: int) -> _Follower:
        """The sequence's matcher, having taken all of its output."""
        output = self._rows.outputs(row)
        follower = self._matchers.get(stream)
        if follower is None or follower.taken > len(output):
            grammar = self._rows.sampling(row).grammar
            assert grammar is not None
            follower = self._matchers[stream] = _Follower(self._compile(grammar).deep_copy())
        follower.take(output)
        return follower

    def _compile(self, grammar: str) -> Any:
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        matcher = compiled(self._tokenizer, grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > _MAX_COMPILED or sum(map(len, self._compiled)) > _MAX_COMPILED_BYTES:
                self._compiled.popitem(last=False)
        return matcher

    @property
    def _tokenizer(self) -> Any:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._source.load()
            return self._loaded


@cache
def _executor() -> Any:
    return llguidance.LLExecutor()


class _Follower:
    """A matcher, and how many tokens of its sequence's output it has taken."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self.taken = 0

    def take(self, output: Int32s) -> None:
        """Takes what is new; a matcher that cannot is in error from then on."""
        self.matcher.consume_tokens(output[self.taken :].tolist())
        self.taken = len(output)
