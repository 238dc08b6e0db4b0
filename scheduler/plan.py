"""StepPlan: the one immutable thing the runner sees, and StepResult: what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import BlockCopy
from octavo.scheduler.request import FinishReason

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes. Sequences with one token to compute come first.

    Attributes:
        number: Steps planned before this one.
        rows: int32 ``[num_seqs]``, the sequences' rows, each once.
        starts: int32 ``[num_seqs]``, position of the first token each computes.
        query_lens: int32 ``[num_seqs]``, tokens each computes; at least 1.
        num_decodes: The first so many sequences compute exactly one token.
        sample_from: int32 ``[num_samples]``, indices into ``rows``: whose last token's logits to sample from.
        sample_rows: int32 ``[num_samples]``, the row that gets each sampled token: the same sequence's, or that of
            a sibling which is forked off after this step.
        copies: Blocks to copy before anything is written.
    """

    number: int
    rows: Int32s
    starts: Int32s
    query_lens: Int32s
    num_decodes: int
    sample_from: Int32s
    sample_rows: Int32s
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return int(self.query_lens.sum())


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence. ``stop_token_id`` is set when a token ended it, ``error`` when a fault did."""

    stream: int
    reason: FinishReason
    stop_token_id: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave to the outside: token ``tokens[i]`` for sequence ``streams[i]``.

    Attributes:
        streams: int64 ``[num_samples]``; see `octavo.scheduler.request.stream_of`.
        tokens: int32 ``[num_samples]``.
        started: (stream, prefix hit in tokens) of sequences that got their first token.
        finished: Sequences that ended. An error ends the whole request, and is told for one of its sequences.
    """

    streams: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tokens: Int32s = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    started: tuple[tuple[int, int], ...] = ()
    finished: tuple[Finished, ...] = ()
