"""Scores and sums of values of a chunk that decodes read, where products are computed in vectors."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Self

import numpy as np
import pytest
import torch
from numba import njit

from octavo.config import KV_SCALE_BYTES
from octavo.kernels import kv_rows
from octavo.kernels.cpu import vector_decodes, vector_products
from octavo.kernels.cpu.bits import stored
from octavo.kernels.cpu.packing import GROUP, PANELS, groups_of, pack
from octavo.kernels.cpu.tile_layout import TILES, padded_width
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, place
from tests.support.vector_machines import pairs_in, recompiled

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
COUNTS = [1, 2, 3, 4, 5, 6, 7, 16, 17, 32]
HEADS, HEAD = 3, 2


class Kernels(NamedTuple):
    """``run``: scores and sums of values; ``multiply``: a product with one group, as every other product has it."""

    run: Callable[..., None]
    multiply: Callable[..., None]

    @classmethod
    def of(cls, products: ModuleType, decodes: ModuleType) -> Self:
        """Compiled with these modules."""
        score, sum_values, multiply_ahead = decodes.score, decodes.sum_values, products.multiply_ahead

        @njit
        def run(scores, part, packed, rows, places, kv, table, start, num_keys, q, weights, count, has_next):
            scratch = packed, scores, rows, places
            score(scores, scratch, kv, table, HEAD, start, num_keys, q, count)
            sum_values(part, scratch, kv, table, HEAD, start, num_keys, weights, count, has_next)

        @njit
        def multiply(sums, row_step, weights, first_weight, num_inputs, x, count):
            row_tiles = (count + ROWS - 1) // ROWS
            multiply_ahead(
                sums, 0, row_step, row_step // PANELS, weights, first_weight, num_inputs // BLOCK, x, 0,
                ROWS * num_inputs, count, row_tiles, 0, 0,
            )  # fmt: skip

        return cls(run, multiply)


HERE = Kernels.of(vector_products, vector_decodes)


def tiled(rows: torch.Tensor) -> np.ndarray:
    """[TILE_ROWS, width] as tiles, stored."""
    numbers = stored(rows).numpy()
    tiles = np.empty(rows.numel(), dtype=numbers.dtype)
    for r, row in enumerate(numbers):
        for d in range(0, len(row), BLOCK):
            at = place(r, d, len(row))
            tiles[at : at + BLOCK] = row[d : d + BLOCK]
    return tiles


def product(kernels: Kernels, x: torch.Tensor, weight: torch.Tensor, count: int) -> np.ndarray:
    """x · weightᵀ, with weights packed beforehand: [count, outputs]."""
    packed, width = stored(pack(weight)).numpy().reshape(-1), x.shape[1]
    outputs = []
    for group in range(groups_of(len(weight))):
        sums = np.zeros((TILE_ROWS, GROUP), dtype=np.float32)
        kernels.multiply(sums.reshape(-1), GROUP, packed, group * GROUP * width, width, tiled(x), count)
        outputs.append(sums[:count])
    return np.concatenate(outputs, axis=1)


SHAPES = [(16, 64, 128), (16, 64, 67), (32, 80, 33), (5, 96, 1)]  # block size, head_dim, keys


@pytest.mark.parametrize(("block_size", "head_dim", "num_keys"), SHAPES)
@pytest.mark.parametrize(("dtype", "is_int8"), [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True)], ids=str)
def test_sums_are_those_of_packed_weights(
    dtype: torch.dtype, block_size: int, head_dim: int, num_keys: int, is_int8: bool
) -> None:
    check(HERE, dtype, block_size, head_dim, num_keys, is_int8=is_int8)


@pytest.mark.parametrize("pairs", ["instruction", "emulated"])
def test_sums_of_pairs_of_bfloat16_are_those_of_packed_weights(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels.of(*recompiled(monkeypatch, **pairs_in(pairs)))
    for shape in SHAPES:
        check(kernels, torch.bfloat16, *shape, rows=torch.bfloat16)


def check(
    kernels: Kernels,
    dtype: torch.dtype,
    block_size: int,
    head_dim: int,
    num_keys: int,
    *,
    is_int8: bool = False,
    rows: torch.dtype = torch.float32,
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
    queries = torch.randn(TILE_ROWS, width, generator=generator).to(rows)
    weights = torch.rand(TILE_ROWS, KEYS, generator=generator).to(rows)
    weights[:, num_keys:] = 0  # what lies behind the sequence means nothing
    padded_values = torch.nn.functional.pad(values, (0, 0, 0, KEYS - num_keys))
    places, empty = np.zeros((3, TILES), dtype=np.int64), stored(torch.zeros(KEYS * width, dtype=dtype)).numpy()
    numbers = kv.numpy() if is_int8 else stored(kv).numpy()
    for count in COUNTS:
        for has_next in (False, True):
            scores, part = np.zeros((TILE_ROWS, KEYS), np.float32), np.zeros((TILE_ROWS, width), np.float32)
            places[2] = kv.data_ptr()
            kernels.run(
                scores.reshape(-1), part.reshape(-1), empty.copy(), empty.copy(), places, numbers,
                table.numpy(), KEYS, num_keys, tiled(queries), tiled(weights), count, has_next,
            )  # fmt: skip
            assert np.array_equal(scores[:count, :num_keys], product(kernels, queries, keys, count)[:, :num_keys])
            assert np.array_equal(part[:count], product(kernels, weights, padded_values.T, count)[:, :width])
