"""Writes to the KV cache on a CPU."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def write_kv(k, v, kv, strides, block_size, slot_mapping):
    """Scatters k and v [num_tokens, num_kv_heads, head_dim] into the flat cache; negative slots are skipped.

    Args:
        k: Keys, as stored.
        v: Values, as stored.
        kv: The flat cache, as stored.
        strides: Its strides over (block, K or V, head, slot).
        block_size: Tokens in a block.
        slot_mapping: int64 [num_tokens].
    """
    num_tokens, num_heads, head_dim = k.shape
    for token in range(num_tokens):
        slot = slot_mapping[token]
        if slot < 0:
            continue
        at_block = slot // block_size * strides[0] + slot % block_size * strides[3]
        for head in range(num_heads):
            at = at_block + head * strides[2]
            kv[at : at + head_dim] = k[token, head]
            at += strides[1]
            kv[at : at + head_dim] = v[token, head]
