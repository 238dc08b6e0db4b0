"""What a server spends on HTTP: CPU time of the process that answers it, per request and per streamed token.

    python benchmarks/frontend.py --peers octavo,vllm --peers-dir DIR --json frontend.json

The model has one tiny layer of random weights and the default model's tokenizer, so that the engine, in a process of
its own, hardly matters; CPU time, unlike a latency, does not grow when the machine is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loadgen.load import RequestLoad
from loadgen.metrics import Slo
from loadgen.peers import Peer, known_peers, running
from loadgen.prompts import PromptMaker

from octavo.config import EngineConfig
from octavo.engine.prepare import prepare_model

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
POOL_TOKENS = 131_072
# In float32, which every processor computes in: the engine is not what is measured.
OPTIONS = ("--load-format", "dummy", "--max-num-seqs", "256", "--dtype", "float32")
STREAMS = RequestLoad(concurrency=256, requests=512, prompt_tokens=20, output_tokens=128)
SINGLES = RequestLoad(concurrency=32, requests=1024, prompt_tokens=20, output_tokens=1)


@dataclass(frozen=True)
class Cost:
    """What one run of both loads took."""

    token_us: float
    request_us: float
    requests_per_second: float


def write_tiny_model(folder: Path) -> Path:
    """The default model's tokenizer with a configuration that is all but nothing; weights are made up on loading."""
    source = prepare_model(EngineConfig()).folder
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | TINY))
    return folder


async def measure(peer: Peer, repeats: int) -> list[Cost]:
    """Starts a server and runs both loads, once to warm up and then as often as asked."""
    async with running(peer, start_timeout=600, request_timeout=300) as server:
        costs = []
        for turn in range(repeats + 1):
            maker = PromptMaker(turn, None)
            before = server.cpu_seconds()
            streams = await STREAMS.run(server.target, maker, slo=Slo(), progress=lambda trace: None)
            between = server.cpu_seconds()
            singles = await SINGLES.run(server.target, maker, slo=Slo(), progress=lambda trace: None)
            after = server.cpu_seconds()
            request = (after - between) / SINGLES.requests
            tokens = STREAMS.requests * STREAMS.output_tokens
            assert not streams.summary.failed, f"{peer.name}: {streams.summary.failed} requests failed"
            token = (between - before - STREAMS.requests * request) / tokens
            costs.append(Cost(token * 1e6, request * 1e6, singles.summary.request_rate))
    return costs[1:]


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="octavo", help="names with commas between them, as for compare.py")
    parser.add_argument("--peers-dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found: dict[str, Cost] = {}
    with TemporaryDirectory() as scratch:
        peers = known_peers(write_tiny_model(Path(scratch) / "tiny"), options.peers_dir, POOL_TOKENS)
        for name in options.peers.split(","):
            peer = peers[name]
            peer = replace(peer, command=[*peer.command, *OPTIONS])
            costs = asyncio.run(measure(peer, options.repeats))
            columns = zip(*((cost.token_us, cost.request_us, cost.requests_per_second) for cost in costs), strict=True)
            found[name] = Cost(*map(statistics.median, columns))
            print(f"{name} done", file=sys.stderr)
    print(f"{'':14}{'µs CPU/token':>14}{'µs CPU/request':>16}{'requests/s':>12}")
    for name, cost in found.items():
        print(f"{name:14}{cost.token_us:14.1f}{cost.request_us:16.0f}{cost.requests_per_second:12.0f}")
    if options.json:
        options.json.write_text(json.dumps({name: vars(cost) for name, cost in found.items()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
