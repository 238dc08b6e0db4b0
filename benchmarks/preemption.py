"""What preemption costs by method, on the real model with a pool that is too small.

    python benchmarks/preemption.py                      # every scenario once, about six minutes on two cores
    python benchmarks/preemption.py --repeat 3 --json preemption.json

The work: 16 requests at a time, 48 in all, prompts of about 200 random tokens that share nothing, 256 output tokens
each, 300 KV blocks of 16 tokens. Each scenario is an engine of its own in this process; repetitions go round all of
them, so that a change in the machine's speed meets all alike, and the table shows medians.

"slow copies" adds a wait to every block that is copied between tiers, as a congested link would. Without look-ahead,
admission fills the pool to the brim, and sequences have to give way far more often.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from octavo import LLM, SamplingParams
from octavo.block_manager.tiers import Transfer, TransferOutcome
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, EngineStats, packed
from octavo.scheduler.streams import split_stream

CONCURRENCY = 16
REQUESTS = 48
PROMPT_TOKENS = 200
OUTPUT_TOKENS = 256
NUM_BLOCKS = 300
SLOW_SECONDS_PER_BLOCK = 0.02

RECOMPUTE: Mapping[str, Any] = {"preemption": "recompute"}
SWAP: Mapping[str, Any] = {"preemption": "swap", "swap_space": 2**28}
AUTO: Mapping[str, Any] = {"preemption": "auto", "swap_space": 2**28}
GREEDY: Mapping[str, Any] = {"lookahead": 0}


@dataclass(frozen=True)
class Scenario:
    """One engine: its options, and how many seconds each copied block takes on top."""

    options: Mapping[str, Any]
    slow: float = 0.0


SCENARIOS: Mapping[str, Scenario] = {
    "recompute": Scenario(RECOMPUTE | GREEDY),
    "swap": Scenario(SWAP | GREEDY),
    "auto": Scenario(AUTO | GREEDY),
    "swap, slow copies": Scenario(SWAP | GREEDY, SLOW_SECONDS_PER_BLOCK),
    "auto, slow copies": Scenario(AUTO | GREEDY, SLOW_SECONDS_PER_BLOCK),
    "recompute, look-ahead": Scenario(RECOMPUTE),
    "auto, look-ahead": Scenario(AUTO),
}


@dataclass
class Outcome:
    """What one run of one scenario came to; times in seconds."""

    output_rate: float
    ttft_p99: float
    tpot_p99: float
    preemptions: dict[str, int] = field(default_factory=dict)
    recomputed_tokens: int = 0
    swapped_tokens: int = 0
    copied_blocks: int = 0
    prediction_error: float | None = None


def run(scenario: Scenario, seed: int) -> Outcome:
    """Loads an engine, warms it up, and puts the work on it."""
    llm = LLM(num_blocks=NUM_BLOCKS, max_num_seqs=CONCURRENCY, **scenario.options)
    if scenario.slow:
        _slow_down(llm.core, scenario.slow)
    chance = np.random.default_rng(seed)
    lengths = chance.integers(PROMPT_TOKENS - 40, PROMPT_TOKENS + 41, REQUESTS)
    prompts = [chance.integers(1000, 40_000, length).tolist() for length in lengths]
    llm.generate([prompt[:64] for prompt in prompts[:4]], SamplingParams(max_tokens=4, ignore_eos=True))
    llm.invalidate()
    before = llm.stats
    started, tokens = _closed_loop(llm.core, prompts)
    stats = llm.stats
    first = [times[0] - started[key] for key, times in tokens.items()]
    per_token = [(times[-1] - times[0]) / (len(times) - 1) for times in tokens.values()]
    whole = max(times[-1] for times in tokens.values()) - min(started.values())
    errors = [
        abs(record.actual - predicted) / record.actual
        for record in llm.core.scheduler.state.decisions.preemptions
        if record.actual
        and (predicted := record.predicted_swap if record.method == "swap" else record.predicted_recompute)
    ]
    methods = Counter[str]()
    for method, _, count in stats.preemptions:
        methods[method] += count
    for method, _, count in before.preemptions:
        methods[method] -= count
    return Outcome(
        output_rate=REQUESTS * OUTPUT_TOKENS / whole,
        ttft_p99=float(np.percentile(first, 99)),
        tpot_p99=float(np.percentile(per_token, 99)),
        preemptions=dict(methods),
        recomputed_tokens=stats.recomputed_tokens - before.recomputed_tokens,
        swapped_tokens=stats.swapped_tokens - before.swapped_tokens,
        copied_blocks=_copied(stats) - _copied(before),
        prediction_error=statistics.median(errors) if errors else None,
    )


def _copied(stats: EngineStats) -> int:
    return sum(count for kind, count in stats.copies.items() if kind != "copy_on_write")


def _closed_loop(core: EngineCore, prompts: Sequence[list[int]]) -> tuple[dict[int, float], dict[int, list[float]]]:
    """Keeps `CONCURRENCY` requests in flight; returns when each was sent, and when each of its tokens came."""
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    started: dict[int, float] = {}
    tokens: dict[int, list[float]] = {}
    in_flight = 0
    while len(started) < len(prompts) or in_flight:
        while in_flight < CONCURRENCY and len(started) < len(prompts):
            key = 1000 + len(started)
            started[key], tokens[key] = time.perf_counter(), []
            core.add(AddRequest("", packed(prompts[key - 1000]), sampling, key=key))
            in_flight += 1
        result = core.step()
        now = time.perf_counter()
        for stream in result.streams.tolist():
            tokens[split_stream(stream)[0]].append(now)
        in_flight -= len(result.finished)
    return started, tokens


def _slow_down(core: EngineCore, seconds: float) -> None:
    """Makes every copied block take longer, and the engine notice it as it would a slow link."""
    transfer: Callable[[Sequence[Transfer]], TransferOutcome] = core.runner.transfer

    def slow(transfers: Sequence[Transfer]) -> TransferOutcome:
        outcome = transfer(transfers)
        time.sleep(seconds * len(transfers))
        timings = tuple(t._replace(seconds=t.seconds + seconds * t.num_blocks) for t in outcome.timings)
        return outcome._replace(timings=timings)

    core.runner.transfer = slow  # type: ignore[method-assign]
    for timing in core.runner.measure_transfers():
        slowed = timing._replace(seconds=timing.seconds + seconds * timing.num_blocks)
        for _ in range(50):  # till the running mean has forgotten what was measured at the start
            core.scheduler.state.costs.observe_transfer(slowed)


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> Table:
    """Medians, one row for each scenario."""
    grid = Table(title=f"{CONCURRENCY} at once, {REQUESTS} requests, {NUM_BLOCKS} blocks of 16; medians")
    for heading in ("scenario", "output tok/s", "TTFT p99", "TPOT p99", "preempted", "recomputed", "swapped", "off by"):
        grid.add_column(heading, justify="left" if heading == "scenario" else "right")
    for name, runs in outcomes.items():
        errors = [run.prediction_error for run in runs if run.prediction_error is not None]
        methods = sorted({method for run in runs for method in run.preemptions})
        counts = {method: statistics.median(run.preemptions.get(method, 0) for run in runs) for method in methods}
        grid.add_row(
            name,
            f"{statistics.median(run.output_rate for run in runs):.1f}",
            f"{statistics.median(run.ttft_p99 for run in runs):.1f} s",
            f"{statistics.median(run.tpot_p99 for run in runs) * 1000:.0f} ms",
            ", ".join(f"{count:g} {method}" for method, count in counts.items()) or "0",
            f"{statistics.median(run.recomputed_tokens for run in runs):,.0f}",
            f"{statistics.median(run.swapped_tokens for run in runs):,.0f}",
            f"{statistics.median(errors):.0%}" if errors else "–",
        )
    return grid


def main() -> int:
    """Runs the scenarios and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of all scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in options.scenarios}
    screen = Console(width=140 if not sys.stdout.isatty() else None)
    for repetition in range(options.repeat):
        for name in options.scenarios:
            outcome = run(SCENARIOS[name], options.seed + repetition)
            outcomes[name].append(outcome)
            screen.print(f"{name}: {outcome.output_rate:.1f} tok/s, preempted {outcome.preemptions}", highlight=False)
    screen.print(table(outcomes))
    if options.json:
        rows = {name: [asdict(outcome) for outcome in runs] for name, runs in outcomes.items()}
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
