"""Requests whose outputs are chosen when all are known, by ``best_of`` or beam search; nothing is given out before."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from octavo.scheduler.plan import Finished, StepResult
from octavo.scheduler.request import Candidate, FinishReason, Request
from octavo.scheduler.streams import stream_of


def give_out(request: Request) -> StepResult:
    """The n best of a request's outputs, as sequences 0 … n - 1, all tokens at once.

    Fewer than n, which only a model that finds every token impossible brings about, are an error.
    """
    penalty = request.sampling.length_penalty
    best = sorted(request.outputs, key=lambda output: -output.score(penalty))[: request.sampling.n]
    streams = [stream_of(request.key, index) for index in range(len(best))]
    if len(best) < request.sampling.n:
        error = f"{len(best)} of {request.sampling.n} outputs were found: the model rules every token out"
        return StepResult(finished=(Finished(stream_of(request.key, 0), FinishReason.ERROR, error=error),))
    return StepResult(
        streams=np.repeat(np.array(streams, dtype=np.int64), [len(output.tokens) for output in best]),
        tokens=np.array([token for output in best for token in output.tokens], dtype=np.int32),
        finished=tuple(_finished(stream, output) for stream, output in zip(streams, best, strict=True)),
    )


def joined(results: Iterable[StepResult]) -> StepResult:
    """Several results of one step as one."""
    parts = list(results)
    return StepResult(
        streams=np.concatenate([part.streams for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        started=tuple(entry for part in parts for entry in part.started),
        finished=tuple(entry for part in parts for entry in part.finished),
        preempted=tuple(stream for part in parts for stream in part.preempted),
        pinned=tuple(entry for part in parts for entry in part.pinned),
        scores=tuple(entry for part in parts for entry in part.scores),
        embeddings=tuple(entry for part in parts for entry in part.embeddings),
    )


def _finished(stream: int, output: Candidate) -> Finished:
    return Finished(stream, output.reason, output.stop_token_id, logprob=output.logprob)
