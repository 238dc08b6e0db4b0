"""The running sequences as arrays, one row each.

A steady decode step reads and writes whole columns and touches no Python object per sequence. The runner reads
the same arrays as its input; only the scheduler writes them, and only between steps.

    token_ids[row]   p p p p p p o o o · · · ·        p prompt, o output, · unused
                             ▲     ▲
                  num_computed     num_tokens          the step computes what lies between
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.scheduler.request import NO_ROW, Sequence

# Odd, and not the constant by which `octavo.engine.sampler.uniforms` steps positions: siblings would otherwise draw
# each other's numbers, one position apart.
SIBLING_SEED_STEP = 0xD1342543DE82EF95
_TWO_TO_64 = 1 << 64


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
        tenant: int32; index of whose it is.
        wants_logprobs: bool; the log-probabilities of sampled tokens are asked for.
        beam_width: int32; beams of the search that the sequence belongs to, 0 if to none.
        owner: The sequence in each row, or None.
    """

    def __init__(self, num_rows: int, max_model_len: int) -> None:
        self.token_ids: npt.NDArray[np.int32] = np.zeros((num_rows, max_model_len), dtype=np.int32)
        self.num_tokens = np.zeros(num_rows, dtype=np.int32)
        self.num_computed = np.zeros(num_rows, dtype=np.int32)
        self.limit = np.zeros(num_rows, dtype=np.int32)
        self.prompt_len = np.zeros(num_rows, dtype=np.int32)
        self.min_len = np.zeros(num_rows, dtype=np.int32)
        self.stream = np.zeros(num_rows, dtype=np.int64)
        self.tenant = np.zeros(num_rows, dtype=np.int32)
        self.withheld = np.zeros(num_rows, dtype=np.bool_)
        self.unforked = np.zeros(num_rows, dtype=np.bool_)
        self.stops_at_eos = np.zeros(num_rows, dtype=np.bool_)
        self.has_stop_ids = np.zeros(num_rows, dtype=np.bool_)
        self.temperature = np.zeros(num_rows, dtype=np.float32)
        self.top_k = np.zeros(num_rows, dtype=np.int32)
        self.top_p = np.ones(num_rows, dtype=np.float32)
        self.min_p = np.zeros(num_rows, dtype=np.float32)
        self.seed = np.zeros(num_rows, dtype=np.uint64)
        self.wants_logprobs = np.zeros(num_rows, dtype=np.bool_)
        self.beam_width = np.zeros(num_rows, dtype=np.int32)
        self.owner: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self._held = 0

    @property
    def available(self) -> int:
        """Rows that no sequence has and that are not kept for one."""
        return len(self._free) - self._held

    def hold(self, count: int) -> None:
        """Keeps rows for sequences to come; a negative count gives them back."""
        self._held += count
        assert 0 <= self._held <= len(self._free), f"{self._held} of {len(self._free)} free rows are held"

    def occupy(self, sequence: Sequence, num_computed: int) -> int:
        """Moves a sequence's tokens and parameters into a free row and returns the row."""
        row = self._free.pop()
        request, sampling = sequence.request, sequence.request.sampling
        length = len(sequence.tokens)
        self.token_ids[row, :length] = sequence.tokens
        self.num_tokens[row] = length
        self.num_computed[row] = num_computed
        self.limit[row] = request.limit
        self.prompt_len[row] = len(request.prompt)
        self.withheld[row] = sampling.chooses
        self.unforked[row] = sequence.index == 0 and request.unforked > 0
        self.min_len[row] = min(len(request.prompt) + sampling.min_tokens, request.limit)
        self.stream[row] = sequence.stream
        self.tenant[row] = request.tenant.index
        self.stops_at_eos[row] = not sampling.ignore_eos
        self.has_stop_ids[row] = bool(sampling.stop_token_ids)
        self.temperature[row] = 0.0 if sampling.greedy else sampling.temperature
        self.top_k[row] = max(sampling.top_k, 0)
        self.top_p[row] = max(sampling.top_p, 1e-30)  # the likeliest token always stays
        self.min_p[row] = sampling.min_p
        self.seed[row] = (request.seed + sequence.index * SIBLING_SEED_STEP) % _TWO_TO_64
        self.wants_logprobs[row] = sampling.wants_logprobs
        self.beam_width[row] = sampling.beam_width
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

    def tokens(self, row: int) -> npt.NDArray[np.int32]:
        """A view of the row's known tokens."""
        return self.token_ids[row, : self.num_tokens[row]]
