"""Matrix products on AMX tiles: right for every shape, and the same for a row whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu import amx, int8
from octavo.kernels.cpu.linear import linear
from octavo.models.layers import Head, Layout, Linear

pytestmark = pytest.mark.skipif(not amx.is_available(), reason="no AMX tiles here")

ROWS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 80, 130]
SHAPES = [(1, 32), (16, 32), (31, 64), (33, 32), (64, 96), (200, 160), (576, 1536)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    return linear(x, amx.pack(weight), weight.shape[0], bias, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_equals_the_product_in_double_precision(num_rows: int, shape: tuple[int, int]) -> None:
    x, weight, bias = random(num_rows, shape[1], seed=1), random(*shape, seed=2), random(shape[0], seed=3).float()
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
    for num_rows in ROWS:
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


@pytest.mark.parametrize("num_rows", [1, 16, 50])
def test_bfloat16_results_are_the_sums_rounded_once(num_rows: int) -> None:
    x, weight, bias = random(num_rows, 96), random(70, 96, seed=1), random(70, seed=2).float()
    rounded = product(x, weight, bias, torch.bfloat16)
    assert rounded.dtype is torch.bfloat16
    assert torch.equal(rounded, product(x, weight, bias).bfloat16())


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = random(130, 192), random(100, 192, seed=1)
    together = product(x, weight)
    for num_rows in ROWS:
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
    assert not amx.fits(random(10, 48))
    assert not amx.fits(random(10, 64).float())
    assert Linear(random(10, 48)).layout is not Layout.AMX


def test_a_linear_layer_uses_it() -> None:
    weight, bias, x = random(50, 64), random(50, seed=1), random(3, 64, seed=2)
    layer = Linear(weight, bias)
    assert layer.layout is Layout.AMX
    assert torch.equal(layer(x), product(x, weight, bias.float(), torch.bfloat16))


def test_logits_are_not_rounded() -> None:
    weight, hidden = random(300, 64), random(4, 64, seed=2)
    logits = Head(Linear(weight), weight)(hidden)
    assert logits.dtype is torch.float32
    assert torch.equal(logits, product(hidden, weight))


def test_without_tiles_other_layouts_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "is_available", lambda: False)
    weight, x = random(50, 64), random(3, 64, seed=2)
    layer = Linear(weight)
    assert layer.layout is not Layout.AMX
    torch.testing.assert_close(layer(x).float(), product(x, weight), rtol=1e-2, atol=1e-2)
    logits = Head(layer, weight)(x)
    assert torch.equal(logits.argmax(dim=-1), product(x, weight).argmax(dim=-1))
