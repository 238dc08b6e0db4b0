"""Writes to the KV cache on a CPU."""

from __future__ import annotations

from functools import cache

from numba import njit, types


@cache
def write_kernel(stored: types.Type):
    """The kernel for one dtype.

    Args:
        stored: numba's type of a stored element: see `octavo.kernels.cpu.bits`.

    Returns:
        ``write(k, v, kv, slot_mapping)``, which scatters k and v [num_tokens, num_kv_heads, head_dim] to their
        slots and skips negative ones.
    """
    # Rows are contiguous, whatever the strides over tokens and heads, but numba's types cannot say so. Compiled for
    # any strides, one kernel serves every caller; a decode step writes too little for the copy's speed to matter.
    heads, cache_ = types.Array(stored, 3, "A"), types.Array(stored, 5, "A")

    @njit(types.void(heads, heads, cache_, types.int64[:]), error_model="numpy", nogil=True, cache=True)
    def write(k, v, kv, slot_mapping):
        num_tokens, num_heads, head_dim = k.shape
        block_size = kv.shape[3]
        for token in range(num_tokens):
            slot = slot_mapping[token]
            if slot < 0:
                continue
            keys, values = kv[slot // block_size, 0], kv[slot // block_size, 1]
            offset = slot % block_size
            for head in range(num_heads):
                for d in range(head_dim):
                    keys[head, offset, d] = k[token, head, d]
                    values[head, offset, d] = v[token, head, d]

    return write
