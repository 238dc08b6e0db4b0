"""The last norm and the output layer in one call: what the two give one after the other."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.cpu.head import NormedLinear
from octavo.models.layers import Head, Layout, Linear, RmsNorm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HIDDEN = 96


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantized", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("vocab", [97, 112, 4000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_norm_and_then_the_layer_to_the_last_bit(dtype: torch.dtype, vocab: int, quantized: bool) -> None:
    weight, x = random(vocab, HIDDEN).to(dtype), random(50, HIDDEN, seed=1) * 30
    norm = RmsNorm(random(HIDDEN, seed=2), 1e-5, adds_one=True, dtype=dtype)
    head = Head(Linear(weight, quantized=quantized), None)
    ending = head.after(norm)
    assert isinstance(ending, NormedLinear)
    expected = head(norm(x))
    for rows in ([49], [0, 3, 3, 17], list(range(50))):
        logits = ending(x, torch.tensor(rows))
        assert logits.dtype is torch.float32
        assert torch.equal(logits, expected[rows])


def test_other_layouts_take_one_after_the_other() -> None:
    linear = Linear(random(97, 40))  # a width that no tile has
    assert linear.layout is not Layout.PANELS
    head, norm, x = (
        Head(linear, None),
        RmsNorm(random(40, seed=2), 1e-5, adds_one=False, dtype=torch.float32),
        random(6, 40),
    )
    assert torch.equal(head.after(norm)(x, torch.tensor([1, 5])), head(norm(x[[1, 5]])))
