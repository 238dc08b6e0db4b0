"""A scheduler whose clock is told, and a peer made of it: run in place of `scheduler_vllm.py` where vLLM is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scheduler_work
from scheduler_work import Subject, Work


class Clock:
    """Stands still between `tick`s. `time.thread_time` for what is measured in a test."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def tick(self, microseconds: float) -> None:
        self.seconds += microseconds / 1e6

    def thread_time(self) -> float:
        return self.seconds


class FakeScheduler:
    """Takes 300 µs to plan a step and 5 more for each that it admits, 200 to take it in, 7 to queue a request.

    After an abort it takes 100 more to plan the next step.

    Attributes:
        drift: Microseconds by which each step takes longer than the last.
        lengths: Tokens of each running sequence.
        crossings: How many of them crossed into a new block, step by step.
        log: Who worked, in turns: this file gets `name` when somebody else worked before.
    """

    bytes_per_block = 1.0

    def __init__(self, work: Work, clock: Clock | None = None, *, name: str = "fake", log: Path | None = None) -> None:
        self.clock = clock or Clock()
        self.name, self.log = name, log
        self.drift = 0
        self.lengths: dict[int, int] = {}
        self.crossings: list[int] = []
        self._waiting: dict[int, int] = {}
        self._aborted = 0

    @property
    def num_running(self) -> int:
        return len(self.lengths)

    def received(self, prompt: list[int]) -> list[int]:
        return prompt

    def add(self, key: int, prompt: list[int]) -> None:
        self.clock.tick(7)
        self._waiting[key] = len(prompt)

    def abort(self, key: int) -> None:
        self.clock.tick(1000)
        del self.lengths[key]
        self._aborted += 1

    def schedule(self) -> int:
        self._sign()
        self.clock.tick(300 + 5 * len(self._waiting) + 100 * self._aborted + self.drift * len(self.crossings))
        self._aborted = 0
        self.crossings.append(sum(length % scheduler_work.BLOCK_SIZE == 0 for length in self.lengths.values()))
        self.lengths |= self._waiting
        self._waiting.clear()
        return len(self.lengths)

    def sample(self, plan: int) -> int:
        self.clock.tick(1000)
        return plan

    def update(self, plan: int, sampled: int) -> None:
        assert plan == sampled
        self.clock.tick(200)
        for key in self.lengths:
            self.lengths[key] += 1

    def _sign(self) -> None:
        if self.log is not None:
            seen = self.log.read_text().split() if self.log.exists() else []
            if seen[-1:] != [self.name]:
                self.log.write_text(" ".join([*seen, self.name]))


def prepare() -> Callable[[Work], Subject]:
    """Makes schedulers that write to the file STUB_LOG of the environment."""
    print("what a library says when it is imported")
    clock = Clock()
    scheduler_work.time = clock  # type: ignore[attr-defined]
    log = os.environ.get("STUB_LOG")
    return lambda work: FakeScheduler(work, clock, name="vllm", log=Path(log) if log else None)


def describe(subject: Any) -> dict[str, Any]:
    return {"name": "vLLM", "version": "stub"}


if __name__ == "__main__":
    sys.exit(scheduler_work.run_peer(prepare, describe))
