"""The running sequences as arrays, one row each.

A steady decode step reads and writes whole columns and touches no Python object per sequence. The runner reads
the same arrays as its input; only the scheduler writes them, and only between steps.

    token_ids[row]   p p p p p p o o o · · · ·        p prompt, o output, · unused
                             ▲     ▲
                  num_computed     num_tokens          the step computes what lies between
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from octavo.scheduler.request import NO_ROW, Sequence
from octavo.scheduler.sampling import POOLINGS, SamplingParams

# Odd, and not the constant by which `octavo.engine.sampler.uniforms` steps positions: siblings would otherwise draw
# each other's numbers, one position apart.
SIBLING_SEED_STEP = 0xD1342543DE82EF95
_TWO_TO_64 = 1 << 64

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


# A row's columns lie beside each other and are all written at once: storing one number into an array takes as long as
# packing all of them. The letters are those of `struct` and of numpy alike.
_COLUMNS = (
    ("num_tokens", "i"),
    ("num_computed", "i"),
    ("limit", "i"),
    ("prompt_len", "i"),
    ("min_len", "i"),
    ("tenant", "i"),
    ("beam_width", "i"),
    ("top_k", "i"),
    ("temperature", "f"),
    ("top_p", "f"),
    ("min_p", "f"),
    ("presence_penalty", "f"),
    ("frequency_penalty", "f"),
    ("repetition_penalty", "f"),
    ("num_logprobs", "i"),
    ("num_prompt_logprobs", "i"),
    ("pooling", "i"),
    ("stream", "q"),
    ("seed", "Q"),
    ("withheld", "?"),
    ("unforked", "?"),
    ("stops_at_eos", "?"),
    ("has_stop_ids", "?"),
    ("wants_logprobs", "?"),
    ("edited", "?"),
    ("constrained", "?"),
    ("plain", "?"),
)
_RECORD = np.dtype(list(_COLUMNS), align=True)
_PACKED = struct.Struct("@" + "".join(letter for _, letter in _COLUMNS))
# Numpy's records end where the next one may begin.
assert 0 <= _RECORD.itemsize - _PACKED.size < _RECORD.alignment


class Rows:
    """Columns over ``num_rows`` sequences of up to ``max_model_len`` tokens.

    Attributes:
        token_ids: int32 ``[num_rows, max_model_len]``.
        num_tokens, num_computed: int32; known tokens, and those whose KV is in the cache.
        limit: int32; ``num_tokens`` at which the sequence ends.
        prompt_len: int32; tokens of the prompt.
        min_len: int32; ``num_tokens`` below which no stop token may be sampled.
        stream: int64; see `octavo.scheduler.streams`.
        withheld: bool; nothing is given out before all outputs are known.
        unforked: bool; siblings are to be forked off when the prompt is complete.
        stops_at_eos, has_stop_ids: bool; which kinds of stop token apply.
        temperature, top_p, min_p: float32. top_k: int32. seed: uint64.
        presence_penalty, frequency_penalty, repetition_penalty: float32.
        num_logprobs, num_prompt_logprobs: int32; likeliest tokens to give beside each sampled one, or beside each of
            the prompt; −1: no log-probabilities at all.
        pooling: int32; how the prompt's hidden states become one vector, an index into `POOLINGS`.
        plain: bool; each next token is simply the likeliest one, and nothing is told of it.
        edited, constrained: bool; some tokens are favoured or forbidden, and: a grammar is followed.
        tenant: int32; index of whose it is.
        wants_logprobs: bool; outputs are chosen by the log-probabilities of sampled tokens. Beams have their own.
        beam_width: int32; beams of the search that the sequence belongs to, 0 if to none.
        owner: The sequence in each row, or None.
        available: Rows that no sequence has and that are not kept for one.
    """

    def __init__(self, num_rows: int, max_model_len: int) -> None:
        self.token_ids: Int32s = np.zeros((num_rows, max_model_len), dtype=np.int32)
        self._records: npt.NDArray[np.void] = np.zeros(num_rows, dtype=_RECORD)
        self._packed = self._records.view(np.uint8).data
        self.num_tokens: Int32s = self._records["num_tokens"]
        self.num_computed: Int32s = self._records["num_computed"]
        self.limit: Int32s = self._records["limit"]
        self.prompt_len: Int32s = self._records["prompt_len"]
        self.min_len: Int32s = self._records["min_len"]
        self.tenant: Int32s = self._records["tenant"]
        self.beam_width: Int32s = self._records["beam_width"]
        self.top_k: Int32s = self._records["top_k"]
        self.temperature: Float32s = self._records["temperature"]
        self.top_p: Float32s = self._records["top_p"]
        self.min_p: Float32s = self._records["min_p"]
        self.presence_penalty: Float32s = self._records["presence_penalty"]
        self.frequency_penalty: Float32s = self._records["frequency_penalty"]
        self.repetition_penalty: Float32s = self._records["repetition_penalty"]
        self.num_logprobs: Int32s = self._records["num_logprobs"]
        self.num_prompt_logprobs: Int32s = self._records["num_prompt_logprobs"]
        self.pooling: Int32s = self._records["pooling"]
        self.stream: npt.NDArray[np.int64] = self._records["stream"]
        self.seed: npt.NDArray[np.uint64] = self._records["seed"]
        self.withheld: Bools = self._records["withheld"]
        self.unforked: Bools = self._records["unforked"]
        self.stops_at_eos: Bools = self._records["stops_at_eos"]
        self.has_stop_ids: Bools = self._records["has_stop_ids"]
        self.wants_logprobs: Bools = self._records["wants_logprobs"]
        self.edited: Bools = self._records["edited"]
        self.constrained: Bools = self._records["constrained"]
        self.plain: Bools = self._records["plain"]
        self.owner: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self.available = num_rows

    def hold(self, count: int) -> None:
        """Keeps rows for sequences to come; a negative count gives them back."""
        self.available -= count
        held = len(self._free) - self.available
        assert 0 <= held <= len(self._free), f"{held} of {len(self._free)} free rows are held"

    def occupy(self, sequence: Sequence, num_computed: int) -> int:
        """Moves a sequence's tokens and parameters into a free row and returns the row."""
        row = self._free.pop()
        self.available -= 1
        request, sampling, tokens = sequence.request, sequence.request.sampling, sequence.tokens
        length, num_prompt, chooses = len(tokens), len(request.prompt), sampling.chooses
        self.token_ids[row, :length] = tokens
        _PACKED.pack_into(
            self._packed,
            row * _RECORD.itemsize,
            # In the order of `_COLUMNS`.
            length,
            num_computed,
            request.limit,
            num_prompt,
            min(num_prompt + sampling.min_tokens, request.limit),
            request.tenant.index,
            sampling.beam_width,
            sampling.top_k if sampling.top_k > 0 else 0,
            0.0 if sampling.greedy else sampling.temperature,
            max(sampling.top_p, 1e-30),  # the likeliest token always stays
            sampling.min_p,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
            -1 if sampling.logprobs is None else sampling.logprobs,
            -1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs,
            POOLINGS.index(sampling.pooling) if sampling.pooling else 0,
            sequence.stream,
            (request.seed + sequence.index * SIBLING_SEED_STEP) % _TWO_TO_64,
            chooses,
            sequence.index == 0 and request.unforked > 0,
            not sampling.ignore_eos,
            bool(sampling.stop_token_ids),
            chooses and not sampling.beam_width,
            sampling.edits_logits,
            sampling.grammar is not None,
            sampling.is_plain,
        )
        self.owner[row] = sequence
        sequence.row = row
        return row

    def append(self, row: int, token: int) -> None:
        """Adds one token to what is known of a row."""
        self.token_ids[row, self.num_tokens[row]] = token
        self.num_tokens[row] += 1

    def copy(self, source: int, target: int) -> None:
        """Makes an occupied row's sequence continue what another row of the same request holds."""
        self.token_ids[target, : self.num_tokens[source]] = self.tokens(source)
        self.num_tokens[target] = self.num_tokens[source]
        self.num_computed[target] = self.num_computed[source]

    def vacate(self, sequence: Sequence) -> None:
        """Moves a sequence's tokens out of its row and frees the row."""
        row = sequence.row
        sequence.tokens = self.tokens(row).copy()
        sequence.row = NO_ROW
        self.owner[row] = None
        self._free.append(row)
        self.available += 1

    def tokens(self, row: int) -> npt.NDArray[np.int32]:
        """A view of the row's known tokens."""
        return self.token_ids[row, : self.num_tokens[row]]

    def outputs(self, row: int) -> npt.NDArray[np.int32]:
        """A view of those behind the prompt."""
        return self.token_ids[row, self.prompt_len[row] : self.num_tokens[row]]

    def sampling(self, row: int) -> SamplingParams:
        """The parameters of an occupied row's request."""
        owner = self.owner[row]
        assert owner is not None, f"row {row} is free"
        return owner.request.sampling
