"""What scheduling costs: schedule + update of a steady decode, and adding a request.

    python benchmarks/scheduler.py                       # 64, 256 and 1,024 running
    python benchmarks/scheduler.py --running 4096 --json scheduler.json

The work: prompts of 512 tokens, all different, block size 16, prefix caching on, no model. "Add" is queueing a
request plus everything it costs the step that admits it beyond a steady step: prefix look-up, 32 blocks, publishing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.block_manager.manager import BlockManager
from octavo.config import SchedulerConfig
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT = 512
OUTPUT = 512
VOCAB = 32_000


def make_scheduler(running: int, pool_blocks: int) -> Scheduler:
    """A scheduler with room for all of them."""
    config = SchedulerConfig(
        max_num_seqs=running + 1, max_num_batched_tokens=(running + 1) * PROMPT, max_waiting=running + 1
    )
    manager = BlockManager(
        num_blocks=pool_blocks,
        block_size=BLOCK_SIZE,
        num_rows=running + 1,
        max_blocks_per_row=(PROMPT + OUTPUT) // BLOCK_SIZE,
    )
    return Scheduler(config, manager, max_model_len=PROMPT + OUTPUT, vocab_size=VOCAB)


def measure(running: int, steps: int, pool_blocks: int) -> dict[str, float]:
    """One row of the table, in microseconds; medians."""
    scheduler = make_scheduler(running, pool_blocks)
    prompts = np.random.default_rng(0).integers(0, VOCAB, (running + steps, PROMPT), dtype=np.int32)
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)
    tokens = np.random.default_rng(1).integers(0, VOCAB, running + 1, dtype=np.int32)

    def step() -> tuple[float, float]:
        plan, schedule = timed(scheduler.schedule)
        assert isinstance(plan, StepPlan)
        _, update = timed(lambda: scheduler.update(plan, tokens[: len(plan.sample_rows)]))
        return schedule, update

    for key in range(running):
        scheduler.add(key, prompts[key], sampling)
        if key % 16 == 15:
            step()  # staggered, so that not all sequences cross into a new block in the same step
    step()
    samples = [step() for _ in range(steps)]
    steady = statistics.median(a + b for a, b in samples)
    extra = []
    for key in range(running, running + steps // 2):
        # Beside its own neighbours: how many sequences cross into a new block varies from step to step.
        before = sum(step())
        _, adding = timed(lambda key=key: scheduler.add(key, prompts[key], sampling))
        admitting = sum(step())
        scheduler.abort(key)
        extra.append(adding + admitting - (before + sum(step())) / 2)
    return {
        "running": running,
        "step_us": steady,
        "schedule_us": statistics.median(a for a, _ in samples),
        "update_us": statistics.median(b for _, b in samples),
        "add_us": statistics.median(extra),
        "pool_blocks": pool_blocks,
        "bytes_per_block": scheduler.manager.pool.nbytes / pool_blocks,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and how many microseconds it took."""
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) * 1e6


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pool-blocks", type=int, default=100_000, help="blocks in the pool")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args()
    rows = [measure(running, options.steps, options.pool_blocks) for running in options.running]
    columns = list(rows[0])
    print("  ".join(f"{name:>15}" for name in columns))
    for row in rows:
        print("  ".join(f"{row[name]:15,.1f}" for name in columns))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"python": sys.version.split()[0], "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
