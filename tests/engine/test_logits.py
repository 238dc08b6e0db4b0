"""What requests change in logits, each against a few lines that say the same slowly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from factories import make_request

from octavo.engine.logits import change, changed_rows
from octavo.engine.sampler import Sampler
from octavo.scheduler.request import Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams

VOCAB = 50
PROMPT = [1, 2, 2, 3]


def rows_with(params: list[SamplingParams], outputs: list[list[int]]) -> tuple[Rows, np.ndarray]:
    """A row for each set of parameters, whose sequence has sampled these tokens."""
    rows, chosen = Rows(len(params), 64), []
    for number, (sampling, output) in enumerate(zip(params, outputs, strict=True)):
        request = make_request(number, sampling=sampling, limit=64)
        request.prompt = np.array(PROMPT, dtype=np.int32)
        chosen.append(rows.occupy(Sequence(request, 0, np.array(PROMPT + output, dtype=np.int32)), 0))
    return rows, np.array(chosen, dtype=np.int32)


def slowly(logits: list[float], sampling: SamplingParams, output: list[int]) -> list[float]:
    """The oracle, token by token."""
    values = list(logits)
    for token in {*PROMPT, *output}:
        penalty = sampling.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token, count in Counter(output).items():
        values[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token, bias in sampling.logit_bias:
        values[token] += bias
    for token in range(VOCAB):
        if sampling.allowed_token_ids and token not in sampling.allowed_token_ids:
            values[token] = -np.inf
    for word in sampling.bad_words:
        if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]:
            values[word[-1]] = -np.inf
    return values


CASES = [
    (SamplingParams(), [4, 5]),
    (SamplingParams(repetition_penalty=1.5), [4, 4, 5]),
    (SamplingParams(repetition_penalty=0.5), []),
    (SamplingParams(presence_penalty=1.5), [4, 4, 5]),
    (SamplingParams(frequency_penalty=-2.0), [4, 4, 5]),
    (SamplingParams(presence_penalty=-1, frequency_penalty=0.3, repetition_penalty=2), [7, 1, 7, 7]),
    (SamplingParams(logit_bias=((4, 7.5), (9, -100.0))), [4]),
    (SamplingParams(allowed_token_ids=(3, 30), logit_bias=((30, 5),)), []),
    (SamplingParams(bad_words=((8,), (4, 5, 6), (5, 9))), [3, 4, 5]),
    (SamplingParams(bad_words=((3, 4),)), []),  # the prompt ends with 3: words are forbidden in the output alone
]


@pytest.mark.parametrize("together", [False, True])
def test_every_change_is_what_it_says(together: bool) -> None:
    logits = torch.randn(len(CASES), VOCAB, generator=torch.Generator().manual_seed(1))
    batches = [list(range(len(CASES)))] if together else [[i] for i in range(len(CASES))]
    for batch in batches:
        rows, chosen = rows_with([CASES[i][0] for i in batch], [CASES[i][1] for i in batch])
        changed = logits[batch].clone()
        change(changed, rows, chosen, None)
        expected = [slowly(logits[i].tolist(), *CASES[i]) for i in batch]
        np.testing.assert_allclose(changed.numpy(), expected, rtol=1e-6, atol=1e-6)
        assert changed_rows(rows, chosen).tolist() == [i > 0 for i in batch]


def test_masks_are_for_the_constrained_rows_and_forbid_what_pads_the_vocabulary() -> None:
    rows, chosen = rows_with([SamplingParams(), SamplingParams(grammar="x"), SamplingParams(grammar="y")], [[], [], []])
    masks = torch.zeros(2, 64, dtype=torch.bool)
    masks[0, 5] = masks[1, 7] = masks[1, 60] = True
    logits = torch.zeros(3, VOCAB)
    change(logits, rows, chosen, masks)
    assert [row.isfinite().nonzero().squeeze(1).tolist() for row in logits] == [list(range(VOCAB)), [5], [7]]


def test_scores_are_the_models_own_whatever_was_changed() -> None:
    params = [
        SamplingParams(temperature=0, logprobs=2, logit_bias=((9, 100),)),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logprobs=0),
    ]
    rows, chosen = rows_with(params, [[], [], [1]])
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    own = torch.log_softmax(logits.double(), -1)
    sampled = Sampler(rows, [2]).sample(logits.clone(), chosen)
    assert sampled.tokens[0] == 9
    first, last = sampled.scores
    assert (first.position, last.position) == (len(PROMPT), len(PROMPT) + 1)
    assert first.logprobs[0] == pytest.approx(float(own[0, 9]), abs=1e-5)
    assert first.ranks[0] == 1 + int((own[0] > own[0, 9]).sum())
    assert first.top_tokens.tolist() == own[:1].topk(2).indices.tolist()
    np.testing.assert_allclose(first.top_logprobs, own[:1].topk(2).values, atol=1e-5)
    assert last.ranks[0] == 1
    assert last.top_tokens.shape == (1, 0)
