"""The work that schedulers are measured on, and the measuring: the same code for Octavo and for its peers.

`scheduler.py` runs it on Octavo's scheduler, and `scheduler_vllm.py` on vLLM's, in a process with vLLM's own
environment. So nothing here imports either of them. A shared machine has slow seconds and fast ones: the schedulers
take short turns and see the same of both. While one measures, the others' processes sleep.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK_SIZE = 16
PROMPT = 512
VOCAB = 32_000
MAX_MODEL_LEN = 2048
MAX_OUTPUT = MAX_MODEL_LEN - PROMPT
ROUNDS = 10  # turns that measure; one more, the first, gets the sequences running
WARM_UP = 8  # steps at the start of a turn, which find caches and core cold
READY = "ready"  # what a peer says when it has done what it was told to

Row = dict[str, float]


@dataclass(frozen=True)
class Work:
    """A steady decode of `running` sequences: `steps` steps, and half as many requests added one by one.

    Attributes:
        used: The pool has served before: every block holds what is cached of an earlier prompt.
    """

    running: int
    steps: int
    pool_blocks: int
    used: bool = False

    @property
    def group(self) -> int:
        """Sequences that arrive in the same step: in each step, one in `BLOCK_SIZE` crosses into a new block."""
        return max(1, self.running // BLOCK_SIZE)

    @property
    def steps_per_turn(self) -> int:
        """Steps measured in a turn."""
        return max(1, self.steps // ROUNDS)

    @property
    def additions_per_turn(self) -> int:
        """Requests added in a turn; each takes five steps."""
        return max(1, self.steps_per_turn // 2)

    @property
    def max_batched_tokens(self) -> int:
        """A token budget that never cuts a step short."""
        return (self.running + 1) * PROMPT

    @property
    def longest(self) -> int:
        """Tokens, prompt included, of the longest sequence when all is measured."""
        first = -(-self.running // self.group) + BLOCK_SIZE
        return PROMPT + first + ROUNDS * (WARM_UP + self.steps_per_turn + 5 * self.additions_per_turn)

    @property
    def earlier(self) -> int:
        """Requests that have come and gone before."""
        return -(-self.pool_blocks // (PROMPT // BLOCK_SIZE)) if self.used else 0

    def obstacle(self) -> str | None:
        """Why this work cannot be measured, if so: sequences would end, or blocks run out."""
        if self.running < 1 or self.steps < 1:
            return "--running and --steps must be at least 1"
        if self.longest >= MAX_MODEL_LEN:
            return f"--steps {self.steps}: sequences would get longer than {MAX_MODEL_LEN} tokens"
        blocks = (self.running + 1) * -(-self.longest // BLOCK_SIZE) * 21 // 20  # watermarks keep some free
        if self.pool_blocks < blocks:
            return f"--pool-blocks {self.pool_blocks}: {self.running} running sequences need {blocks}"
        return None


class Subject(Protocol):
    """A scheduler with its KV cache manager; it has room for one sequence more than run."""

    @property
    def num_running(self) -> int:
        """Sequences that run."""

    def received(self, prompt: list[int]) -> Any:
        """A prompt as its front end's message brings it to the engine. Not measured."""

    def add(self, key: int, prompt: Any) -> None:
        """Makes a request for `MAX_OUTPUT` tokens, whatever they are, and queues it."""

    def abort(self, key: int) -> None:
        """Ends a request."""

    def schedule(self) -> Any:
        """Plans a step."""

    def sample(self, plan: Any) -> Any:
        """What the model would give: a token for each sequence of the plan. Not measured."""

    def update(self, plan: Any, sampled: Any) -> Any:
        """Takes in a step's tokens."""


def random_tokens(work: Work) -> list[int]:
    """What the absent model samples in every step, one token for each sequence."""
    return np.random.default_rng(1).integers(0, VOCAB, work.running + 1).tolist()


