"""What scheduling costs: schedule + update of a steady decode, and adding a request; beside vLLM, if there is one.

    python benchmarks/scheduler.py                                      # 64, 256 and 1,024 running
    python benchmarks/scheduler.py --peers-dir DIR --json FILE          # vLLM's from the environment DIR/vllm
    python benchmarks/scheduler.py --pool-blocks 100000 10000000        # the pool's size must not matter
    python benchmarks/scheduler.py --used                               # each new block takes an old one's place

The work: prompts of 512 tokens, all different, block size 16, prefix caching on, no model. "Add" is making and queueing
a request out of what the front end's message holds (int32 bytes; in vLLM a list), plus everything it costs the step
that admits it beyond a steady step: prefix look-up, 32 blocks, publishing.
The arrivals are staggered, so that in each step one sequence in sixteen crosses into a new block. All figures are
medians in microseconds; × is vLLM ÷ Octavo. With several pools, vLLM gets the first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from loadgen.report import environment, write_json
from scheduler_work import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    MAX_OUTPUT,
    READY,
    ROUNDS,
    VOCAB,
    Measurement,
    Row,
    Work,
    add_arguments,
    check,
    frozen_heap,
    random_tokens,
)

from octavo.block_manager.manager import BlockManager
from octavo.config import SchedulerConfig
from octavo.engine.messages import packed
from octavo.scheduler.plan import Sampled, StepPlan, StepResult
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler

PEER_SCRIPT = Path(__file__).with_name("scheduler_vllm.py")
HEADINGS = {"step_us": "step", "schedule_us": "schedule", "update_us": "update", "add_us": "add"}


class OctavoScheduler:
    """Octavo's scheduler as the work sees it. All that knows its interface is here."""

    def __init__(self, work: Work) -> None:
        config = SchedulerConfig(
            max_num_seqs=work.running + 1,
            max_num_batched_tokens=work.max_batched_tokens,
            max_waiting=work.running + 1,
        )
        manager = BlockManager(
            num_blocks=work.pool_blocks,
            block_size=BLOCK_SIZE,
            num_rows=work.running + 1,
            max_blocks_per_row=MAX_MODEL_LEN // BLOCK_SIZE,
        )
        self.scheduler = Scheduler(config, manager, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB)
        self._sampling = SamplingParams(temperature=0.0, max_tokens=MAX_OUTPUT, ignore_eos=True)
        self._tokens = np.array(random_tokens(work), dtype=np.int32)

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running

    @property
    def bytes_per_block(self) -> float:
        pool = self.scheduler.manager.pool
        return pool.nbytes / pool.num_blocks

    def received(self, prompt: list[int]) -> bytes:
        return packed(prompt)

    def add(self, key: int, prompt: bytes) -> None:
        # As `EngineCore.add` does.
        self.scheduler.add(key, np.frombuffer(prompt, dtype=np.int32), self._sampling)

    def abort(self, key: int) -> None:
        self.scheduler.abort(key)

    def schedule(self) -> StepPlan | None:
        return self.scheduler.schedule()

    def sample(self, plan: StepPlan) -> Sampled:
        return Sampled(tokens=self._tokens[: len(plan.sample_rows)])

    def update(self, plan: StepPlan, sampled: Sampled) -> StepResult:
        return self.scheduler.update(plan, sampled)


class PeerFailed(Exception):
    """The peer ended too early; the text holds the end of what it wrote to stderr."""


class Peer:
    """vLLM in a process of its own, which works when it is told to and sleeps when not."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        self._process, self._log = process, log

    def wait_until_ready(self) -> None:
        """Waits until it has started, or has finished its turn."""
        if (line := self._answer()) != READY:
            raise PeerFailed(f"it said {line!r}")

    def turns(self) -> Iterator[None]:
        """Its share of one size's work."""
        for _ in range(ROUNDS + 1):
            self._go_on()
            self.wait_until_ready()
            yield

    def document(self) -> dict[str, Any]:
        """What it measured: `name`, `version`, `rows` and more."""
        self._go_on()
        line = self._answer()
        try:
            document: dict[str, Any] = json.loads(line)
        except ValueError:
            raise PeerFailed(f"it said {line!r}") from None
        return document

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
        except BrokenPipeError:
            raise self._failure() from None

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise self._failure()
        return line.decode().strip()

    def _failure(self) -> PeerFailed:
        status = self._process.wait()
        self._log.seek(0)
        tail = "\n".join(self._log.read().splitlines()[-15:])
        return PeerFailed(f"it ended with status {status}\n{tail}".rstrip())


