"""A model whose KV cache can be checked: each slot stores a fingerprint of all tokens up to its position.

Real KV at position p depends on every token up to p, and so does the fingerprint. The oracle verifies on every
read that the slot it was sent to holds the fingerprint of exactly this sequence's history: one wrong block, a
missing copy or a stale prefix hit is a failure here, where a real model would only write slightly odd text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import BlockManager
from octavo.block_manager.tiers import Tier, Transfer
from octavo.block_manager.windowed import WindowedBlockManager
from octavo.scheduler.plan import Sampled, StepPlan
from octavo.scheduler.rows import Rows
from octavo.scheduler.scheduler import Scheduler

_EMPTY = 0
_M = (1 << 61) - 1


def fingerprint(previous: int, token: int) -> int:
    """Of a history that ends with this token."""
    return (previous * 1_000_003 + token + 1) % _M


def next_token(history: int, seed: int, vocab_size: int) -> int:
    """The oracle model's output: a function of the whole history and the sequence's seed alone."""
    return (history ^ (seed * 0x9E3779B9)) % 65_537 % vocab_size


def token_logprobs(history: int, vocab_size: int) -> npt.NDArray[np.float32]:
    """How likely the oracle finds each next token: float32 ``[vocab_size]``, a function of the history alone."""
    tokens = np.arange(vocab_size, dtype=np.uint64)
    mixed = (np.uint64(history % 1_000_003) * np.uint64(7_919) + tokens * np.uint64(104_729)) % np.uint64(9_973)
    return -(mixed.astype(np.float32) + 1) / 2_000


def expected_output(
    prompt: list[int], length: int, vocab_size: int, seed: int = 0, eos: int | None = None
) -> list[int]:
    """What the oracle generates for a prompt, computed without any cache."""
    history = 0
    for token in prompt:
        history = fingerprint(history, token)
    output: list[int] = []
    while len(output) < length and (not output or output[-1] != eos):
        output.append(next_token(history, seed, vocab_size))
        history = fingerprint(history, output[-1])
    return output


class OracleRunner:
    """Executes plans against fingerprints instead of tensors."""

    def __init__(self, scheduler: Scheduler, vocab_size: int) -> None:
        self.rows: Rows = scheduler.rows
        self.manager: BlockManager = scheduler.manager
        self.vocab_size = vocab_size
        self.groups = {0: 0}  # group of layers -> its window; 0 for none
        if isinstance(self.manager, WindowedBlockManager):
            groups = self.manager.groups
            self.groups = {g: groups.window if g >= groups.num_full else 0 for g in range(len(groups.members))}
        pool = self.manager.pool
        sizes = {Tier.DEVICE: pool.num_blocks}
        sizes |= {tier: self.manager.tiers.counts(tier).total for tier in self.manager.tiers.existing}
        self.tiers = {
            tier: np.full((size + 1, self.manager.block_size), _EMPTY, dtype=np.int64) for tier, size in sizes.items()
        }
        self.kv = self.tiers[Tier.DEVICE]

    def transfer(self, transfers: Iterable[Transfer], arrives: Callable[[], bool] = lambda: True) -> list[Transfer]:
        """Copies blocks between tiers, one after another; returns those that did not arrive and left garbage."""
        lost: list[Transfer] = []
        garbage: set[tuple[Tier, int]] = set()
        for transfer in transfers:
            source, source_block, target, target_block = transfer
            if (source, source_block) not in garbage and arrives():
                self.tiers[target][target_block] = self.tiers[source][source_block]
                garbage.discard((target, target_block))
            else:
                self.tiers[target][target_block] = -1
                garbage.add((target, target_block))
                lost.append(transfer)
        return lost

    def execute(self, plan: StepPlan) -> Sampled:
        """Copies, writes, then reads and verifies; returns the sampled tokens."""
        for source, destination in plan.copies:
            self.kv[destination] = self.kv[source]
        members = list(zip(plan.rows.tolist(), plan.starts.tolist(), plan.query_lens.tolist(), strict=True))
        self._write(members)
        histories = [self._read(row, start, start + length) for row, start, length in members]
        tokens = [
            next_token(histories[source], int(self.rows.seed[target]) % 2**31, self.vocab_size)
            for source, target in zip(plan.sample_from.tolist(), plan.sample_rows.tolist(), strict=True)
        ]
        sampled = [histories[source] for source in plan.sample_from.tolist()]
        return Sampled(np.array(tokens, dtype=np.int32), *self._likelihoods(plan, tokens, sampled))

    def _likelihoods(self, plan: StepPlan, tokens: list[int], histories: list[int]) -> list[np.ndarray | None]:
        """`Sampled`'s logprobs, beam_tokens and beam_logprobs."""
        logprobs = [token_logprobs(history, self.vocab_size) for history in histories]
        widths = self.rows.beam_width[plan.sample_rows]
        wanted = self.rows.wants_logprobs[plan.sample_rows]
        chosen = np.array([logprobs[i][token] * wanted[i] for i, token in enumerate(tokens)], dtype=np.float32)
        if not widths.any():
            return [chosen if wanted.any() else None, None, None]
        of_beams = np.array([logprobs[i] for i in np.flatnonzero(widths)])
        likeliest = np.argsort(-of_beams, axis=1, kind="stable")[:, : 2 * int(widths.max())].astype(np.int32)
        return [chosen if wanted.any() else None, likeliest, np.take_along_axis(of_beams, likeliest, axis=1)]

    def origin(self, row: int) -> int:
        """What a row's history begins with: equal tokens after different origins have different KV."""
        return _EMPTY

    def _write(self, members: list[tuple[int, int, int]]) -> None:
        writer: dict[int, int] = {}
        for row, start, length in members:
            history = self.origin(row)
            for position, token in enumerate(self.rows.token_ids[row, : start + length].tolist()):
                history = fingerprint(history, token)
                for group in self.groups if position >= start else ():
                    block, offset = self._slot(group, row, position)
                    assert writer.setdefault(block, row) == row, f"block {block} has two writers in one step"
                    self.kv[block, offset] = history ^ group

    def _read(self, row: int, start: int, end: int) -> int:
        """What a sequence's layers see that computes these tokens."""
        history = self.origin(row)
        for position, token in enumerate(self.rows.token_ids[row, :end].tolist()):
            history = fingerprint(history, token)
            for group, window in self.groups.items():
                if window and position <= start - window:
                    continue  # behind the first query's window
                block, offset = self._slot(group, row, position)
                assert self.kv[block, offset] == history ^ group, (
                    f"row {row} position {position}: block {block} of group {group} holds other KV"
                )
        return history

    def _slot(self, group: int, row: int, position: int) -> tuple[int, int]:
        size = self.manager.block_size
        assert position // size < self.manager.tables.lengths[row], f"row {row} has no block for position {position}"
        block = int(self.manager.blocks_of(group, self.manager.tables.ids[row, position // size]))
        assert block, f"row {row} position {position} has no block of group {group}"
        return block, position % size
