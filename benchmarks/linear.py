"""A model's linear layers in bfloat16 on AMX tiles, beside oneDNN's, in one run and by turns.

    python benchmarks/linear.py                       # the shapes of SmolLM2-135M, at 1 to 512 rows

The weights of many layers are gone through one after another, so that they come from memory as in a step of a model.
"read" is how fast this machine's cores read such weights, measured in the same run: the bound for few rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table

from octavo.kernels.cpu import amx
from octavo.kernels.cpu.linear import linear

# [out, in] of a layer's products: attention's in and out, the MLP's in and out.
SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
TURNS = 9


def seconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def measure(num_rows: int, num_layers: int) -> tuple[dict[str, float], int]:
    """Seconds for all layers by method, and the number of weights."""
    weights = [torch.randn(shape).bfloat16() for _ in range(num_layers) for shape in SHAPES]
    panels = [amx.pack(weight) for weight in weights]
    reordered = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    inputs = {weight.shape[1]: torch.randn(num_rows, weight.shape[1]).bfloat16() for weight in weights}

    def by_tiles() -> None:
        for weight, packed in zip(weights, panels, strict=True):
            linear(inputs[weight.shape[1]], packed, weight.shape[0], None, torch.bfloat16)

    def by_onednn() -> None:
        for weight, packed in zip(weights, reordered, strict=True):
            torch.ops.mkldnn._linear_pointwise.default(inputs[weight.shape[1]], packed, None, "none", [], "")

    def read() -> None:
        for packed in panels:
            packed.view(-1).view(torch.int64).sum()

    return seconds({"amx": by_tiles, "onednn": by_onednn, "read": read}), sum(weight.numel() for weight in weights)


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    if not amx.is_available():
        sys.exit("linear.py: this machine has no AMX tiles for bfloat16, or does not let us use them")
    grid = Table(title=f"{options.layers} layers; medians of {TURNS}, by turns")
    for heading in ("rows", "amx ms", "onednn ms", "amx ÷ onednn", "amx GB/s", "read GB/s", "amx GFLOP/s"):
        grid.add_column(heading, justify="right")
    for num_rows in options.rows:
        taken, count = measure(num_rows, options.layers)
        grid.add_row(
            str(num_rows),
            f"{taken['amx'] * 1e3:.1f}",
            f"{taken['onednn'] * 1e3:.1f}",
            f"{taken['amx'] / taken['onednn']:.2f}",
            f"{2 * count / taken['amx'] / 1e9:.1f}",
            f"{2 * count / taken['read'] / 1e9:.1f}",
            f"{2 * count * num_rows / taken['amx'] / 1e9:.0f}",
        )
    Console().print(grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
