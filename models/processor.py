"""In which 16-bit types this machine's processor computes. Loads no torch: the front end asks as well."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final

# What oneDNN asks of a processor before it computes in a type, as /proc/cpuinfo names it. Without these, torch turns
# every number into float32 and back on its way: a prompt in bfloat16 then takes 6.7 times as long as in float32, a
# decode of 16 sequences 1.7 times; one stream takes 0.6 of the time, since half the bytes come from memory
# (docs/performance.md).
_NEEDED: Final = {
    ("x86_64", "bfloat16"): {"avx512bw", "avx512dq", "avx512vl"},
    ("x86_64", "float16"): {"avx512_fp16"},
    ("aarch64", "bfloat16"): {"bf16"},
    ("aarch64", "float16"): {"asimdhp"},
}


def computes_in(dtype: str) -> bool:
    """Whether the processor has instructions for a type, "bfloat16" or "float16"; True where that cannot be known."""
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
