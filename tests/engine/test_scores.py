"""Log-probabilities cross the process boundary unchanged, and are finite on the other side."""

from __future__ import annotations

import numpy as np

from octavo.engine.messages import TokenLogprob
from octavo.engine.scores import packed_scores, unpacked_scores
from octavo.scheduler.plan import Scores


def test_scores_come_back_token_by_token() -> None:
    scores = Scores(
        stream=3,
        position=7,
        logprobs=np.array([-0.5, -np.inf], dtype=np.float32),
        ranks=np.array([1, 9], dtype=np.int32),
        top_tokens=np.array([[4, 5], [6, 7]], dtype=np.int32),
        top_logprobs=np.array([[-0.5, -1.5], [-0.25, -np.inf]], dtype=np.float32),
    )
    packed = packed_scores(scores)
    assert (packed.stream, packed.position) == (3, 7)
    assert unpacked_scores(packed) == [
        TokenLogprob(-0.5, 1, ((4, -0.5), (5, -1.5))),
        TokenLogprob(-9999.0, 9, ((6, -0.25), (7, -9999.0))),
    ]


def test_without_alternatives_there_are_none() -> None:
    nothing = np.zeros((1, 0), dtype=np.float32)
    scores = Scores(0, 0, np.float32([-1]), np.int32([2]), nothing.astype(np.int32), nothing)
    assert unpacked_scores(packed_scores(scores)) == [TokenLogprob(-1.0, 2)]
