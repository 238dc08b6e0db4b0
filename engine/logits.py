"""What requests change in the model's logits before a token is chosen: penalties, biases, forbidden tokens, grammars.

Everything is derived anew from a sequence's tokens, so that preemption, forks and beams need no state of their own
here. Penalties of all rows are a few operations; the rest is asked for by few rows, and is done row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams

Int32s = npt.NDArray[np.int32]


def changed_rows(rows: Rows, chosen: Int32s) -> npt.NDArray[np.bool_]:
    """bool ``[num_samples]``: for which of these rows `change` does anything."""
    changed: npt.NDArray[np.bool_] = (
        rows.edited[chosen] | rows.constrained[chosen] | (rows.repetition_penalty[chosen] != 1) | _adds(rows, chosen)
    )
    return changed


def change(logits: Tensor, rows: Rows, chosen: Int32s, masks: Tensor | None) -> None:
    """Applies what the rows' requests ask for, in place.

    Args:
        logits: float32 ``[num_samples, vocab_size]``.
        chosen: int32 ``[num_samples]``, the sequences' rows.
        masks: bool ``[num_constrained, vocab_size]``, what grammars allow, for the constrained ones in this order.
    """
    penalise(logits, rows, chosen)
    for i in np.flatnonzero(rows.edited[chosen]).tolist():
        edit(logits[i], rows.sampling(chosen[i]), rows.outputs(chosen[i]))
    if masks is not None:
        where = torch.from_numpy(np.flatnonzero(rows.constrained[chosen])).to(logits.device)
        # A vocabulary may be padded beyond its tokenizer's tokens.
        logits[where] = logits[where].masked_fill(~masks[:, : logits.shape[1]], -torch.inf)


def forbid_early_stops(logits: Tensor, rows: Rows, chosen: Int32s, eos: list[int]) -> None:
    """Rules out the tokens that would end an output before its ``min_tokens``."""
    for i in np.flatnonzero(rows.num_tokens[chosen] < rows.min_len[chosen]).tolist():
        sampling = rows.sampling(chosen[i])
        logits[i, [*sampling.stop_token_ids, *([] if sampling.ignore_eos else eos)]] = -torch.inf


def penalise(logits: Tensor, rows: Rows, chosen: Int32s) -> None:
    """Repetition penalty (Keskar et al., 2019) on prompt and output, then OpenAI's two penalties on the output."""
    repeated = np.flatnonzero(rows.repetition_penalty[chosen] != 1)
    if len(repeated):
        where, tokens = _pairs([rows.tokens(row) for row in chosen[repeated]], repeated, logits)
        penalties = _each(rows.repetition_penalty[chosen], where)
        values = logits[where, tokens]
        # Tokens that occur twice are written twice, with the same number.
        logits[where, tokens] = torch.where(values > 0, values / penalties, values * penalties)
    added = np.flatnonzero(_adds(rows, chosen))
    if len(added):
        where, tokens = _pairs([rows.outputs(row) for row in chosen[added]], added, logits)
        logits[where, tokens] = logits[where, tokens] - _each(rows.presence_penalty[chosen], where)
        logits.index_put_((where, tokens), -_each(rows.frequency_penalty[chosen], where), accumulate=True)


def edit(logits: Tensor, sampling: SamplingParams, output: Int32s) -> None:
    """Applies one request's biases and forbidden tokens to its row: float32 ``[vocab_size]``, in place."""
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        logits[list(tokens)] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    if sampling.allowed_token_ids:
        allowed = list(sampling.allowed_token_ids)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    if banned := [word[-1] for word in sampling.bad_words if _ends_with(output, word[:-1])]:
        logits[banned] = -torch.inf


def _ends_with(output: Int32s, beginning: Sequence[int]) -> bool:
    length = len(beginning)
    return length <= len(output) and output[len(output) - length :].tolist() == list(beginning)


def _adds(rows: Rows, chosen: Int32s) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (rows.presence_penalty[chosen] != 0) | (rows.frequency_penalty[chosen] != 0)
    return found


def _pairs(tokens: list[Int32s], places: npt.NDArray[np.intp], logits: Tensor) -> tuple[Tensor, Tensor]:
    """(row of the logits, token) for every token of these sequences: two int64 ``[num_tokens]``."""
    where = np.repeat(places, [len(part) for part in tokens])
    return torch.from_numpy(where).to(logits.device), torch.from_numpy(np.concatenate(tokens)).to(logits.device).long()


def _each(values: npt.NDArray[np.float32], where: Tensor) -> Tensor:
    return torch.from_numpy(values).to(where.device)[where]
