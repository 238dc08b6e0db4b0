"""A model's linear layers in bfloat16 by our own kernel, beside oneDNN's, in one run and by turns.

    python benchmarks/linear.py                       # the shapes of SmolLM2-135M, at 1 to 512 rows

Where oneDNN has no instructions for bfloat16, its rival is float32, of which it reads twice the bytes.

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

from octavo.kernels.cpu.linear import linear
from octavo.kernels.cpu.packing import pack

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
    panels = [pack(weight) for weight in weights]
    inputs = {weight.shape[1]: torch.randn(num_rows, weight.shape[1]).bfloat16() for weight in weights}

    wide = {width: x.float() for width, x in inputs.items()}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reordered = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    else:
        reordered = [weight.float() for weight in weights]

    def by_tiles() -> None:
        for weight, packed in zip(weights, panels, strict=True):
            linear(inputs[weight.shape[1]], packed, weight.shape[0], None, torch.bfloat16)

    def by_onednn() -> None:
        for weight, packed in zip(weights, reordered, strict=True):
            if packed.dtype is torch.float32:
                torch.nn.functional.linear(wide[weight.shape[1]], packed)
            else:
                torch.ops.mkldnn._linear_pointwise.default(inputs[weight.shape[1]], packed, None, "none", [], "")

    def read() -> None:
        for packed in panels:
            packed.view(-1).view(torch.int64).sum()

    return seconds({"ours": by_tiles, "onednn": by_onednn, "read": read}), sum(weight.numel() for weight in weights)


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    grid = Table(title=f"{options.layers} layers; medians of {TURNS}, by turns")
    for heading in ("rows", "ours ms", "onednn ms", "ours ÷ onednn", "ours GB/s", "read GB/s", "ours GFLOP/s"):
        grid.add_column(heading, justify="right")
    for num_rows in options.rows:
        taken, count = measure(num_rows, options.layers)
        grid.add_row(
            str(num_rows),
            f"{taken['ours'] * 1e3:.1f}",
            f"{taken['onednn'] * 1e3:.1f}",
            f"{taken['ours'] / taken['onednn']:.2f}",
            f"{2 * count / taken['ours'] / 1e9:.1f}",
            f"{2 * count / taken['read'] / 1e9:.1f}",
            f"{2 * count * num_rows / taken['ours'] / 1e9:.0f}",
        )
    Console().print(grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
