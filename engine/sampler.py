"""Logits to tokens, log-probabilities and beams: greedy, temperature, top-k, top-p, min-p, reproducible by seed.

Each token needs one uniform number, a hash of (seed of the sequence, position), and is found by inverting the
cumulative distribution of its own row. So equal logits give a seeded request equal tokens, whatever else is in the
batch and after any preemption, and no generator state has to be kept per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from octavo.engine.logits import change, changed_rows, forbid_early_stops
from octavo.scheduler.plan import Sampled, Scores
from octavo.scheduler.rows import Rows

# Truncated rows (top-k, top-p, min-p) look at this many likeliest tokens first, and at all only if those do not
# reach far enough: sorting a whole vocabulary costs more than a small model's decode step.
_CANDIDATES = 256

# Weights that are summed before one of them is looked for.
_RUN = 256
_BELOW_ONE = 1 - 2.0**-53

_SCORES = ("score_logprobs", "score_ranks", "score_tokens", "score_top_logprobs")  # as in `Scores`


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): the SplitMix64 finaliser (Steele et al., 2014)."""
    x = seeds + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    numbers: npt.NDArray[np.float64] = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


@dataclass(frozen=True, slots=True)
class _Truncation:
    """Per row, as columns ``[num_rows, 1]`` on the logits' device."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


class Sampler:
    """Samples one token for each row of logits.

    It answers with a `Sampled`: the tokens, their log-probabilities for rows that want them, and for the rows of a beam
    search the likeliest next tokens, of which the scheduler makes beams. What no row asks for is None, and costs
    nothing. The token of a beam search's row is the likeliest one, whatever its temperature.

    Args:
        rows: The scheduler's running sequences; their sampling parameters are read from it.
        eos_token_ids: Tokens that must not come before a row's ``min_len``.
    """

    def __init__(self, rows: Rows, eos_token_ids: list[int]) -> None:
        self._rows = rows
        self._eos = eos_token_ids

    def sample(self, logits: Tensor, rows: npt.NDArray[np.int32], masks: Tensor | None = None) -> Sampled:
        """Chooses the next token of each row.

        Args:
            logits: float32 ``[num_samples, vocab_size]``; may be written to.
            rows: int32 ``[num_samples]``, the sequences' rows.
            masks: What grammars allow; see `octavo.engine.logits.change`.

        Returns:
            Arrays on the host, which cross over to it in one transfer.
        """
        if self._rows.plain[rows].all():
            return Sampled(tokens=_likeliest_tokens(logits).to(torch.int32).cpu().numpy())
        forbid_early_stops(logits, self._rows, rows, self._eos)
        own = logits
        if changed_rows(self._rows, rows).any():
            told = self._rows.wants_logprobs[rows] | (self._rows.num_logprobs[rows] >= 0)
            own = logits.clone() if told.any() else logits  # log-probabilities are the model's own
            change(logits, self._rows, rows, masks)
        sampled = np.flatnonzero((self._rows.temperature[rows] > 0) & (self._rows.beam_width[rows] == 0))
        if len(sampled) == len(rows):
            return self._answer(own, logits, self._sample_randomly(logits, rows), rows)
        tokens = _likeliest_tokens(logits)
        if len(sampled):
            where = torch.from_numpy(sampled).to(logits.device)
            tokens[where] = self._sample_randomly(_take(logits, sampled), rows[sampled])
        return self._answer(own, logits, tokens, rows)

    def warm_up(self, logits: Tensor) -> None:
        """Compiles, or loads, what samples by whole distributions."""
        if _is_compiled(logits):
            from octavo.kernels.cpu.sampling import sample_rows

            ones, zeros = np.ones(len(logits), np.float32), np.zeros(len(logits), np.float32)
            sample_rows(logits, zeros.astype(np.float64), ones, zeros.astype(np.int32), ones, zeros)

    def _answer(self, own: Tensor, logits: Tensor, tokens: Tensor, rows: npt.NDArray[np.int32]) -> Sampled:
        beam_widths, tops = self._rows.beam_width[rows], self._rows.num_logprobs[rows]
        wanted, beams = np.flatnonzero(self._rows.wants_logprobs[rows]), np.flatnonzero(beam_widths)
        scored = np.flatnonzero(tops >= 0)
        found = {"tokens": tokens.to(torch.int32)}
        if len(wanted):
            found["logprobs"] = _logprobs(_take(own, wanted), _take(tokens, wanted).unsqueeze(-1))
        if len(beams):
            width = 2 * int(beam_widths.max())
            found["beam_tokens"], found["beam_logprobs"] = _likeliest(_take(logits, beams), width)
        if len(scored):
            found |= _score(_take(own, scored), _take(tokens, scored), int(tops.max()))
        host: dict[str, Any] = _to_host(found)
        if len(wanted):
            logprobs = np.zeros(len(rows), dtype=np.float32)
            logprobs[wanted] = host["logprobs"].squeeze(-1)
            host["logprobs"] = logprobs
        scores = self._scores(host, rows[scored]) if len(scored) else ()
        return Sampled(**host, scores=scores)

    def _scores(self, host: dict[str, npt.NDArray[Any]], rows: npt.NDArray[np.int32]) -> tuple[Scores, ...]:
        """What was found out about these rows' tokens, taken out of ``host``."""
        logprobs, ranks, top_tokens, top_logprobs = (host.pop(name) for name in _SCORES)
        columns = self._rows.stream[rows], self._rows.num_tokens[rows], self._rows.num_logprobs[rows]
        return tuple(
            Scores(stream, at, logprobs[[i]], ranks[[i]], top_tokens[[i], :top], top_logprobs[[i], :top])
            for i, (stream, at, top) in enumerate(zip(*(column.tolist() for column in columns), strict=True))
        )

    def score_prompt(self, logits: Tensor, row: int, start: int) -> Scores:
        """Log-probabilities of a run of a sequence's known tokens.

        Args:
            logits: float32 ``[n, vocab_size]``, of the positions before each.
            start: Position of the first of them.
        """
        tokens = torch.from_numpy(self._rows.token_ids[row, start : start + len(logits)]).to(logits.device)
        width = int(self._rows.num_prompt_logprobs[row])
        host = _to_host(_score(logits, tokens.long(), width))
        return Scores(int(self._rows.stream[row]), start, *(host[name] for name in _SCORES))

    def _sample_randomly(self, logits: Tensor, rows: npt.NDArray[np.int32]) -> Tensor:
        columns = self._rows
        if _is_compiled(logits):
            from octavo.kernels.cpu.sampling import sample_rows

            numbers = uniforms(columns.seed[rows], columns.num_tokens[rows])
            cut = columns.top_k[rows], columns.top_p[rows], columns.min_p[rows]
            return sample_rows(logits, numbers, columns.temperature[rows], *cut)
        truncated = (columns.top_k[rows] > 0) | (columns.top_p[rows] < 1) | (columns.min_p[rows] > 0)
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        for subset, sample in ((~truncated, self._sample_all), (truncated, self._sample_truncated)):
            chosen = np.flatnonzero(subset)
            if len(chosen):
                numbers = uniforms(columns.seed[rows[chosen]], columns.num_tokens[rows[chosen]])
                tokens[torch.from_numpy(chosen).to(tokens.device)] = sample(
                    _take(logits, chosen), rows[chosen], numbers
                )
        return tokens

    def _sample_all(self, logits: Tensor, rows: npt.NDArray[np.int32], numbers: npt.NDArray[np.float64]) -> Tensor:
        weights = torch.softmax(logits / _column(self._rows.temperature[rows], logits.device), dim=-1)
        return _invert(weights, _column(numbers, logits.device))

    def _sample_truncated(
        self, logits: Tensor, rows: npt.NDArray[np.int32], numbers: npt.NDArray[np.float64]
    ) -> Tensor:
        columns, device = self._rows, logits.device
        truncation = _Truncation(
            _column(columns.top_k[rows].astype(np.int64), device),
            _column(columns.top_p[rows], device),
            _column(columns.min_p[rows], device),
        )
        scaled = logits / _column(columns.temperature[rows], device)
        return _sample_truncated(scaled, _column(numbers, device), truncation)


