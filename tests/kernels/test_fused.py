"""The fused element-wise kernels agree with torch's operations, in every dtype and on one or several threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels.cpu.fused import rms_norm, silu_mul

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One row; a few, on one thread; enough for two; widths that fill no vector.
SHAPES = [(1, 64), (5, 48), (130, 576), (3, 7)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape) * 30, torch.randn(shape[1])
    expected = F.rms_norm(x.double(), shape[1:], weight.double(), 1e-5)
    actual = rms_norm(x, weight, 1e-5, dtype)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("width", [576, 569])
def test_rms_norm_of_a_row_is_the_same_beside_others(width: int) -> None:
    """On one thread and on several, which are compiled apart."""
    x, weight = torch.randn(130, width) * 30, torch.randn(width)
    alone = torch.cat([rms_norm(row[None], weight, 1e-5, torch.float32) for row in x])
    assert torch.equal(rms_norm(x, weight, 1e-5, torch.float32), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_silu_mul(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 4).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(
        silu_mul(gate_up).double(), F.silu(gate) * up, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6
    )


def test_silu_mul_of_extreme_gates() -> None:
    gates = torch.tensor([[-1e30, -200.0, -0.0, 0.0, 200.0, 1e30]])
    result = silu_mul(torch.cat((gates, torch.ones_like(gates)), dim=-1))
    torch.testing.assert_close(result, torch.tensor([[0.0, 0.0, 0.0, 0.0, 200.0, 1e30]]), atol=1e-5, rtol=1e-6)


def test_nan_stays_nan() -> None:
    x = torch.randn(2, 8)
    x[1, 3] = torch.nan
    out = rms_norm(x, torch.ones(8), 1e-5, torch.bfloat16)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
