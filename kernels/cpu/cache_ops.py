"""Writes to the KV cache on a CPU."""

from __future__ import annotations

from functools import cache

from numba import types

from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.kv_rows import put_row


@cache
def write_kernel(stored: types.Type, cached: types.Type):
    """The kernel for one dtype.

    Args:
        stored: numba's type of an element of k and v: see `octavo.kernels.cpu.bits`. cached: of the cache's.

    Returns:
        ``write(k, v, kv, slot_mapping)``, which scatters k and v [num_tokens, num_kv_heads, head_dim] to their
        slots and skips negative ones.
    """
    # Rows are contiguous, whatever the strides over tokens and heads, but numba's types cannot say so. Compiled for
    # any strides, one kernel serves every caller; a decode step writes too little for the copy's speed to matter.
    heads, cache_ = types.Array(stored, 3, "A"), types.Array(cached, 5, "A")

    @kept(types.void(heads, heads, cache_, types.int64[:]), nogil=True, **EXACT)
    def write(k, v, kv, slot_mapping):
        num_tokens, num_heads = k.shape[:2]
        block_size = kv.shape[3]
        for token in range(num_tokens):
            slot = slot_mapping[token]
            if slot < 0:
                continue
            keys, values = kv[slot // block_size, 0], kv[slot // block_size, 1]
            offset = slot % block_size
            for head in range(num_heads):
                put_row(keys[head, offset], k[token, head])
                put_row(values[head, offset], v[token, head])

    return write
