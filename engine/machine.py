"""What this machine can do now, as JSON: bytes that it reads from memory, and operations in products, per second.

    python -m octavo.engine.machine

Run in a process of its own: torch's threads would go on waiting, busily, beside whatever else is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import torch

TRIES = 5
READ_BYTES = 256 * 2**20
SIDE = 2048
# Where products are slow, smaller ones say so as well: doubling the side takes eight times as long.
_FIRST_SIDE = 256
_LONG_SECONDS = 0.02


class Rates(msgspec.Struct, frozen=True):
    """Per second.

    Attributes:
        read_bytes: From memory. operations: of products in bfloat16. float32_operations: of those in float32.
    """

    read_bytes: float
    operations: float
    float32_operations: float


def measure(device: torch.device) -> Rates:
    """Both at their best of some tries; takes a second or two."""
    numbers = torch.ones(READ_BYTES // 4, device=device)
    return Rates(
        read_bytes=READ_BYTES / _best_seconds(numbers.sum, device),
        operations=_operations(torch.bfloat16, device),
        float32_operations=_operations(torch.float32, device),
    )


def _operations(dtype: torch.dtype, device: torch.device) -> float:
    side = _FIRST_SIDE
    while True:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        seconds = _best_seconds(a.matmul, device, b)
        if side == SIDE or seconds > _LONG_SECONDS:
            return 2 * side**3 / seconds
        side *= 2


def _best_seconds(work: Callable[..., object], device: torch.device, *arguments: object) -> float:
    """The shortest of some runs, after one to warm up."""
    times = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        work(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    print(msgspec.json.encode(measure(torch.device("cpu"))).decode())
