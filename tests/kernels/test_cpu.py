"""What is particular to the numba kernels: their number formats, elementary functions and vector code."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from numba.core.config import NUMBA_NUM_THREADS
from paged import Shape, make_problem

from octavo.kernels.cpu import backend, bits, decode
from octavo.kernels.cpu.bits import narrow, stored, widen
from octavo.kernels.cpu.elementary import exp2, softcapped


@njit
def widened(source, out):
    for i in range(source.shape[0]):
        out[i] = widen(source[i])


@njit
def narrowed(source, out):
    for i in range(source.shape[0]):
        out[i] = narrow(source[i], out[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_widens_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(2**16).to(torch.uint16).view(dtype)
    out = torch.empty(every.shape)
    widened(stored(every).numpy(), out.numpy())
    torch.testing.assert_close(out, every.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrowing_rounds_as_torch_does(dtype: torch.dtype) -> None:
    numbers = torch.cat(
        [torch.randn(10_000), torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -torch.inf])]
    )
    out = torch.empty(numbers.shape, dtype=dtype)
    narrowed(numbers.numpy(), stored(out).numpy())
    assert torch.equal(out, numbers.to(dtype))


def test_exp2_is_exact_to_float32() -> None:
    x = np.linspace(-125, 0, 100_001).astype(np.float32)
    ours = np.array([exp2(value) for value in x[::50]])
    np.testing.assert_allclose(ours, np.exp2(x[::50].astype(np.float64)), rtol=3e-7)
    assert exp2(np.float32(-np.inf)) < 1e-37


def test_softcap_is_tanh() -> None:
    x = np.linspace(-1e4, 1e4, 2001).astype(np.float32)
    ours = np.array([softcapped(value, np.float32(30.0)) for value in x])
    np.testing.assert_allclose(ours, 30 * np.tanh(x.astype(np.float64) / 30), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("length", [decode.CHUNK - 1, decode.CHUNK, decode.CHUNK + 1, 3 * decode.CHUNK])
def test_chunk_edges(length: int) -> None:
    problem = make_problem([length, 1])
    torch.testing.assert_close(problem.attend("cpu"), problem.attend("reference"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem([700, 3, 90])
    expected = problem.attend("cpu")
    monkeypatch.setattr(backend, "_threads_for", lambda kv_cache, num_tokens: min(threads, NUMBA_NUM_THREADS))
    assert torch.equal(problem.attend("cpu"), expected)


def test_accumulators_that_exceed_the_registers_take_several_passes() -> None:
    # 16 heads of 64 elements are 64 vectors; one pass keeps 24.
    problem = make_problem([40], shape=Shape(16, 1, 64))
    torch.testing.assert_close(problem.attend("cpu"), problem.attend("reference"))


def test_compiled_functions_say_what_may_be_reordered() -> None:
    """Else they are compiled with the flags of whoever happens to call them first, and bits depend on that."""
    silent = []
    for file in sorted(Path(str(bits.__file__)).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("njit", "kept", "kept_callback"):
                said = [ast.unparse(keyword) for keyword in node.keywords]
                if not {"**FAST", "**EXACT", "**options"} & set(said):
                    silent.append(f"{file.name}:{node.lineno}")
            elif isinstance(node, ast.FunctionDef):
                silent += [f"{file.name}:{node.lineno}" for by in node.decorator_list if ast.unparse(by) == "njit"]
    assert not silent