def _is_compiled(logits: Tensor) -> bool:
    """Whether `octavo.kernels.cpu.sampling` samples from them."""
    return logits.device.type == "cpu"


def _likeliest_tokens(logits: Tensor) -> Tensor:
    """int64 ``[num_rows]``: each row's likeliest token, of equals the first."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))  # torch takes several times as long
    return logits.argmax(dim=-1)


def _sample_truncated(logits: Tensor, numbers: Tensor, truncation: _Truncation) -> Tensor:
    candidates = min(_CANDIDATES, logits.shape[-1])
    tokens, covered = _sample_among(logits, numbers, truncation, candidates)
    if not covered.all():
        rest = torch.nonzero(~covered).squeeze(-1)
        part = _Truncation(truncation.top_k[rest], truncation.top_p[rest], truncation.min_p[rest])
        tokens[rest], _ = _sample_among(logits[rest], numbers[rest], part, logits.shape[-1])
    return tokens


def _sample_among(logits: Tensor, numbers: Tensor, cut: _Truncation, candidates: int) -> tuple[Tensor, Tensor]:
    """Samples among the likeliest tokens; also tells for which rows these hold all that may be sampled."""
    ids = logits.topk(candidates, dim=-1).indices
    # Probabilities are those of the whole vocabulary, however few candidates are looked at.
    probs = torch.softmax(logits, dim=-1).gather(-1, ids)
    rank = torch.arange(candidates, device=logits.device)
    within_k = (cut.top_k == 0) | (rank < cut.top_k)
    # top-p applies to what top-k left, renormalised.
    probs_k = probs * within_k
    total_k = torch.where(cut.top_k == 0, 1.0, probs_k.sum(dim=-1, keepdim=True))
    before = probs_k.cumsum(dim=-1) - probs_k
    kept = within_k & ((before < cut.top_p * total_k) | (cut.top_p >= 1)) & (probs >= cut.min_p * probs[:, :1])
    # top-p's sum is known only if top-k's tokens are all among the candidates.
    summed = ((cut.top_k <= candidates) | (cut.top_p >= 1)).squeeze(-1)
    covered = (~kept[:, -1] & summed) | (candidates == logits.shape[-1])
    choice = _invert(probs * kept, numbers)
    return ids.gather(-1, choice.unsqueeze(-1)).squeeze(-1), covered


def _invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """The index at which the cumulative weight passes ``number`` × the total: ``[num_rows]``.

    First among runs of `_RUN` weights, then in the run: the cumulative weights of a whole vocabulary would cost more
    than a small model's decode step.
    """
    runs = pad(weights, (0, -weights.shape[-1] % _RUN)).reshape(len(weights), -1, _RUN)
    run, rest = _pass(runs.sum(dim=-1, dtype=torch.float64), numbers)
    chosen = runs.take_along_dim(run.unsqueeze(-1), dim=1).squeeze(1)
    # What is left is a number of the run's own total.
    choice, _ = _pass(chosen.double(), rest)
    # Weights that are no numbers lead anywhere, even behind the last one.
    return (run * _RUN + choice).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


def _pass(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative weight, float64, passes ``number`` × the total, and how far into that weight, in [0, 1).

    What weighs nothing is not chosen, however the sums were rounded.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    goal = numbers * total
    last = torch.searchsorted(cumulative, total)  # the last one that weighs anything
    choice = torch.minimum(torch.searchsorted(cumulative, goal, right=True), last).clamp_(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, choice)
    into = (goal - (cumulative.gather(-1, choice) - weight)) / weight
    return choice, into.nan_to_num_(0.0).clamp_(0.0, _BELOW_ONE)


def _score(logits: Tensor, tokens: Tensor, width: int) -> dict[str, Tensor]:
    """The arrays of `Scores` for the token of each row."""
    chosen, likeliest = tokens.unsqueeze(-1), _top(logits, width)
    ranks = (logits > logits.gather(-1, chosen)).sum(dim=-1, dtype=torch.int32) + 1
    logprobs = _logprobs(logits, torch.cat((chosen, likeliest), dim=-1))
    found = logprobs[:, 0], ranks, *_widened(likeliest, logprobs[:, 1:], width)
    return dict(zip(_SCORES, found, strict=True))


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of ``tokens`` ``[num_rows, k]`` in each row's distribution, in the same shape.

    On a CPU torch's log_softmax sums each row by itself; its logsumexp, in an order that the number of rows decides.
    """
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens)
    # Where every token is forbidden, −inf less −inf would be NaN.
    return logprobs.masked_fill_(logits.gather(-1, tokens) == -torch.inf, -torch.inf)


