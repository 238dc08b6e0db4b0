"""What a run was and what came of it: tables for people, JSON for machines. No path of this machine is in either."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen.metrics import Slo, Spread, Summary, Trace, finite

SCHEMA = 1
UNKNOWN_CPU = "unknown CPU"


def environment() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
            # A busy machine makes every number worse; the reader should know.
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **_installed("octavo", "torch", "transformers", "httptools")},
    }


def cpu_model() -> str:
    """The host CPU as it calls itself, with what tells apart models that share a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or UNKNOWN_CPU
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", UNKNOWN_CPU)
    flags = facts.get("flags", "").split()
    features = [label for flag, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")) if flag in flags]
    return f"{name} ({', '.join(features)})" if features else name


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(document), indent=1) + "\n")


def trace_row(trace: Trace, start: float) -> dict[str, Any]:
    """One request for the JSON, its times counted from the start of the run. Prompts and answers are not kept."""
    answered = trace.error is None
    return {
        "planned": trace.planned - start,
        "late": trace.sent - trace.planned,
        "turn": trace.turn,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "cached_tokens": trace.cached_tokens,
        "ttft": trace.ttft if answered else None,
        "tpot": trace.tpot if answered else None,
        "e2e": trace.e2e if answered else None,
        "itl": trace.itl,
        "error": trace.error,
    }


def summary_row(summary: Summary) -> dict[str, Any]:
    """A summary for the JSON."""
    return asdict(summary)


def show_summary(console: Console, summary: Summary, slo: Slo, asked_tokens: int) -> None:
    """Prints one run."""
    console.print(_latencies(summary))
    for label, value in _facts(summary, slo, asked_tokens):
        console.print(f"  {label:<18} {value}", highlight=False)
    show_errors(console, summary)


def show_errors(console: Console, summary: Summary) -> None:
    """Prints what went wrong, if anything did."""
    if summary.failed:
        console.print(f"[bold red]{summary.failed} of {summary.requests} requests failed[/]")
        for message, count in summary.errors.items():
            console.print(f"  {count} × {message}", style="red", markup=False, highlight=False)


def _latencies(summary: Summary) -> Table:
    table = Table("milliseconds", box=None)
    for heading in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="right")
    rows = {"TTFT": summary.ttft, "ITL": summary.itl, "TPOT": summary.tpot, "end to end": summary.e2e}
    for name, spread in rows.items():
        table.add_row(name, *(milliseconds(value) for value in _values(spread)))
    return table


def _values(spread: Spread) -> Iterable[float]:
    return asdict(spread).values()


def _facts(summary: Summary, slo: Slo, asked_tokens: int) -> Iterable[tuple[str, str]]:
    answered = summary.requests - summary.failed
    yield "requests", f"{answered} of {summary.requests} answered in {summary.duration:.2f} s"
    rates = f"{summary.output_rate:.1f} output tok/s, {summary.total_rate:.1f} total tok/s"
    yield "throughput", f"{rates}, {summary.request_rate:.2f} req/s"
    if slo != Slo():
        yield "goodput", f"{summary.goodput:.2f} req/s"
    counted = "" if summary.counted_by_server else ", counted as pieces of the stream: the server sent no usage"
    short = "" if summary.output_tokens == asked_tokens else f" of {asked_tokens} asked for"
    yield "tokens", f"{summary.prompt_tokens} in, {summary.output_tokens} out{short}{counted}"
    if summary.cached_ratio is not None:
        yield "prefix hits", f"{summary.cached_ratio:.1%} of the prompt tokens"
    if len(summary.ttft_by_turn) > 1:
        yield "TTFT p50 by turn", ", ".join(map(milliseconds, summary.ttft_by_turn)) + " ms"
    yield "client", f"{summary.client_cpu_ratio:.1%} of a core, at most {milliseconds(summary.client_late)} ms late"


def milliseconds(seconds: float) -> str:
    """For a table: three digits that matter; a dash for what was not measured."""
    if math.isnan(seconds):
        return "–"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def console(*, quiet: bool = False) -> Console:
    """Where tables go."""
    return Console(file=sys.stdout, quiet=quiet, soft_wrap=True)
