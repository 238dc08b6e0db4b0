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
    TILES,
    expect_tiles,
    find_tiles,
    pack_keys,
    pack_values,
    padded_width,
)
from octavo.kernels.cpu.tile_softmax import KEYS
from octavo.kernels.cpu.tiles import BLOCK

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HEADS, HEAD = 3, 1
NOTHING = -1


def packing_of_a_chunk():
    """Compiled anew for each test: the code depends on the registers."""

    @njit
    def pack(keys, values, places, rows, kv, table, start, count, width):
        find_tiles(places[0], rows, kv, 0, table, HEAD, start, count, width)
        pack_keys(keys, 0, places[0], width, count)
        find_tiles(places[1], rows, kv, 1, table, HEAD, start, count, width)
        pack_values(values, 0, places[1], width, count)

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


def check(pack, kv: Tensor, table: np.ndarray, start: int, count: int) -> np.ndarray:
    """Returns where the tiles of K and V were found."""
    width = int(padded_width(kv.shape[-1]))
    empty = torch.full((KEYS * width,), NOTHING).to(kv.dtype)
    keys, values = empty.clone(), empty.clone()
    rows, places = stored(empty.clone()).numpy(), np.zeros((2, TILES), dtype=np.int64)
    pack(stored(keys).numpy(), stored(values).numpy(), places, rows, stored(kv).numpy(), table, start, count, width)
    groups = -(-count // packing.GROUP)
    of_keys = packing.pack(chunk_of(kv, table, 0, start, count))
    assert torch.equal(keys.view(of_keys.shape)[:groups], of_keys[:groups])
    of_values = packing.pack(chunk_of(kv, table, 1, start, count).T)
    assert torch.equal(values.view(of_values.shape)[:, :groups], of_values[:, :groups])
    # What no key needs is not touched.
    assert (keys.view(of_keys.shape)[groups:] == NOTHING).all()
    return places


@pytest.mark.parametrize("is_wide", [True, False], ids=["32 wide registers", "16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_become_weights(dtype: torch.dtype, is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "IS_WIDE", is_wide)
    pack = packing_of_a_chunk()
    for block_size, head_dim, count in ((16, 64, KEYS), (5, 80, 67), (1, 32, 1), (32, 96, 32), (16, 64, 67)):
        kv, table = cache(block_size, head_dim, dtype)
        check(pack, kv, table, KEYS, count)


def in_blocks(kv: Tensor, places: np.ndarray) -> np.ndarray:
    """Which addresses are those of rows in their blocks."""
    begin = kv.data_ptr()
    return (places >= begin) & (places < begin + kv.numel() * kv.element_size())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_stay_in_blocks_that_hold_them_whole(dtype: torch.dtype) -> None:
    pack = packing_of_a_chunk()
    for block_size, head_dim in ((16, 64), (32, 96), (128, 32)):
        kv, table = cache(block_size, head_dim, dtype)
        # Behind the sequence there is what was there before, which times zero need not be zero.
        kv[int(table[-1]), :, :, -1] = torch.nan
        assert in_blocks(kv, check(pack, kv, table, KEYS, KEYS - 5))[:, :-1].all()
        assert not in_blocks(kv, check(pack, kv, table, KEYS, KEYS - 5))[:, -1].any()
    for block_size, head_dim in ((8, 64), (24, 64), (16, 80)):
        kv, table = cache(block_size, head_dim, dtype)
        assert not in_blocks(kv, check(pack, kv, table, KEYS, KEYS)).any()


def test_what_is_going_to_be_read_is_known() -> None:
    @njit
    def expect(places, kv, table, start, count):
        expect_tiles(places, kv, 1, table, HEAD, start, count)

    kv, table = cache(16, 64, torch.float32)
    places = np.zeros(TILES, dtype=np.int64)
    expect(places, kv.numpy(), table, KEYS, 40)
    blocks = table[KEYS // 16 :][:3].tolist()
    wanted = [kv[block, 1, HEAD].data_ptr() for block in blocks]
    assert places.tolist() == wanted + [wanted[0]] * (TILES - 3)
