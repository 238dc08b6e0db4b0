"""Compiles every Triton kernel down to machine code for an H100, on a machine without a GPU; prints their names.

The kernels' own launchers run, on CPU tensors; only the launch itself is left out.
"""

from __future__ import annotations

from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from octavo.kernels.triton.cache_ops import copy_blocks, write_kv
from octavo.kernels.triton.decode import decode
from octavo.kernels.triton.prefill import prefill

SHARED_MEMORY = 227 * 1024  # what one program may have on an H100


class Hopper(DriverBase):
    """Just enough of a driver for the compiler to know its target."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_benchmarker(self) -> None:
        return None


def compile_only(run):
    def compiled(kernel, *args, warmup, **kwargs):
        binary = run(kernel, *args, warmup=True, **kwargs)
        assert len(binary.asm["cubin"]) > 0
        assert binary.metadata.shared <= SHARED_MEMORY, (kernel.__name__, binary.metadata)
        print(kernel.__name__)

    return compiled


def compile_all(num_q_heads: int, num_kv_heads: int, head_dim: int, **how) -> None:
    kv_cache = torch.empty(8, 2, num_kv_heads, 16, head_dim, dtype=torch.bfloat16)
    q, kv = (torch.empty(7, heads, head_dim, dtype=torch.bfloat16) for heads in (num_q_heads, num_kv_heads))
    tables, lens = torch.zeros(2, 256, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    sinks = torch.zeros(num_q_heads) if how.pop("sinks", False) else None
    write_kv(kv, kv, kv_cache, torch.zeros(7, dtype=torch.int64))
    copy_blocks(kv_cache, torch.tensor([1]), torch.tensor([2]))
    for max_seq_len in (100, 4096):
        decode(q[:2], q[:2], kv_cache, tables, lens[:2], max_seq_len=max_seq_len, scale=0.1, sinks=sinks, **how)
    prefill(q, q, kv_cache, tables, lens[:2], lens, max_query_len=512, scale=0.1, sinks=sinks, **how)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    with mock.patch.object(JITFunction, "run", compile_only(JITFunction.run)):
        compile_all(9, 3, 64)
        compile_all(4, 1, 128, window=1000, softcap=30.0, sinks=True)
