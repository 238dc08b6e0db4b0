"""Log-probabilities on their way out: as bytes across the process boundary, and as objects for those who read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from octavo.engine.messages import TokenLogprob, TokenScores

if TYPE_CHECKING:  # the front end imports this module, and no block manager
    from octavo.scheduler.plan import Scores

_LEAST = -9999.0  # JSON has no −inf; this is what OpenAI gives for a token that cannot come


def packed_scores(scores: Scores) -> TokenScores:
    """Scores as a message."""
    return TokenScores(
        scores.stream,
        scores.position,
        scores.logprobs.tobytes(),
        scores.ranks.tobytes(),
        scores.top_tokens.tobytes(),
        scores.top_logprobs.tobytes(),
    )


def unpacked_scores(scores: TokenScores) -> list[TokenLogprob]:
    """A message's scores, one for each token."""
    logprobs, ranks = _floats(scores.logprobs), np.frombuffer(scores.ranks, dtype=np.int32).tolist()
    top_tokens, top_logprobs = np.frombuffer(scores.top_tokens, dtype=np.int32).tolist(), _floats(scores.top_logprobs)
    width = len(top_tokens) // len(logprobs)
    tops = list(zip(top_tokens, top_logprobs, strict=True))
    return [
        TokenLogprob(logprob, rank, tuple(tops[i * width : (i + 1) * width]))
        for i, (logprob, rank) in enumerate(zip(logprobs, ranks, strict=True))
    ]


def _floats(data: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(data, dtype=np.float32).tolist()
    return [number if math.isfinite(number) else _LEAST for number in numbers]
