"""Scores and sums of values of a chunk that decodes read, where products are computed in vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from octavo.config import KV_SCALE_BYTES
from octavo.kernels import kv_rows
from octavo.kernels.cpu import vector_products
from octavo.kernels.cpu.bits import stored
from octavo.kernels.cpu.packing import GROUP, PANELS, groups_of, pack
from octavo.kernels.cpu.tile_layout import TILES, padded_width
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, place
from octavo.kernels.cpu.vector_decodes import score, sum_values

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
COUNTS = [1, 2, 3, 4, 5, 6, 7, 16, 17, 32]
HEADS, HEAD = 3, 2


@njit
def run(scores, part, packed, rows, places, kv, table, start, num_keys, q, weights, count, has_next):
    scratch = packed, scores, rows, places
    score(scores, scratch, kv, table, HEAD, start, num_keys, q, count)
    sum_values(part, scratch, kv, table, HEAD, start, num_keys, weights, count, has_next)


@njit
def multiply(sums, row_step, weights, first_weight, num_inputs, x, count):
    """A product with one group, with what every other product here is computed with."""
    row_tiles = (count + ROWS - 1) // ROWS
    vector_products.multiply_ahead(
        sums, 0, row_step, row_step // PANELS, weights, first_weight, num_inputs // BLOCK, x, 0, ROWS * num_inputs,
        count, row_tiles, 0, 0,
    )  # fmt: skip


def tiled(rows: torch.Tensor) -> np.ndarray:
    """float32 [TILE_ROWS, width] as tiles."""
    tiles = np.empty(rows.numel(), dtype=np.float32)
    for r, row in enumerate(rows.numpy()):
        for d in range(0, len(row), BLOCK):
            at = place(r, d, len(row))
            tiles[at : at + BLOCK] = row[d : d + BLOCK]
    return tiles


def product(x: torch.Tensor, weight: torch.Tensor, count: int) -> np.ndarray:
    """x · weightᵀ, with weights packed beforehand: [count, outputs]."""
    packed, width = stored(pack(weight)).numpy().reshape(-1), x.shape[1]
    outputs = []
    for group in range(groups_of(len(weight))):
        sums = np.zeros((TILE_ROWS, GROUP), dtype=np.float32)
        multiply(sums.reshape(-1), GROUP, packed, group * GROUP * width, width, tiled(x), count)
        outputs.append(sums[:count])
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize(
    ("block_size", "head_dim", "num_keys"), [(16, 64, 128), (16, 64, 67), (32, 80, 33), (5, 96, 1)]
)
@pytest.mark.parametrize(("dtype", "is_int8"), [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True)], ids=str)
def test_sums_are_those_of_packed_weights(
    dtype: torch.dtype, block_size: int, head_dim: int, num_keys: int, is_int8: bool
) -> None:
    """To the last bit: a decode's result is that of a prompt."""
    generator = torch.Generator().manual_seed(num_keys)
    num_blocks, width = -(-2 * KEYS // block_size), int(padded_width(head_dim))
    exact = torch.randn(num_blocks, 2, HEADS, block_size, head_dim, generator=generator).to(dtype)
    kv, known = exact, exact
    if is_int8:
        kv = kv_rows.quantize(exact)
        assert kv.shape[-1] == head_dim + KV_SCALE_BYTES
        known = kv_rows.dequantize(kv, dtype)
    table = torch.randperm(num_blocks, generator=generator).to(torch.int32)
    keys, values = (
        torch.nn.functional.pad(
            known[table.long(), part, HEAD].flatten(0, 1)[KEYS : KEYS + num_keys], (0, width - head_dim)
        )
        for part in range(2)
    )
    queries = torch.randn(TILE_ROWS, width, generator=generator)
    weights = torch.rand(TILE_ROWS, KEYS, generator=generator)
    weights[:, num_keys:] = 0  # what lies behind the sequence means nothing
    padded_values = torch.nn.functional.pad(values, (0, 0, 0, KEYS - num_keys))
    places, rows = np.zeros((3, TILES), dtype=np.int64), stored(torch.zeros(KEYS * width, dtype=dtype)).numpy()
    numbers = kv.numpy() if is_int8 else stored(kv).numpy()
    for count in COUNTS:
        for has_next in (False, True):
            scores, part = np.zeros((TILE_ROWS, KEYS), np.float32), np.zeros((TILE_ROWS, width), np.float32)
            places[2] = kv.data_ptr()
            run(
                scores.reshape(-1), part.reshape(-1), rows.copy(), rows.copy(), places, numbers,
                table.numpy(), KEYS, num_keys, tiled(queries), tiled(weights), count, has_next,
            )  # fmt: skip
            assert np.array_equal(scores[:count, :num_keys], product(queries, keys, count)[:, :num_keys])
            assert np.array_equal(part[:count], product(weights, padded_values.T, count)[:, :width])
