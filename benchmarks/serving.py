"""Puts a load on an OpenAI-compatible server and reports how fast it answered.

    python benchmarks/serving.py --base-url http://127.0.0.1:8000/v1                  16 requests at a time
    python benchmarks/serving.py --rate 2 --slo-ttft 0.5 --slo-tpot 0.1               2 a second, at random times
    python benchmarks/serving.py sessions --sessions 8 --turns 5                      conversations

Prompts are seeded texts, all different unless a shared prefix is asked for; their length is exact where the server
has /tokenize. Answers are greedy and of equal length where the server can be told to ignore the end token. Exits with
1 if any request failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen.client import RequestFailed, Target, fetch, find_dialect
from loadgen.load import Load, RequestLoad, Run, SessionLoad, parameters, run_loop
from loadgen.metrics import Slo
from loadgen.prompts import PromptMaker, server_counter
from loadgen.report import console, environment, show_summary, summary_row, trace_row, write_json
from rich.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one load; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return run_loop(measure(arguments))
    except RequestFailed as error:
        print(f"serving.py: {arguments.base_url}: {error}", file=sys.stderr)
        return 1


async def measure(arguments: argparse.Namespace) -> int:
    """Measures one server under one load.

    Raises:
        RequestFailed: The server cannot be used at all.
    """
    screen = console()
    load, slo = _load(arguments), Slo(arguments.slo_ttft, arguments.slo_tpot)
    target = Target(arguments.base_url, arguments.model or "", arguments.api_key, arguments.timeout)
    if not arguments.model:
        target = Target(target.base_url, await _served_model(target), target.api_key, target.timeout)
    target = await find_dialect(target)
    count = None if arguments.no_tokenize else await server_counter(target)
    facts = environment()
    with Progress(console=screen, transient=True) as bar:
        task = bar.add_task(target.model, total=load.size)
        run = await load.run(
            target, PromptMaker(arguments.seed, count), slo=slo, progress=lambda trace: bar.advance(task)
        )
    show_summary(screen, run.summary, slo, load.size * load.output_tokens)
    if arguments.json:
        write_json(arguments.json, facts | _result(arguments, target, load, slo, run, exact=count is not None))
    return 1 if run.summary.failed else 0


async def _served_model(target: Target) -> str:
    models = await fetch(target, "/v1/models")
    if not (isinstance(models, dict) and models.get("data")):
        raise RequestFailed("/v1/models names no model; use --model")
    return str(models["data"][0]["id"])


def _result(
    arguments: argparse.Namespace, target: Target, load: Load, slo: Slo, run: Run, *, exact: bool
) -> dict[str, Any]:
    start = min(trace.planned for trace in run.traces)
    return {
        "model": Path(target.model).name,
        "workload": parameters(load)
        | {"seed": arguments.seed, "dialect": target.dialect.__name__, "exact_prompt_lengths": exact},
        "slo": {"ttft": slo.ttft, "tpot": slo.tpot},
        "summary": summary_row(run.summary),
        "requests": [trace_row(trace, start) for trace in run.traces],
    }


def _load(arguments: argparse.Namespace) -> Load:
    # Options that were not given leave the load's own defaults.
    cls = SessionLoad if arguments.mode == "sessions" else RequestLoad
    return cls(**{name: value for name in cls.__dataclass_fields__ if (value := getattr(arguments, name)) is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serving.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("mode", nargs="?", choices=("requests", "sessions"), default="requests")
    add("--base-url", default="http://127.0.0.1:8000/v1")
    add("--model", help="default: the first of /v1/models")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    add("--prompt-tokens", type=_count, help="of each request or turn, beyond the prefix (200; sessions: 100)")
    add("--output-tokens", type=_count, help="of each answer (128; sessions: 64)")
    add("--shared-prefix-tokens", type=_count, help="of what all prompts begin with (0)")
    add("--seed", type=int, default=0, help="the same seed makes the same prompts (0)")
    add("--timeout", type=float, default=600.0, help="seconds until a request is given up (600)")
    add("--no-tokenize", action="store_true", help="take a word for a token even if the server has /tokenize")
    add("--slo-ttft", type=float, help="seconds; goodput counts the requests that keep it")
    add("--slo-tpot", type=float, help="seconds; likewise")
    add("--json", type=Path, metavar="FILE", help="write everything, request by request")
    requests = parser.add_argument_group("requests")
    requests.add_argument("--endpoint", choices=("completions", "chat"))
    requests.add_argument("--concurrency", type=_count, help="requests in flight (16)")
    requests.add_argument("--requests", type=_count, help="how many in all (48)")
    requests.add_argument("--rate", type=float, help="requests per second, Poisson; instead of --concurrency")
    sessions = parser.add_argument_group("sessions")
    sessions.add_argument("--sessions", type=_count, help="conversations side by side (8)")
    sessions.add_argument("--turns", type=_count, help="of each conversation (5)")
    sessions.add_argument("--think-time", type=float, help="mean seconds between an answer and the next turn (0)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