def _likeliest(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens and their log-probabilities, as in `Sampled`: int32 and float32 ``[num_rows, width]``."""
    tokens = _top(logits, width)
    return _widened(tokens, _logprobs(logits, tokens), width)


def _top(logits: Tensor, width: int) -> Tensor:
    """The likeliest tokens of each row, int64; all of them if there are fewer than ``width``."""
    return _sort_keys(logits).topk(min(width, logits.shape[-1]), dim=-1).indices


def _widened(tokens: Tensor, logprobs: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Tokens, as int32, and log-probabilities, with what a small vocabulary lacks filled up."""
    missing = width - tokens.shape[-1]
    return pad(tokens.to(torch.int32), (0, missing)), pad(logprobs, (0, missing), value=-torch.inf)


def _sort_keys(logits: Tensor) -> Tensor:
    """int64 of the logits' shape: greater for a greater logit, and for a lower id among equal ones.

    `topk` takes any of equals, and which ones may change with its k, so with the company a row is in. Equals are
    common: from 16 to 32, bfloat16 has but 128 numbers.

        bit  63 ........ 32   31 ............ 0
             logit, ordered   vocab − 1 − token
    """
    bits = logits.view(torch.int32)
    # Read as an integer, a float32 keeps its order if positive; flipping what follows the sign turns negatives round.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    last_first = torch.arange(logits.shape[-1] - 1, -1, -1, device=logits.device)
    return ordered.to(torch.int64).mul_(1 << 32).add_(last_first)


def _take(values: Tensor, chosen: npt.NDArray[np.intp]) -> Tensor:
    """The chosen rows; no copy if they are all."""
    if len(chosen) == len(values):
        return values
    # Unlike a plain copy to the GPU, this one does not wait for the step; from pageable memory it is still safe.
    return values[torch.from_numpy(chosen).to(values.device, non_blocking=True)]


def _to_host(tensors: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Copies int32 and float32 tensors to the host as one: each transfer waits for the GPU and costs a round trip."""
    words = [tensor.reshape(-1).view(torch.int32) for tensor in tensors.values()]
    packed = (torch.cat(words) if len(words) > 1 else words[0]).cpu().numpy()
    parts = np.split(packed, np.cumsum([len(part) for part in words])[:-1])
    return {
        name: part.view(np.float32 if tensor.is_floating_point() else np.int32).reshape(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def _column(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(-1)
