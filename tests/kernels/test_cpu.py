"""What is particular to the numba kernels: their number formats, elementary functions and vector code."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numba import njit, types
from numba.core.config import NUMBA_NUM_THREADS
from paged import Shape, make_problem

from octavo.kernels import kv_rows as layout
from octavo.kernels.cpu import backend, bits, cache_ops, decode, linear, stack
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


def inlined_by(module: ModuleType) -> list[ModuleType]:
    """The modules beside it that its compiled code may come from, by name."""
    found: dict[str, ModuleType] = {}
    waiting = [module]
    while waiting:
        for node in ast.walk(ast.parse(Path(str(waiting.pop().__file__)).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "octavo.kernels.kv_rows":
                found["layout"] = layout  # the other module of this name; it inlines nothing
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("octavo.kernels.cpu"):
                package = node.module == "octavo.kernels.cpu"
                for name in [alias.name for alias in node.names] if package else [str(node.module).rpartition(".")[2]]:
                    if name not in found:
                        found[name] = import_module(f"octavo.kernels.cpu.{name}")
                        waiting.append(found[name])
    return [found[name] for name in sorted(found) if found[name] is not module]


def test_compiled_functions_say_what_may_be_reordered() -> None:
    """Else they are compiled with the flags of whoever happens to call them first, and bits depend on that."""
    silent = []
    for file in sorted(Path(str(bits.__file__)).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "njit":
                said = [ast.unparse(keyword) for keyword in node.keywords]
                if not {"fastmath=FASTMATH", "**EXACT"} & set(said):
                    silent.append(f"{file.name}:{node.lineno}")
            elif isinstance(node, ast.FunctionDef):
                silent += [f"{file.name}:{node.lineno}" for by in node.decorator_list if ast.unparse(by) == "njit"]
    assert not silent


@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        (cache_ops, lambda: cache_ops.write_kernel(types.float32, types.float32).py_func),
        (decode, lambda: decode.decode_kernel(types.float32, types.float32, 2, 16).py_func),
        (linear, lambda: linear._linear_kernel(types.float32, types.uint16).py_func),
        (stack, lambda: stack._share_of(2, 16, 0, np.dtype(np.uint16), False).__wrapped__),
    ],
)
def test_compiled_code_is_kept_under_a_key_that_covers_all_its_sources(module: ModuleType, kernel) -> None:
    """Else an edited helper would go on running in its old form, out of numba's cache on disk."""
    captured = [cell.cell_contents for cell in kernel().__closure__]
    assert bits.source_key(*inlined_by(module)) in captured
