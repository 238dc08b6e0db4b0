"""Every set of kernels against float64, over what models and batches look like."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged import Problem, Shape, assert_as_exact_as_torch, make_problem

from octavo.errors import ConfigError
from octavo.kernels.attention import select_backend, warm_up

# numba takes seconds to compile a kernel for each (group, head_dim, dtype): tests that need no shape of their own
# share one.
# (sequence lengths, query lengths): decodes, chunks over earlier context, whole prompts.
DECODES = ([1, 37, 523, 16], [1, 1, 1, 1])
MIXED = ([523, 1, 18, 90, 33], [1, 1, 5, 41, 33])


def solve(backend: str, problem: Problem) -> None:
    assert_as_exact_as_torch(problem, problem.attend(backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_batches(backend: str, batch: tuple[list[int], list[int]], dtype: torch.dtype) -> None:
    solve(backend, make_problem(*batch, Shape(9, 3, 64, dtype=dtype)))


@pytest.mark.parametrize("batch", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_bfloat16_on_the_cpu(batch: tuple[list[int], list[int]]) -> None:
    # Not in the interpreter, whose tl.dot multiplies bfloat16's bit patterns.
    solve("cpu", make_problem(*batch, Shape(9, 3, 64, dtype=torch.bfloat16)))


@pytest.mark.parametrize("heads", [(4, 4), (5, 1), (32, 8)], ids=lambda heads: f"{heads[0]}:{heads[1]}")
def test_head_ratios(backend: str, heads: tuple[int, int]) -> None:
    solve(backend, make_problem([40, 21], [1, 9], Shape(*heads, 16)))


@pytest.mark.parametrize("head_dim", [8, 80, 96, 112, 128, 256])
def test_head_dims(backend: str, head_dim: int) -> None:
    solve(backend, make_problem([70, 33], [1, 20], Shape(2, 1, head_dim)))


@pytest.mark.parametrize("block_size", [1, 8, 24, 256])
def test_block_sizes(backend: str, block_size: int) -> None:
    solve(backend, make_problem([300, 70], [1, 20], Shape(block_size=block_size)))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 64},
        {"window": 300},
        {"softcap": 5.0},
        {"sinks": True},
        {"window": 20, "softcap": 30.0, "sinks": True},
    ],
    ids=str,
)
def test_variants(backend: str, options: dict) -> None:
    solve(backend, make_problem([600, 90, 40, 150], [1, 30, 40, 150], Shape(), **options))


@pytest.mark.parametrize(("query_len", "seq_len"), [(1, 1328), (5, 18), (129, 463), (1, 2011)])
def test_query_and_context_lengths(backend: str, query_len: int, seq_len: int) -> None:
    solve(backend, make_problem([seq_len], [query_len], Shape(2, 1)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 20)), min_size=1, max_size=5),
    block_size=st.integers(1, 40),
    window=st.sampled_from([0, 1, 7, 33]),
    sinks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_batch(backend: str, lengths: list, block_size: int, window: int, sinks: bool, seed: int) -> None:
    seq_lens = [past + query_len for past, query_len in lengths]
    query_lens = [query_len for _, query_len in lengths]
    solve(
        backend, make_problem(seq_lens, query_lens, Shape(2, 1, 8, block_size), window=window, sinks=sinks, seed=seed)
    )


def test_a_result_does_not_depend_on_the_rest_of_the_batch(backend: str) -> None:
    problem = make_problem([523, 300, 90], [1, 1, 1])
    alone = replace(
        problem,
        q=problem.q[1:2],
        block_tables=problem.block_tables[1:2],
        seq_lens=problem.seq_lens[1:2],
        cu_query_lens=torch.tensor([0, 1], dtype=torch.int32),
    )
    assert torch.equal(problem.attend(backend)[1:2], alone.attend(backend))


def test_strided_inputs_and_output(backend: str) -> None:
    problem = make_problem([40, 21], [1, 9])
    fused = torch.randn(problem.q.shape[0], 3, *problem.q.shape[1:])
    fused[:, 1] = problem.q
    cache = problem.kv_cache.transpose(2, 3).contiguous().transpose(2, 3)
    out = torch.full_like(fused, 7.0)
    replace(problem, q=fused[:, 1], kv_cache=cache).attend(backend, out=out[:, 2])
    torch.testing.assert_close(out[:, 2], problem.attend("reference"))
    assert (out[:, :2] == 7.0).all()


@pytest.mark.parametrize("num_tokens", [1, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_write_kv(backend: str, num_tokens: int, dtype: torch.dtype) -> None:
    shape = (7, 2, 3, 8, 20)
    cache = torch.randn(shape).to(dtype)
    expected = cache.clone()
    k, v = torch.randn(2, num_tokens, 3, 20).to(dtype)
    slots = torch.randperm(7 * 8)[:num_tokens]
    select_backend(k.device, "reference").write_kv(k, v, expected, slots)
    select_backend(k.device, backend).write_kv(k, v, cache, slots)
    assert torch.equal(cache, expected)


def test_copy_blocks(backend: str) -> None:
    cache = torch.randn(9, 2, 3, 20, 8)
    expected = cache.clone()
    src, dst = torch.tensor([1, 1, 7]), torch.tensor([2, 8, 3])
    expected[dst] = expected[src]
    select_backend(cache.device, backend).copy_blocks(cache, src, dst)
    assert torch.equal(cache, expected)


def test_empty_calls(backend: str) -> None:
    kernels = select_backend(torch.device("cpu"), backend)
    cache, none = torch.zeros(2, 2, 1, 4, 8), torch.empty(0, dtype=torch.int64)
    kernels.write_kv(torch.empty(0, 1, 8), torch.empty(0, 1, 8), cache, none)
    kernels.copy_blocks(cache, none, none)
    problem = make_problem([5], [0], Shape(1, 1, 8))
    assert problem.attend(backend).shape == (0, 1, 8)


def test_warm_up_runs_everything(backend: str) -> None:
    warm_up(
        select_backend(torch.device("cpu"), backend),
        num_q_heads=4,
        num_kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        kv_dtype=torch.float32,
        device=torch.device("cpu"),
        sinks=True,
    )


class TestSelection:
    def test_auto_takes_the_cpu_kernels_without_a_gpu(self) -> None:
        assert select_backend(torch.device("cpu")).name == "cpu"

    def test_unknown_names_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="auto, triton, cpu, reference, not 'flash'"):
            select_backend(torch.device("cpu"), "flash")

    def test_triton_without_a_gpu_or_its_interpreter_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ConfigError, match="needs a CUDA device, not cpu"):
            select_backend(torch.device("cpu"), "triton")

    def test_cpu_kernels_do_not_read_device_memory(self) -> None:
        with pytest.raises(ConfigError, match="reads host memory, not cuda"):
            select_backend(torch.device("cuda"), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize(
    "options", [{}, {"window": 128}, {"softcap": 50.0}, {"window": 300, "softcap": 30.0, "sinks": True}], ids=str
)
def test_on_a_gpu(dtype: torch.dtype, head_dim: int, options: dict) -> None:
    shape = Shape(9, 3, head_dim, dtype=dtype, device="cuda")
    solve("triton", make_problem([7812, 1, 463, 1000, 2345], [1, 1, 129, 7, 2345], shape, **options))
