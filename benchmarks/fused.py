"""The CPU's fused element-wise kernels beside the torch operations they replace, in one run.

python benchmarks/fused.py            # at 1, 16, 64 and 512 tokens, for a model 576 wide
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu.fused import rms_norm, silu_mul


def microseconds(work: Callable[[], object], repeats: int = 200) -> float:
    """Median time of one call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def torch_silu_mul(gate_up: Tensor) -> Tensor:
    """What `silu_mul` replaces."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 512])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--intermediate", type=int, default=1536)
    options = parser.parse_args()
    print(f"{'tokens':>8}{'norm torch µs':>16}{'norm fused µs':>16}{'silu torch µs':>16}{'silu fused µs':>16}")
    weight = torch.randn(options.hidden)
    for tokens in options.tokens:
        x = torch.randn(tokens, options.hidden)
        gate_up = torch.randn(tokens, 2 * options.intermediate).bfloat16()
        row = (
            microseconds(lambda x=x: F.rms_norm(x, weight.shape, weight, 1e-5).bfloat16()),
            microseconds(lambda x=x: rms_norm(x, weight, 1e-5, torch.bfloat16)),
            microseconds(lambda gate_up=gate_up: torch_silu_mul(gate_up)),
            microseconds(lambda gate_up=gate_up: silu_mul(gate_up)),
        )
        print(f"{tokens:8}" + "".join(f"{value:16.0f}" for value in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
