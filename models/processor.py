"""In which 16-bit types this machine's processor is fast. Loads no torch: the front end asks as well."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final

# bfloat16 is multiplied by our own kernels, in AMX tiles or in vectors of float32 (`octavo.kernels.cpu.products`),
# which crawl with less than these. float16 is oneDNN's, which asks for instructions of its own: without them torch
# turns every number into float32 and back on its way. As /proc/cpuinfo names them.
_NEEDED: Final = {
    ("x86_64", "bfloat16"): {"avx2", "fma"},
    ("x86_64", "float16"): {"avx512_fp16"},
    ("aarch64", "float16"): {"asimdhp"},
}


def computes_in(dtype: str) -> bool:
    """Whether the processor is fast in a type, "bfloat16" or "float16"; True where that cannot be known."""
    needed = _NEEDED.get((platform.machine(), dtype), set[str]())
    flags = _flags()
    return not flags or needed <= flags


@cache
def _flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )
