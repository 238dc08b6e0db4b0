"""A model whose KV cache can be checked: each slot stores a fingerprint of all tokens up to its position.

Real KV at position p depends on every token up to p, and so does the fingerprint. The oracle verifies on every
read that the slot it was sent to holds the fingerprint of exactly this sequence's history: one wrong block, a
missing copy or a stale prefix hit is a failure here, where a real model would only write slightly odd text.
"""

from __future__ import annotations

import numpy as np

from octavo.block_manager.manager import BlockManager
from octavo.scheduler.plan import StepPlan
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
        pool = self.manager.pool
        self.kv = np.full((pool.num_blocks + 1, pool.block_size), _EMPTY, dtype=np.int64)

    def execute(self, plan: StepPlan) -> np.ndarray:
        """Copies, writes, then reads and verifies; returns the sampled tokens."""
        for source, destination in plan.copies:
            self.kv[destination] = self.kv[source]
        members = list(zip(plan.rows.tolist(), plan.starts.tolist(), plan.query_lens.tolist(), strict=True))
        self._write(members)
        histories = [self._read(row, start + length) for row, start, length in members]
        return np.array(
            [
                next_token(histories[source], int(self.rows.seed[target]) % 2**31, self.vocab_size)
                for source, target in zip(plan.sample_from.tolist(), plan.sample_rows.tolist(), strict=True)
            ],
            dtype=np.int32,
        )

    def _write(self, members: list[tuple[int, int, int]]) -> None:
        writer: dict[int, int] = {}
        for row, start, length in members:
            history = 0
            for position, token in enumerate(self.rows.token_ids[row, : start + length].tolist()):
                history = fingerprint(history, token)
                if position >= start:
                    block, offset = self._slot(row, position)
                    assert writer.setdefault(block, row) == row, f"block {block} has two writers in one step"
                    self.kv[block, offset] = history

    def _read(self, row: int, end: int) -> int:
        history = 0
        for position, token in enumerate(self.rows.token_ids[row, :end].tolist()):
            history = fingerprint(history, token)
            block, offset = self._slot(row, position)
            assert self.kv[block, offset] == history, f"row {row} position {position}: block {block} holds other KV"
        return history

    def _slot(self, row: int, position: int) -> tuple[int, int]:
        size = self.manager.block_size
        assert position // size < self.manager.tables.lengths[row], f"row {row} has no block for position {position}"
        return int(self.manager.tables.ids[row, position // size]), position % size
