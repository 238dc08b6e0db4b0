"""K and V of a chunk lie as weights of a layer would, wherever they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import packing, tiles
from octavo.kernels.cpu.bits import stored
from octavo.kernels.cpu.tile_layout import (
    pack_keys,
    pack_keys_in_place,
    pack_values,
    pack_values_in_place,
    padded_width,
    tile_rows_of,
)
from octavo.kernels.cpu.tile_softmax import KEYS
from octavo.kernels.cpu.tiles import BLOCK

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HEADS, HEAD = 3, 1
NOTHING = -1


def by_rows():
    """Compiled anew for each test: the code depends on the registers."""

    @njit
    def pack(keys, values, rows, kv, table, start, count, width):
        tile_rows_of(rows, kv, 0, table, HEAD, start, count, width)
        pack_keys(keys, 0, rows, width, count)
        tile_rows_of(rows, kv, 1, table, HEAD, start, count, width)
        pack_values(values, 0, rows, width, count)

    return pack


def in_place():
    @njit
    def pack(keys, values, rows, kv, table, start, count, width):
        pack_keys_in_place(keys, kv, table, HEAD, start)
        pack_values_in_place(values, kv, table, HEAD, start)

    return pack


def cache(block_size: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """Two chunks' blocks in any order."""
    num_blocks = -(-2 * KEYS // block_size)
    generator = torch.Generator().manual_seed(head_dim)
    kv = torch.randn(num_blocks + 1, 2, HEADS, block_size, head_dim, generator=generator).to(dtype)
    return kv, (1 + torch.randperm(num_blocks, generator=generator)).to(torch.int32).numpy()


def chunk_of(kv: Tensor, table: np.ndarray, part: int, start: int, count: int) -> Tensor:
    """[KEYS, padded width]; zeros where there is no key."""
    rows = kv[torch.from_numpy(table).long(), part, HEAD].flatten(0, 1)[start : start + count]
    head_dim = kv.shape[-1]
    return torch.nn.functional.pad(rows, (0, -head_dim % BLOCK, 0, KEYS - count))


def check(pack, kv: Tensor, table: np.ndarray, start: int, count: int) -> None:
    width = int(padded_width(kv.shape[-1]))
    empty = torch.full((KEYS * width,), NOTHING).to(kv.dtype)
    keys, values = empty.clone(), empty.clone()
    rows = stored(empty.clone()).numpy()
    pack(stored(keys).numpy(), stored(values).numpy(), rows, stored(kv).numpy(), table, start, count, width)
    groups = -(-count // packing.GROUP)
    of_keys = packing.pack(chunk_of(kv, table, 0, start, count))
    assert torch.equal(keys.view(of_keys.shape)[:groups], of_keys[:groups])
    of_values = packing.pack(chunk_of(kv, table, 1, start, count).T)
    assert torch.equal(values.view(of_values.shape)[:, :groups], of_values[:, :groups])
    # What no key needs is not touched.
    assert (keys.view(of_keys.shape)[groups:] == NOTHING).all()


@pytest.mark.parametrize("is_wide", [True, False], ids=["32 wide registers", "16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_become_weights(dtype: torch.dtype, is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "IS_WIDE", is_wide)
    pack = by_rows()
    for block_size, head_dim, count in ((16, 64, KEYS), (5, 80, 67), (1, 32, 1), (32, 96, 32)):
        kv, table = cache(block_size, head_dim, dtype)
        check(pack, kv, table, KEYS, count)


@pytest.mark.parametrize("is_wide", [True, False], ids=["32 wide registers", "16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_so_do_those_that_lie_in_blocks(dtype: torch.dtype, is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "IS_WIDE", is_wide)
    pack = in_place()
    for block_size, head_dim in ((16, 64), (32, 96), (128, 32)):
        kv, table = cache(block_size, head_dim, dtype)
        check(pack, kv, table, KEYS, KEYS)
