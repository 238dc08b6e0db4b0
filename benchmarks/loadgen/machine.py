"""What this machine can do now, as JSON: bytes that it reads from memory, and operations in products of bfloat16.

Run in a process of its own: torch's threads would go on waiting, busily, beside the servers that are measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

TRIES = 5
READ_BYTES = 256 * 2**20
SIDE = 2048


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of some runs, after one to warm up."""
    times = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Prints both rates, per second."""
    numbers = torch.ones(READ_BYTES // 4)
    a, b = torch.randn(2, SIDE, SIDE).bfloat16()
    print(
        json.dumps(
            {
                "read_bytes": READ_BYTES / best_seconds(numbers.sum),
                "operations": 2 * SIDE**3 / best_seconds(lambda: a @ b),
            }
        )
    )


if __name__ == "__main__":
    main()
