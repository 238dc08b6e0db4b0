"""In which 16-bit types this machine's processor is fast. Loads no torch: the front end asks as well."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final

# As /proc/cpuinfo names them. Our own kernels multiply in AMX tiles or in vectors of float32, to which they widen what
# they read (`octavo.kernels.cpu.products`); with less than these they crawl.
_FOR_OURS: Final = {
    ("x86_64", "bfloat16"): {"avx2", "fma"},
    ("x86_64", "float16"): {"avx2", "fma", "f16c"},
}
# oneDNN asks for instructions of its own: without them torch turns every number into float32 and back on its way.
_FOR_ONEDNN: Final = {
    ("x86_64", "bfloat16"): {"avx512bw", "avx512dq", "avx512vl"},
    ("x86_64", "float16"): {"avx512_fp16"},
    ("aarch64", "bfloat16"): {"bf16"},
    ("aarch64", "float16"): {"asimdhp"},
}


def computes_in(dtype: str, *, tiled: bool = True) -> bool:
    """Whether the processor is fast in a type, "bfloat16" or "float16"; True where that cannot be known.

    Args:
        tiled: The model fits our own kernels; otherwise it is left to torch and oneDNN.
    """
    needed = (_FOR_OURS if tiled else _FOR_ONEDNN).get((platform.machine(), dtype), set[str]())
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
