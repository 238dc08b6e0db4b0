"""StepPlan: the one immutable thing the runner sees. Sampled: its answer. StepResult: what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import BlockCopy
from octavo.block_manager.tiers import Transfer
from octavo.scheduler.request import FinishReason

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


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
        transfers: Blocks to copy between tiers, one after another, first of all.
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
    transfers: tuple[Transfer, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return int(self.query_lens.sum())

    def without(self, rows: Iterable[int]) -> StepPlan:
        """The same step, with its transfers done, for the other rows only."""
        kept = ~np.isin(self.rows, list(rows))
        moved = np.cumsum(kept, dtype=np.int32) - 1
        samples = kept[self.sample_from]
        return replace(
            self,
            rows=self.rows[kept],
            starts=self.starts[kept],
            query_lens=self.query_lens[kept],
            num_decodes=int(np.count_nonzero(kept[: self.num_decodes])),
            sample_from=moved[self.sample_from[samples]].astype(np.int32),
            sample_rows=self.sample_rows[samples],
            transfers=(),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of consecutive tokens of one sequence: of the one just sampled, or of some of its prompt.

    They are natural logarithms, and those of the model itself, as in `Sampled`.

    Attributes:
        position: Of the first of these tokens in the sequence.
        logprobs: float32 ``[n]``. ranks: int32 ``[n]``, 1 for the likeliest token.
        top_tokens, top_logprobs: int32 and float32 ``[n, k]``: the likeliest tokens in their places, likeliest first.
    """

    stream: int
    position: int
    logprobs: Float32s
    ranks: Int32s
    top_tokens: Int32s
    top_logprobs: Float32s


@dataclass(frozen=True, slots=True)
class Embedding:
    """What became of a prompt's hidden states: float32 ``[hidden_size]``, after the model's last norm."""

    stream: int
    vector: Float32s


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the runner sampled in one step.

    Log-probabilities are natural logarithms, and those of the model itself: before temperature, top-k, top-p and
    min-p, but with stop tokens at −inf that must not come yet.

    Attributes:
        tokens: int32 ``[num_samples]``, one for each of the plan's ``sample_rows``.
        logprobs: float32 ``[num_samples]``: the tokens' log-probabilities where a row wants them, 0 elsewhere; None
            if nobody does.
        beam_tokens: int32 ``[num_beams, width]``: the likeliest next tokens of rows that belong to a beam search,
            likeliest first and of equals the lower id, in the order of those rows in ``sample_rows``; None if there
            are none. ``width`` is twice the largest beam width among them.
        beam_logprobs: float32, of the same shape. −inf: the token must not come. Where ``width`` exceeds the
            vocabulary, rows end with token 0 at −inf.
        scores: What requests asked to be told about sampled tokens and prompts.
        embeddings: Of the prompts that this step completed, where they were asked for.
    """

    tokens: Int32s
    logprobs: Float32s | None = None
    beam_tokens: Int32s | None = None
    beam_logprobs: Float32s | None = None
    scores: tuple[Scores, ...] = ()
    embeddings: tuple[Embedding, ...] = ()


class Started(NamedTuple):
    """A sequence that got its first token.

    Attributes:
        cached_tokens: The prefix hit of its first admission.
        queue_seconds: From its request's arrival to that admission; of siblings, to when they were forked off.
        prefill_seconds: From then until its prompt was computed.
    """

    stream: int
    cached_tokens: int
    queue_seconds: float
    prefill_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence.

    Attributes:
        stop_token_id: The token that ended it, if one did. error: the fault that did.
        logprob: Of the whole output, where outputs were chosen by it.
    """

    stream: int
    reason: FinishReason
    stop_token_id: int | None = None
    error: str | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave to the outside: token ``tokens[i]`` for sequence ``streams[i]``.

    Attributes:
        streams: int64 ``[num_samples]``; see `octavo.scheduler.streams.stream_of`.
        tokens: int32 ``[num_samples]``.
        started: Sequences that got their first token.
        finished: Sequences that ended. An error ends the whole request, and is told for one of its sequences.
        preempted: Streams of those that gave way when the step was planned.
        pinned: (stream, pin number) of prompts that were to be pinned; 0 if there was no room for it.
        scores: Log-probabilities that requests asked for. embeddings: their prompts' vectors.
    """

    streams: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tokens: Int32s = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    started: tuple[Started, ...] = ()
    finished: tuple[Finished, ...] = ()
    preempted: tuple[int, ...] = ()
    pinned: tuple[tuple[int, int], ...] = ()
    scores: tuple[Scores, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