@contextlib.contextmanager
def started(python: Path, works: Sequence[Work]) -> Iterator[Peer]:
    """Starts the peer for works that differ in `running` only; ends it afterwards."""
    sizes = [str(work.running) for work in works]
    options = ["--steps", str(works[0].steps), "--pool-blocks", str(works[0].pool_blocks)]
    options += ["--used"] if works[0].used else []
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [python, PEER_SCRIPT, "--turns", *options, "--running", *sizes],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=tempfile.gettempdir(),
        ) as process,
    ):
        try:
            peer = Peer(process, log)
            peer.wait_until_ready()
            yield peer
        finally:
            process.kill()


def find_vllm(peers_dir: Path | None) -> Path | None:
    """The interpreter that can import vLLM: that of the peers' folder, or this one."""
    if peers_dir is not None:
        python = peers_dir / "vllm" / "bin" / "python"
        return python if python.exists() else None
    return Path(sys.executable) if importlib.util.find_spec("vllm") else None


def measure(works: Sequence[Work], peer: Peer | None) -> list[Row]:
    """Octavo's rows, one for each pool; all take turns, and the peer does as well."""
    subjects = [OctavoScheduler(work) for work in works]
    measurements = [Measurement(subject, work) for subject, work in zip(subjects, works, strict=True)]
    turns = [measurement.turns() for measurement in measurements]
    if peer:
        turns.insert(1, peer.turns())
    with frozen_heap():
        for _ in zip(*turns, strict=True):
            pass
    return [
        measurement.row() | {"bytes_per_block": subject.bytes_per_block}
        for measurement, subject in zip(measurements, subjects, strict=True)
    ]


def run(works: Sequence[Sequence[Work]], python: Path | None) -> tuple[list[Row], dict[str, Any] | None]:
    """Measures all sizes: Octavo's rows, and the peer's document if there is one.

    Args:
        works: For each size, the work in each pool. The peer gets the first of them.
        python: The peer's interpreter.
    """
    if python is None:
        return [row for size in works for row in measure(size, None)], None
    with started(python, [size[0] for size in works]) as peer:
        rows = [row for size in works for row in measure(size, peer)]
        return rows, peer.document()


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Keeps this process and those it starts on one core: neighbours can make one of two slower than the other."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def table(rows: Iterable[Row], peer: dict[str, Any] | None) -> str:
    """Octavo's rows, with the peer's figures and how many times Octavo's they are."""
    theirs = {(row["running"], row["pool_blocks"]): row for row in peer["rows"]} if peer else {}
    head = ["running", "blocks"]
    for heading in HEADINGS.values():
        head += [heading, peer["name"], "×"] if peer else [heading]
    lines = [[*head, "bytes/block"]]
    for row in rows:
        line = [f"{row['running']:,}", f"{row['pool_blocks']:,}"]
        for metric in HEADINGS:
            line.append(f"{row[metric]:,.0f}")
            other = theirs.get((row["running"], row["pool_blocks"]))
            if peer:
                line += [f"{other[metric]:,.0f}", f"{other[metric] / row[metric]:.1f}"] if other else ["–", "–"]
        lines.append([*line, f"{row['bytes_per_block']:.1f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if vLLM is there and could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--pool-blocks", type=int, nargs="+", default=[100_000], help="blocks in the pool")
    parser.add_argument("--peers-dir", type=Path, metavar="DIR", help="where vLLM's virtual environment is, DIR/vllm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    used = options.used
    works = [[Work(size, options.steps, pool, used) for pool in options.pool_blocks] for size in options.running]
    check(parser, itertools.chain(*works))
    facts = environment()
    python = find_vllm(options.peers_dir)
    if python is None:
        print("vLLM is not installed, here or in --peers-dir: only Octavo is measured")
    failure = None
    with on_one_core():
        try:
            rows, peer = run(works, python)
        except PeerFailed as error:
            failure = error
            rows, peer = run(works, None)
    print(table(rows, peer))
    if options.json:
        write_json(options.json, facts | {"rows": rows, "peers": [peer] if peer else []})
    if failure:
        print(f"vLLM could not be measured: {failure}", file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
