"""Grammars as llguidance compiles them. Loads no torch: the process that tries them out is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llguidance

from octavo.errors import InvalidRequestError


@dataclass(frozen=True)
class GrammarTokenizer:
    """A model's tokenizer, to be loaded when the first grammar comes.

    Attributes:
        folder: The model's. vocab_size: the model's, which may be more than the tokenizer's.
        eos_token_ids: Tokens that end an output.
    """

    folder: Path
    vocab_size: int
    eos_token_ids: Sequence[int]

    def load(self) -> Any:
        """The tokenizer as llguidance wants it.

        Raises:
            InvalidRequestError: It is not one that llguidance reads.
        """
        try:
            text = (self.folder / "tokenizer.json").read_text(encoding="utf-8")
            return llguidance.LLTokenizer(text, n_vocab=self.vocab_size, eos_token=list(self.eos_token_ids))
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"structured output needs a tokenizer that llguidance reads: {error}") from error


def compiled(tokenizer: Any, grammar: str) -> Any:
    """A matcher at the beginning of an output.

    Raises:
        InvalidRequestError: It is not a grammar, or too large.
    """
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
    if matcher.is_error():
        raise InvalidRequestError(f"what the answer must follow cannot be used: {matcher.get_error()}")
    return matcher


def _limits() -> Any:
    """What one grammar may cost. With llguidance's own limits, a mask was seen to take 1.3 s and 250,000 states."""
    return llguidance.LLParserLimits(step_max_items=10_000, max_lexer_states=50_000, verbose_errors=False)
