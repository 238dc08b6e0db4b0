"""K and V in int8: what a row holds, and that all kernels for CPUs read and write it alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged import Shape, as_bytes, assert_as_exact_as_torch, make_problem

from octavo.kernels.attention import select_backend
from octavo.kernels.kv_rows import LEAST, dequantize, head_dim_of, quantize, row_width

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPE = Shape(9, 3, 64, int8_kv=True)


def test_a_number_is_off_by_half_a_step_at_most() -> None:
    x = torch.randn(50, 3, 64) * torch.logspace(-6, 6, 50)[:, None, None]
    rows = quantize(x)
    steps = x.abs().amax(-1, keepdim=True) / 127
    assert ((dequantize(rows, torch.float32) - x).abs() <= steps * 0.5001).all()
    assert rows.shape == (50, 3, row_width(64, torch.int8)) == (50, 3, 68)


def test_the_largest_number_is_kept_and_zeros_stay_zeros() -> None:
    x = torch.tensor([[0.5, -4.0, 1.0], [0.0, 0.0, 0.0], [LEAST / 2, 0.0, -LEAST / 3]])
    numbers = dequantize(quantize(x), torch.float32)
    assert numbers[0, 1] == -4.0
    assert (numbers[1:] == 0.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_write_what_the_reference_writes(dtype: torch.dtype) -> None:
    shape = (7, 2, 3, 8, row_width(20, torch.int8))
    cache = torch.randint(-128, 128, shape, dtype=torch.int8)
    expected = cache.clone()
    k, v = (torch.randn(2, 33, 3, 20) * 3).to(dtype)
    k[5] = 0.0
    k[6, 1, 3], k[7, 0, 19], v[8, 2, 0] = torch.nan, torch.inf, -torch.inf
    slots = torch.randperm(7 * 8)[:33]
    slots[4] = -1
    select_backend(CPU, "reference").write_kv(k, v, expected, slots)
    select_backend(CPU, "cpu").write_kv(k, v, cache, slots)
    assert torch.equal(cache, expected)


def test_a_row_with_a_number_that_is_none_is_none() -> None:
    x = torch.randn(3, 8)
    x[0, 2], x[1, 7] = torch.nan, -torch.inf
    numbers = dequantize(quantize(x), torch.float32)
    assert numbers[:2].isnan().all()
    assert numbers[2].isfinite().all()


# numba compiles a kernel for each shape and type, so there are few.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("seq_lens", "query_lens"),
    [([1, 37, 523, 16], [1, 1, 1, 1]), ([523, 1, 18, 90, 33], [1, 1, 5, 41, 33])],
    ids=["decodes", "mixed"],
)
def test_attention_is_as_exact_as_torch_on_the_same_numbers(
    seq_lens: list[int], query_lens: list[int], dtype: torch.dtype
) -> None:
    problem = make_problem(seq_lens, query_lens, replace(SHAPE, dtype=dtype))
    assert head_dim_of(problem.kv_cache) == 64
    for backend in ("cpu", "reference"):
        assert_as_exact_as_torch(problem, problem.attend(backend))


@pytest.mark.parametrize("options", [{"window": 64}, {"softcap": 5.0}, {"sinks": True}], ids=str)
def test_variants(options: dict) -> None:
    problem = make_problem([600, 90, 40, 150], [1, 30, 40, 150], SHAPE, **options)
    assert_as_exact_as_torch(problem, problem.attend("cpu"))


def test_a_scale_belongs_to_one_token_and_head() -> None:
    problem = make_problem([40], shape=SHAPE)
    louder = problem.kv_cache.clone()
    block = int(problem.block_tables[0, 0])
    louder[block, 1, 0, 3, -4:] = as_bytes(torch.tensor([100.0]))
    changed = replace(problem, kv_cache=louder)
    assert not torch.equal(problem.attend("cpu"), changed.attend("cpu"))
    assert_as_exact_as_torch(changed, changed.attend("cpu"))


def test_triton_refuses_it() -> None:
    with pytest.raises(TypeError, match=r"kv_cache has dtype torch.int8; the triton backend takes torch.bfloat16"):
        make_problem([40], shape=Shape(int8_kv=True)).attend("triton")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(1, 4, 16, dtype=torch.int8)}, TypeError, "q has dtype torch.int8; beside an int8 kv_cache"),
        (
            {"out": torch.zeros(1, 4, 16, dtype=torch.float16)},
            TypeError,
            "out has dtype .*16; .* must be torch.float32",
        ),
        ({"kv_cache": torch.zeros(9, 2, 2, 16, 4, dtype=torch.int8)}, ValueError, r"block_size, head_dim \+ 4\]"),
        ({"kv_cache": torch.zeros(9, 2, 2, 16, 16, dtype=torch.int8)}, ValueError, "q has head_dim 16, but .* has 12"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_named(changes: dict, error: type, message: str) -> None:
    problem = make_problem([40], shape=Shape(int8_kv=True))
    with pytest.raises(error, match=message):
        problem.attend("cpu", **changes)
