"""Chosen outputs of the oracle model, computed without any cache: best-of sampling, and beam search.

Written from the rules of transformers' beam search with ``early_stopping=False``, one history per beam and no state
shared with the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass

from oracle import expected_output, fingerprint, token_logprobs

from octavo.scheduler.rows import SIBLING_SEED_STEP
from octavo.scheduler.sampling import SamplingParams


@dataclass
class Beam:
    """One hypothesis."""

    history: int
    output: tuple[int, ...]
    logprob: float

    def score(self, penalty: float) -> float:
        return self.logprob / len(self.output) ** penalty

    def followed_by(self, token: int, logprob: float) -> Beam:
        return Beam(fingerprint(self.history, token), (*self.output, token), self.logprob + logprob)


def history_of(tokens: list[int]) -> int:
    """Fingerprint of some tokens."""
    history = 0
    for token in tokens:
        history = fingerprint(history, token)
    return history


def beam_search(prompt: list[int], sampling: SamplingParams, vocab_size: int, eos: int) -> list[list[int]]:
    """The n best outputs."""
    width, penalty = sampling.beam_width, sampling.length_penalty
    stops = {*sampling.stop_token_ids, *([] if sampling.ignore_eos else [eos])}
    live, done = [Beam(history_of(prompt), (), 0.0)], list[Beam]()
    assert sampling.max_tokens is not None
    for length in range(1, sampling.max_tokens + 1):
        pairs = []
        for beam in live:
            logprobs = token_logprobs(beam.history, vocab_size)
            likeliest = sorted(range(vocab_size), key=lambda token: -logprobs[token])[: 2 * width]
            pairs += [beam.followed_by(token, float(logprobs[token])) for token in likeliest]
        pairs.sort(key=lambda beam: -beam.logprob)
        may_stop = length > sampling.min_tokens
        done += [pair for pair in pairs[:width] if may_stop and pair.output[-1] in stops]
        live = [pair for pair in pairs if not (may_stop and pair.output[-1] in stops)][:width]
        if length == sampling.max_tokens:
            done += live
        done = sorted(done, key=lambda beam: -beam.score(penalty))[:width]
        if not live or (len(done) == width and live[0].logprob / length**penalty <= done[-1].score(penalty)):
            break
    return [list(beam.output) for beam in done[: sampling.n]]


def best_of(prompt: list[int], sampling: SamplingParams, vocab_size: int, eos: int) -> list[list[int]]:
    """The n likeliest per token of ``best_of`` samples."""
    outputs = []
    for index in range(sampling.num_sequences):
        assert sampling.seed is not None
        assert sampling.max_tokens is not None
        seed = (sampling.seed + index * SIBLING_SEED_STEP) % 2**64 % 2**31
        stop = None if sampling.ignore_eos else eos
        output = expected_output(prompt, sampling.max_tokens, vocab_size, seed, stop)
        history, logprob = history_of(prompt), 0.0
        for token in output:
            logprob += float(token_logprobs(history, vocab_size)[token])
            history = fingerprint(history, token)
        outputs.append((logprob / len(output) ** sampling.length_penalty, output))
    ranked = sorted(outputs, key=lambda scored: -scored[0])
    return [output for _, output in ranked[: sampling.n]]
