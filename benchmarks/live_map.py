"""What the live map costs: a server's throughput with and without somebody who looks, and one answer of the engine.

    python benchmarks/live_map.py                               # some ten minutes on two cores
    python benchmarks/live_map.py --repeats 1 --requests 4      # whether it works

First a real server with the default model gets the same load again and again, by turns with the map closed and open.
Open means that a client reads `/ui/stream`, as a page does; no browser draws it, which would need a machine of its own.
Each pair of turns gives a ratio, and the order within a pair alternates, so that a drift of the machine favours
neither. A clock sees a hundredth only on the quietest machine; CPU time of the process that answers HTTP does not grow
when the machine is shared.

Then the engine's answers themselves, on a scheduler without a model that decodes 64 sequences: the first one, which
tells all cells, and those after a step, which tell changes. "every" is how often the hub would ask at that cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import httpx
from loadgen.beside import beside
from loadgen.load import RequestLoad
from loadgen.metrics import Slo
from loadgen.peers import RunningPeer, known_peers, running
from loadgen.prompts import PromptMaker
from scheduler_work import Work

from octavo.config import EngineConfig
from octavo.engine.live import LiveReader
from octavo.engine.messages import ReadLive
from octavo.engine.prepare import prepare_model
from octavo.server.limits import LIVE_CELLS
from octavo.server.live.hub import pause_after
from scheduler import OctavoScheduler

POOL_TOKENS = 65_536
RUNNING = 64
DECODES = 40


@dataclass
class Pair:
    """One turn with the map closed and one with it open.

    Attributes:
        closed, open: Output tokens per second.
        closed_cpu, open_cpu: CPU seconds of the process that answers HTTP, for each second.
        messages, megabytes: What the viewer was sent.
    """

    closed: float
    open: float
    closed_cpu: float
    open_cpu: float
    messages: int
    megabytes: float

    @property
    def ratio(self) -> float:
        return self.open / self.closed


@dataclass
class Answers:
    """The engine's answers for a pool of some size; milliseconds, medians but for the first."""

    blocks: int
    everything: float
    changes: float
    cells_changed: float

    @property
    def every(self) -> float:
        return pause_after(self.changes / 1000, 0.0)


# ── a server with and without somebody who looks ──────────────────────────────────────────────────────────────


class Viewer:
    """Reads the map's stream, and counts."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0

    async def look(self, url: str) -> None:
        async with httpx.AsyncClient(timeout=None) as http, http.stream("GET", f"{url}/ui/stream") as response:
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                self.messages += chunk.count(b"\n\n")
                self.bytes += len(chunk)


async def rate(server: RunningPeer, load: RequestLoad, seed: int) -> float:
    """Output tokens per second of one turn."""
    run = await load.run(server.target, PromptMaker(seed, None), slo=Slo(), progress=lambda trace: None)
    assert not run.summary.failed, run.summary.errors
    return run.summary.output_rate


async def compare(load: RequestLoad, repeats: int) -> list[Pair]:
    """Turns of a load, after one that warms up."""
    peer = known_peers(prepare_model(EngineConfig()).folder, None, POOL_TOKENS)["octavo"]
    pairs = []
    async with running(peer, start_timeout=600, request_timeout=600) as server:
        url = server.target.base_url.removesuffix("/v1")
        await rate(server, load, 0)
        for turn in range(1, repeats + 1):
            rates, cpu, viewer = {}, {}, Viewer()
            for is_open in (turn % 2 == 0, turn % 2 == 1):
                async with beside(viewer.look(url)) if is_open else contextlib.nullcontext():
                    began, spent = perf_counter(), server.cpu_seconds()
                    rates[is_open] = await rate(server, load, 2 * turn + is_open)
                    cpu[is_open] = (server.cpu_seconds() - spent) / (perf_counter() - began)
            pairs.append(Pair(rates[False], rates[True], cpu[False], cpu[True], viewer.messages, viewer.bytes / 1e6))
            print(f"pair {turn}: closed {pairs[-1].closed:.1f}, open {pairs[-1].open:.1f} tokens/s", file=sys.stderr)
    return pairs


# ── one answer ────────────────────────────────────────────────────────────────────────────────────────────────


def measure_answers(blocks: int) -> Answers:
    """The engine's answers while sequences are decoded in a pool of so many blocks."""
    work = Work(RUNNING, DECODES, blocks)
    subject = OctavoScheduler(work)
    for key in range(1, RUNNING + 1):
        subject.add(key, subject.received([key] * 512))
    reader = LiveReader(subject.scheduler)
    times: list[float] = []
    changed: list[int] = []
    gc.collect()
    for number in range(DECODES + 1):
        for _ in range(4):  # four looks a second at some sixteen steps a second
            plan = subject.schedule()
            assert plan is not None
            subject.update(plan, subject.sample(plan))
        began = perf_counter()
        view = reader.read(ReadLive(fresh=number == 0, most_cells=LIVE_CELLS))
        times.append(1000 * (perf_counter() - began))
        changed.append(sum(len(tier.states) for tier in view.tiers))
    return Answers(blocks, times[0], statistics.median(times[1:]), statistics.median(changed[1:]))


def report(pairs: Sequence[Pair], answers: Sequence[Answers]) -> None:
    """Prints both tables."""
    if pairs:
        print(f"{'':>16}{'output tokens/s':>28}{'CPU of the front end':>22}")
        print(f"{'':>16}{'closed':>10}{'open':>10}{'ratio':>8}{'closed':>11}{'open':>11}{'messages':>10}{'MB':>8}")
        for number, pair in enumerate(pairs, 1):
            print(
                f"{f'pair {number}':>16}{pair.closed:10.1f}{pair.open:10.1f}{pair.ratio:8.3f}"
                f"{pair.closed_cpu:11.2%}{pair.open_cpu:11.2%}"
                f"{pair.messages:10}{pair.megabytes:8.2f}"
            )
        names = ("closed", "open", "ratio", "closed_cpu", "open_cpu")
        medians = [statistics.median(getattr(pair, name) for pair in pairs) for name in names]
        print(
            f"{'median':>16}{medians[0]:10.1f}{medians[1]:10.1f}{medians[2]:8.3f}{medians[3]:11.2%}{medians[4]:11.2%}"
        )
    if answers:
        print(f"\n{'blocks':>12}{'all cells, ms':>16}{'changes, ms':>14}{'cells changed':>16}{'every, s':>10}")
        for row in answers:
            print(
                f"{row.blocks:12,}{row.everything:16.2f}{row.changes:14.2f}{row.cells_changed:16.0f}{row.every:10.2f}"
            )


def main() -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="pairs of turns; 0 to leave the server out")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24, help="in each turn")
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--blocks", type=int, nargs="*", default=[100_000, 10_000_000], help="pools for the answers")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    load = RequestLoad(
        concurrency=options.concurrency,
        requests=options.requests,
        prompt_tokens=100,
        output_tokens=options.output_tokens,
    )
    pairs = asyncio.run(compare(load, options.repeats)) if options.repeats else []
    answers = [measure_answers(blocks) for blocks in options.blocks]
    report(pairs, answers)
    if options.json:
        document = {"pairs": list(map(asdict, pairs)), "answers": list(map(asdict, answers))}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