class Measurement:
    """One scheduler at work. Its prompts are all different."""

    def __init__(self, subject: Subject, work: Work) -> None:
        self._subject, self._work = subject, work
        shape = (work.running + ROUNDS * work.additions_per_turn, PROMPT)
        self._prompts = list(map(subject.received, np.random.default_rng(0).integers(0, VOCAB, shape).tolist()))
        self._steps: list[tuple[float, float]] = []
        self._additions: list[float] = []

    def turns(self) -> Iterator[None]:
        """Does the work, `ROUNDS` + 1 turns of it."""
        self._use_pool()
        self._fill()
        yield
        work = self._work
        keys = iter(range(work.running, len(self._prompts)))
        for _ in range(ROUNDS):
            for _ in range(WARM_UP):
                self._step()
            self._steps += [self._step() for _ in range(work.steps_per_turn)]
            self._additions += [self._addition(next(keys)) for _ in range(work.additions_per_turn)]
            yield
        assert self._subject.num_running == work.running, "sequences ended or gave way"

    def row(self) -> Row:
        """What came of it: medians, in microseconds."""
        return {
            "running": self._work.running,
            "pool_blocks": self._work.pool_blocks,
            "step_us": statistics.median(map(sum, self._steps)),
            "schedule_us": statistics.median(schedule for schedule, _ in self._steps),
            "update_us": statistics.median(update for _, update in self._steps),
            "add_us": statistics.median(self._additions),
        }

    def _use_pool(self) -> None:
        """Lets earlier requests come and go, one after the other."""
        rng = np.random.default_rng(2)
        for key in range(self._work.earlier):
            self._subject.add(key, self._subject.received(rng.integers(0, VOCAB, PROMPT).tolist()))
            self._step()
            self._subject.abort(key)

    def _fill(self) -> None:
        """Gets all sequences running, and each into a block that decoding has opened."""
        for key in range(self._work.running):
            self._subject.add(key, self._prompts[key])
            if (key + 1) % self._work.group == 0 or key + 1 == self._work.running:
                self._step()
        for _ in range(BLOCK_SIZE):
            self._step()

    def _step(self) -> tuple[float, float]:
        """Microseconds of planning a step, and of taking in its tokens."""
        plan, schedule = timed(self._subject.schedule)
        sampled = self._subject.sample(plan)
        # The result lives until both times are taken: nobody pays for throwing away what is an engine's to use.
        result, update = timed(lambda: self._subject.update(plan, sampled))
        del result
        return schedule, update

    def _addition(self, key: int) -> float:
        """Microseconds of adding a request, and of the step that admits it beyond one that does not."""
        # Beside its own neighbours: how many sequences cross into a new block may vary from step to step.
        # Not its nearest ones: the first step after an abort has more to do.
        before = sum(self._step())
        self._step()
        _, adding = timed(lambda: self._subject.add(key, self._prompts[key]))
        admitting = sum(self._step())
        self._subject.abort(key)
        self._step()
        after = sum(self._step())
        return adding + admitting - (before + after) / 2


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and how many microseconds of processor time it took.

    Nothing measured here waits for anything, so on a quiet machine that is the time that passes. On a busy one the
    clock on the wall would also count the other programs' slices, of which a long step meets more than a short one.
    """
    start = time.thread_time()
    result = work()
    return result, (time.thread_time() - start) * 1e6


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """What exists now is not the garbage collector's; it stays on for the rest. vLLM's engine does so at its start."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that a peer has as well."""
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256, 1024], help="sequences that run")
    parser.add_argument("--steps", type=int, default=200, help="steps to measure; half as many requests are added")
    parser.add_argument("--used", action="store_true", help="every block holds what is cached of an earlier prompt")


def run_peer(prepare: Callable[[], Callable[[Work], Subject]], describe: Callable[[Subject], dict[str, Any]]) -> int:
    """The main program of a peer: measures, and prints one JSON document.

    Args:
        prepare: Imports what is to be measured; returns what makes a subject.
        describe: What there is to know about a subject.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--pool-blocks", type=int, default=100_000, help="blocks in the pool")
    parser.add_argument("--turns", action="store_true", help="say when a turn is over, and wait for a line on stdin")
    options = parser.parse_args()
    works = [Work(running, options.steps, options.pool_blocks, options.used) for running in options.running]
    check(parser, works)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # where others may write what they like
        make = prepare()
        pause = (lambda: _wait_for_turn(answers)) if options.turns else (lambda: None)
        pause()
        rows, facts = [], {}
        for work in works:
            subject = make(work)
            measurement = Measurement(subject, work)
            with frozen_heap():
                for _ in measurement.turns():
                    pause()
            rows.append(measurement.row())
            facts = describe(subject)
    print(json.dumps({**facts, "python": sys.version.split()[0], "rows": rows}))
    return 0


def check(parser: argparse.ArgumentParser, works: Iterable[Work]) -> None:
    """Ends the program if some work cannot be measured."""
    for work in works:
        if obstacle := work.obstacle():
            parser.error(obstacle)


def _wait_for_turn(answers: Any) -> None:
    print(READY, file=answers, flush=True)
    if not sys.stdin.readline():
        sys.exit(1)  # nobody is left to measure for
