"""What decodes do with a chunk on AMX tiles, with the product of tiles computed without them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from numba import njit

from octavo.kernels.cpu import amx, tile_decodes
from octavo.kernels.cpu.bits import stored, widen
from octavo.kernels.cpu.packing import OUTPUTS
from octavo.kernels.cpu.tile_layout import TILES, padded_width
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, array_at

HEADS, HEAD, FEW = 3, 1, 8


@njit
def multiply_few(sums, first_sum, row_step, weights, first_weight, blocks, x, first_x, tile, x_row, x_block):
    for half in range(2):
        begin = x.ctypes.data + (first_x + half * tile) * x.itemsize
        rows = array_at(begin, ((ROWS - 1) * x_row + (blocks - 1) * x_block + BLOCK,), x)
        for r in range(ROWS):
            for output in range(OUTPUTS):
                total = np.float32(0.0)
                for block in range(blocks):
                    for i in range(BLOCK):
                        at = first_weight + block * 2 * ROWS * BLOCK + i // 2 * 2 * OUTPUTS + 2 * output + i % 2
                        total += widen(rows[r * x_row + block * x_block + i]) * widen(weights[at])
                sums[first_sum + (half * ROWS + r) * row_step + output] = total


@pytest.mark.parametrize(
    ("block_size", "head_dim", "num_keys"), [(16, 64, 128), (16, 64, 67), (32, 80, 33), (5, 96, 1)]
)
def test_scores_of_few_rows(block_size: int, head_dim: int, num_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "multiply_few", multiply_few)
    spec = importlib.util.spec_from_file_location("tile_decodes_without_amx", tile_decodes.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load, score = module._load_either(FEW), module._score_either(FEW)

    @njit
    def run(scores, scratch, kv, table, num_keys, q, row, qkv, seqs):
        load(q, row, qkv, seqs, 0, 1, np.float32(1.0))
        score(scores, scratch, kv, table, HEAD, KEYS, num_keys, q, seqs.shape[0])

    generator = torch.Generator().manual_seed(num_keys)
    num_blocks, width = -(-2 * KEYS // block_size), int(padded_width(head_dim))
    kv = torch.randn(num_blocks, 2, HEADS, block_size, head_dim, generator=generator).bfloat16()
    table = torch.randperm(num_blocks, generator=generator).to(torch.int32)
    keys = kv[table.long(), 0, HEAD].flatten(0, 1)[KEYS : KEYS + num_keys].double()
    queries = torch.randn(FEW, 1, head_dim, generator=generator).bfloat16().float()
    for count in (1, 3, FEW):
        empty = np.zeros(KEYS * width, np.uint16)
        turned, places = np.zeros(KEYS * TILE_ROWS, np.float32), np.zeros((3, TILES), np.int64)
        scores = np.zeros((TILE_ROWS, KEYS), np.float32)
        run(
            scores.reshape(-1), (empty, turned, empty.copy(), places), stored(kv).numpy(), table.numpy(), num_keys,
            np.zeros(TILE_ROWS * width, np.uint16), np.zeros(width, np.float32), queries.numpy(), np.arange(count),
        )  # fmt: skip
        # In units of log 2; queries are rounded to bfloat16 after that.
        expected = queries[:count, 0].double() @ keys.T / np.log(2)
        torch.testing.assert_close(torch.from_numpy(scores[:count, :num_keys]).double(), expected, rtol=2e-2, atol=0.1)
