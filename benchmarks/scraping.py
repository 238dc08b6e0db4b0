"""What Prometheus costs a server that is busy: how long a scrape takes, and what it adds to the streams' latencies.

    python benchmarks/scraping.py                            # some minutes
    python benchmarks/scraping.py --repeats 1 --requests 300 --blocks 1000     # whether it works

A server with a tiny model (as in frontend.py), so that the engine hardly matters, and a pool of 100,000 KV blocks
serves 256 streams, again and again, by turns without anybody who scrapes and with a scrape every second, fifteen times
as often as is usual. The order within a pair alternates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import httpx
from frontend import OPTIONS, STREAMS, write_tiny_model
from loadgen.beside import beside
from loadgen.load import RequestLoad
from loadgen.metrics import Slo
from loadgen.peers import Peer, RunningPeer, known_peers, running
from loadgen.prompts import PromptMaker

BLOCK_SIZE = 16
INTERVAL = 1.0  # seconds


@dataclass
class Turn:
    """Gaps between tokens, in milliseconds."""

    median: float
    p99: float


@dataclass
class Pair:
    """A turn without scrapes and one with them; and how long those took, in milliseconds."""

    without: Turn
    scraped: Turn
    scrapes: list[float]


async def scrape(server: RunningPeer, times: list[float]) -> None:
    """Asks for all metrics every second, for ever."""
    url = server.target.base_url.removesuffix("/v1") + "/metrics"
    async with httpx.AsyncClient(timeout=30) as http:
        while True:
            began = perf_counter()
            (await http.get(url)).raise_for_status()
            times.append(1000 * (perf_counter() - began))
            await asyncio.sleep(INTERVAL)


async def turn(server: RunningPeer, load: RequestLoad, seed: int) -> Turn:
    """One run of the load."""
    run = await load.run(server.target, PromptMaker(seed, None), slo=Slo(), progress=lambda trace: None)
    assert not run.summary.failed, run.summary.errors
    return Turn(1000 * run.summary.itl.p50, 1000 * run.summary.itl.p99)


async def compare(peer: Peer, load: RequestLoad, repeats: int) -> list[Pair]:
    """Pairs of turns, after one that warms up."""
    pairs = []
    async with running(peer, start_timeout=600, request_timeout=600) as server:
        await turn(server, load, 0)
        for number in range(1, repeats + 1):
            turns, times = {}, list[float]()
            for scraped in (number % 2 == 0, number % 2 == 1):
                async with beside(scrape(server, times)) if scraped else contextlib.nullcontext():
                    turns[scraped] = await turn(server, load, 2 * number + scraped)
            pairs.append(Pair(turns[False], turns[True], times))
            print(f"pair {number} done", file=sys.stderr)
    return pairs


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--requests", type=int, default=STREAMS.requests, help="in each turn")
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = write_tiny_model(Path(scratch) / "tiny")
        # In float32 a token takes twice the bytes that pools are sized by there.
        peer = known_peers(folder, None, 2 * options.blocks * BLOCK_SIZE)["octavo"]
        peer = replace(peer, command=[*peer.command, *OPTIONS])
        load = replace(STREAMS, requests=options.requests)
        pairs = asyncio.run(compare(peer, load, options.repeats))
    print(f"{'gaps between tokens, ms':28}{'median':>10}{'p99':>10}")
    for name in ("without", "scraped"):
        turns = [getattr(pair, name) for pair in pairs]
        middle, tail = (statistics.median(getattr(turn, kind) for turn in turns) for kind in ("median", "p99"))
        print(f"{name:28}{middle:10.2f}{tail:10.2f}")
    ratios = [
        statistics.median(getattr(pair.scraped, kind) / getattr(pair.without, kind) for pair in pairs)
        for kind in ("median", "p99")
    ]
    print(f"{'ratio, median of pairs':28}{ratios[0]:10.3f}{ratios[1]:10.3f}")
    times = sorted(time for pair in pairs for time in pair.scrapes)
    print(f"a scrape took {statistics.median(times):.1f} ms in the median of {len(times)}, {times[-1]:.1f} ms at most")
    if options.json:
        options.json.write_text(json.dumps(list(map(asdict, pairs)), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
