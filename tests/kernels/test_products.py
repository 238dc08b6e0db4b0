"""Matrix products of tiles: right for every shape, and the same for a row whatever stands beside it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numba import njit, types
from torch import Tensor

from octavo.kernels.cpu import int8, packing, vectors
from octavo.kernels.cpu.bits import stored
from octavo.kernels.cpu.linear import PANEL, linear
from octavo.kernels.cpu.packing import OUTPUTS
from octavo.kernels.cpu.tiles import BLOCK, ROWS, put_run, tile_rows, tiled_size
from octavo.kernels.cpu.vector_products import multiply
from octavo.models.layers import Head, Layout, Linear
from tests.support.vector_machines import pairs_in, recompiled

COUNTS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 80, 130]
SHAPES = [(1, 32), (16, 32), (31, 64), (33, 32), (64, 96), (200, 160), (576, 1536)]


DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    return linear(x, packing.pack(weight), weight.shape[0], bias, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", COUNTS)
def test_equals_the_product_in_double_precision(num_rows: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = random(num_rows, shape[1], seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
    bias = random(shape[0], seed=3).float()
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, weight).double(), exact, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(product(x, weight, bias).double(), exact + bias, rtol=1e-5, atol=1e-3)


# ── weights in int8 ─────────────────────────────────────────────────────────────────────────────────────────


def widened(weight: Tensor) -> Tensor:
    """What is left of a weight in int8: float64."""
    numbers, scales = int8.quantize(weight)
    return numbers.double() * scales.double()[:, None]


def quantized_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    numbers, scales = int8.quantize(weight)
    return linear(x, int8.pack(numbers), weight.shape[0], bias, torch.float32, scales)


def test_a_weight_in_int8_is_off_by_half_a_step_of_its_outputs_scale() -> None:
    weight = random(50, 64) * torch.logspace(-3, 3, 50)[:, None].bfloat16()
    numbers, scales = int8.quantize(weight)
    assert numbers.dtype is torch.int8
    assert (numbers.abs().amax(dim=1) == 127).all()
    assert ((widened(weight) - weight.double()).abs() <= 0.5001 * scales.double()[:, None]).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 16, 33, 130, 300])
def test_a_product_in_int8_is_that_of_what_is_left_of_the_weights(num_rows: int, shape: tuple[int, int]) -> None:
    x, weight, bias = random(num_rows, shape[1], seed=1), random(*shape, seed=2), random(shape[0], seed=3).float()
    # Off by what fixed point rounds: half a step of 1 / 32,512 of a row's largest number.
    exact = x.double() @ widened(weight).T
    torch.testing.assert_close(quantized_product(x, weight).double(), exact, rtol=0, atol=1e-2)
    torch.testing.assert_close(quantized_product(x, weight, bias).double(), exact + bias, rtol=0, atol=1e-2)


def test_a_row_does_not_depend_on_the_others_in_int8_either() -> None:
    x, weight = random(300, 192), random(100, 192, seed=1)
    together = quantized_product(x, weight)
    for num_rows in COUNTS:
        assert torch.equal(quantized_product(x[:num_rows], weight), together[:num_rows]), num_rows


def test_outputs_without_weights_are_nothing_in_int8() -> None:
    weight = random(40, 64)
    weight[7] = 0
    out = quantized_product(random(3, 64), weight)
    assert (out[:, 7] == 0).all()
    assert out.isfinite().all()


@pytest.mark.parametrize("tiny", [0.0, 1e-38, 1e-40])
def test_rows_that_are_next_to_nothing_stay_so_in_int8(tiny: float) -> None:
    x = random(20, 64)
    x[3] = tiny
    out = quantized_product(x, random(40, 64, seed=1))
    assert out.isfinite().all()
    assert (out[3].abs() < 1e-30).all()
    assert torch.equal(out[4:], quantized_product(x[4:], random(40, 64, seed=1)))


def test_a_layer_in_int8_takes_half_the_memory() -> None:
    weight, x = random(96, 64), random(5, 64, seed=1)
    plain, quantized = Linear(weight), Linear(weight, quantized=True)
    assert sum(t.nbytes for t in quantized.tensors) == sum(t.nbytes for t in plain.tensors) // 2 + 4 * 96
    assert torch.equal(quantized(x), quantized_product(x, weight).bfloat16())
    assert torch.equal(Head(quantized, weight)(x), quantized_product(x, weight))


# ── layers ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 16, 50])
def test_16_bit_results_are_the_sums_rounded_once(num_rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(num_rows, 96, dtype=dtype), random(70, 96, seed=1, dtype=dtype), random(70, seed=2).float()
    rounded = product(x, weight, bias, dtype)
    assert rounded.dtype is dtype
    assert torch.equal(rounded, product(x, weight, bias).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = random(130, 192, dtype=dtype), random(100, 192, seed=1, dtype=dtype)
    together = product(x, weight)
    for num_rows in COUNTS:
        assert torch.equal(product(x[:num_rows], weight), together[:num_rows]), num_rows
    assert torch.equal(product(x[77:78], weight), together[77:78])


def test_rows_may_lie_apart() -> None:
    x, weight = random(20, 160), random(40, 64, seed=1)
    part = x[:, 32:96]
    assert torch.equal(product(part, weight), product(part.contiguous(), weight))


def test_threads_change_nothing() -> None:
    x, weight = random(33, 1536), random(576, 1536, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = product(x, weight)
    torch.set_num_threads(before)
    assert torch.equal(product(x, weight), alone)


def test_infinities_and_nans_stay_in_their_row() -> None:
    x, weight = random(20, 64), random(40, 64, seed=1)
    expected = product(x, weight)
    x[3, 5], x[19, 63] = torch.inf, torch.nan
    got = product(x, weight)
    assert torch.isnan(got[19]).all()
    assert not torch.isfinite(got[3]).any()
    others = [row for row in range(20) if row not in (3, 19)]
    assert torch.equal(got[others], expected[others])


def test_inputs_that_fill_no_tile_are_left_to_others() -> None:
    assert not packing.fits(random(10, 48))
    assert not packing.fits(random(10, 64).double())
    assert Linear(random(10, 48)).layout is not Layout.PANELS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_linear_layer_uses_it(dtype: torch.dtype) -> None:
    weight, bias, x = (random(*size, seed=i, dtype=dtype) for i, size in enumerate([(50, 64), (50,), (3, 64)]))
    layer = Linear(weight, bias)
    assert layer.layout is Layout.PANELS
    assert torch.equal(layer(x), product(x, weight, bias.float(), dtype))


def test_logits_are_not_rounded() -> None:
    weight, hidden = random(300, 64), random(4, 64, seed=2)
    logits = Head(Linear(weight), weight)(hidden)
    assert logits.dtype is torch.float32
    assert torch.equal(logits, product(hidden, weight))


def test_other_layouts_serve_what_has_no_tiles() -> None:
    weight, x = random(50, 48), random(3, 48, seed=2)
    exact = x.float() @ weight.float().T
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layer = Linear(weight.to(dtype))
        assert layer.layout is not Layout.PANELS
        torch.testing.assert_close(layer(x.to(dtype)).float(), exact, rtol=1e-2, atol=1e-1)
        logits = Head(layer, weight.to(dtype))(x.to(dtype))
        assert torch.equal(logits.argmax(dim=-1), exact.argmax(dim=-1))


# ── in vectors, on whatever processor ───────────────────────────────────────────────────────────────────────


def multiplied_with(multiply):
    @njit
    def multiplied(sums, weights, blocks, x, tile, count):
        multiply(sums, 0, OUTPUTS, PANEL, weights, 0, blocks, x, 0, tile, count, 2, 1)

    return multiplied


multiplied = multiplied_with(multiply)


def multiplied_bytes_with(multiply_bytes):
    fix_rows = int8.fix_rows_with(0)

    @njit
    def multiplied_bytes(sums, numbers, blocks, fixed, steps, x, count, num_inputs):
        fix_rows(fixed, steps, x, 0, count, num_inputs)
        multiply_bytes(sums, numbers, 0, blocks, fixed, 0, count, 1)

    return multiplied_bytes


def words(x: Tensor) -> np.ndarray:
    return stored(x.contiguous()).numpy().reshape(-1)


NANS = {np.uint16: 0x7FC0, np.int16: 0x7E00, np.float32: np.nan}


def tiled(x: Tensor, kind: type = np.float32) -> np.ndarray:
    """Rows in tiles; rows that fill up the last ones are NaN."""
    tiles = np.full(tiled_size(*x.shape), NANS[kind], kind)
    tile_rows(tiles, stored(x).numpy())
    return tiles


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_inputs", [32, 96, 576])
@pytest.mark.parametrize("count", range(1, 33))
def test_vectors_multiply_any_number_of_rows(count: int, num_inputs: int, dtype: torch.dtype) -> None:
    check_product(multiplied, count, num_inputs, dtype)


def check_product(multiplied, count: int, num_inputs: int, dtype: torch.dtype, rows: type = np.float32) -> None:
    x, weight = random(count, num_inputs, dtype=dtype), random(32, num_inputs, seed=1, dtype=dtype)
    sums = np.empty(2 * PANEL, np.float32)
    multiplied(sums, words(packing.pack(weight)), num_inputs // BLOCK, tiled(x, rows), ROWS * num_inputs, count)
    got = torch.from_numpy(sums).view(2, 32, OUTPUTS)[:, :count].transpose(0, 1).reshape(count, 32)
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-3)
    for row in range(count):  # the same whatever stands beside it
        alone = np.empty(2 * PANEL, np.float32)
        multiplied(alone, words(packing.pack(weight)), num_inputs // BLOCK, tiled(x[row : row + 1], rows), 0, 1)
        assert torch.equal(torch.from_numpy(alone).view(2, 32, OUTPUTS)[:, 0].reshape(-1), got[row])


@pytest.mark.parametrize("pairs", ["instruction", "emulated"])
def test_vectors_multiply_pairs_of_bfloat16(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    products = recompiled(monkeypatch, **pairs_in(pairs))[0]
    assert products.takes_pairs(types.uint16)
    assert not products.takes_pairs(types.int16)
    multiplied = multiplied_with(products.multiply)
    for count in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32):
        for num_inputs in (32, 96, 576):
            check_product(multiplied, count, num_inputs, torch.bfloat16, np.uint16)


@pytest.mark.parametrize("is_wide", [True, False], ids=["32 wide registers", "16"])
def test_vectors_for_registers_of_any_number(is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied_by = multiplied_with(recompiled(monkeypatch, IS_WIDE=is_wide)[0].multiply)
    weight = random(32, 96, seed=1)
    for count in range(1, 33):
        x, sums, expected = random(count, 96), np.empty(2 * PANEL, np.float32), np.empty(2 * PANEL, np.float32)
        arguments = words(packing.pack(weight)), 3, tiled(x), ROWS * 96, count
        multiplied_by(sums, *arguments)
        multiplied(expected, *arguments)
        kept = [array.reshape(2, 32, OUTPUTS)[:, :count] for array in (sums, expected)]
        np.testing.assert_array_equal(*kept)


@pytest.mark.parametrize("kind", [np.uint16, np.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("instruction", [True, False], ids=["one instruction", "plain"])
@pytest.mark.parametrize("is_wide", [True, False], ids=["32 wide registers", "16"])
def test_sums_of_bytes_are_exact(is_wide: bool, instruction: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    products = recompiled(monkeypatch, IS_WIDE=is_wide)[0]
    if not instruction:
        monkeypatch.setattr(products, "_pair_products", lambda count: None)
    run = multiplied_bytes_with(products.multiply_bytes)
    for num_inputs, count in itertools.product((32, 64, 1504, 4096), (1, 2, 3, 5, 8, 9, 15, 16)):
        blocks, generator = -(-num_inputs // 64), torch.Generator().manual_seed(0)
        numbers = torch.randint(-127, 128, (32, num_inputs), generator=generator, dtype=torch.int8)
        numbers[3] = 127  # the largest sums there are
        x = random(count, num_inputs)
        x[0] = 3.0
        sums, steps = np.empty(int8.NUM_SUMS, np.int32), np.empty(count, np.float32)
        fixed = np.zeros(int8.fixed_bytes(count, num_inputs), np.uint8)
        packed = int8.pack(numbers).numpy().reshape(-1)
        run(sums, packed, blocks, fixed, steps, tiled(x, kind), count, num_inputs)
        rows = torch.from_numpy(fixed.view(np.int16)).view(blocks, ROWS, 64)[:, :count].long()
        whole = rows.transpose(0, 1).reshape(count, -1)
        assert ((whole[:, :num_inputs] * torch.from_numpy(steps)[:, None] - x.float()).abs() < 1e-3).all()
        high, low = torch.from_numpy(sums).long().view(2, 2, ROWS, OUTPUTS)
        got = (256 * high + low)[:, :count].transpose(0, 1).reshape(count, 32)
        assert torch.equal(got, whole[:, :num_inputs] @ numbers.long().T)


@pytest.mark.parametrize("num_inputs", [32, 64, 160])
def test_bytes_of_rows_lie_apart_or_together(num_inputs: int) -> None:
    for count in (1, 16, 40):
        fixed, steps = [], []
        for apart in (0, 1):
            fixed.append(np.full(int8.fixed_bytes(count, num_inputs), 99, np.uint8))
            steps.append(np.empty(count, np.float32))
            int8.fix_rows_with(apart)(
                fixed[apart], steps[apart], tiled(random(count, num_inputs)), 0, count, num_inputs
            )
        whole = fixed[0].view(np.int16).reshape(-1, ROWS, 64)
        high, low = fixed[1].reshape(-1, 2, ROWS, 64).swapaxes(0, 1)
        # Tile by tile, and in each the same number of blocks; what belongs to no row is as it was.
        tiles = -(-count // ROWS)
        by_row = [
            array.reshape(tiles, -1, ROWS, 64).swapaxes(1, 2).reshape(tiles * ROWS, -1) for array in (whole, high, low)
        ]
        rows, of_high, of_low = (array[:count] for array in by_row)
        assert np.array_equal(rows, of_high.view(np.int8).astype(np.int16) * 256 + of_low)
        assert np.array_equal(*steps)


@pytest.mark.parametrize("instruction", [True, False], ids=["one instruction", "plain"])
def test_rounding_to_bfloat16(instruction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if instruction and not vectors.KNOWS_BFLOAT:
        pytest.skip("no such instruction here")
    monkeypatch.setattr(vectors, "KNOWS_BFLOAT", instruction)

    @njit
    def rounded(out, x):
        for i in range(0, x.shape[0], 16):
            put_run(out, i, x, i, 16)

    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 4096)
    x[:8] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, -3.4e38, 1.00390625, 1.01171875])  # ties to even
    out = np.empty(len(x), np.uint16)
    rounded(out, x.numpy())
    assert torch.equal(torch.from_numpy(out).view(torch.bfloat16), x.bfloat16())
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7FC00000] * 4, dtype=torch.int32).view(torch.float32)
    rounded(out, nans.numpy())
    assert torch.from_numpy(out[:16]).view(torch.bfloat16).isnan().all()
