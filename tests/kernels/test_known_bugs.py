"""One test for each bug that paged attention kernels are known to have had, here or elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged import NAN, Shape, make_problem

from octavo.kernels.attention import select_backend

CPU = torch.device("cpu")
# Two of these strides pass 2^31 elements. The memory between is never touched, so it costs address space only.
FAR = 2**30 + 64


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """A copy whose rows lie FAR elements apart."""
    memory = torch.empty((x.shape[0] - 1) * FAR + x[0].numel(), dtype=x.dtype)
    copy = memory.as_strided(x.shape, (FAR, *x[0].contiguous().stride()))
    copy.copy_(x)
    return copy


def test_block_offsets_pass_2_to_the_31(backend: str) -> None:
    problem = make_problem([16, 9], [1, 5], Shape(2, 1, 16, dtype=torch.float16))
    assert problem.kv_cache.shape[0] == 3
    far = replace(problem, kv_cache=far_apart(problem.kv_cache))
    assert torch.equal(far.attend(backend), problem.attend(backend))


@pytest.mark.parametrize("query_lens", [[1, 1, 1], [3]], ids=["decode", "prefill"])
def test_token_offsets_pass_2_to_the_31(backend: str, query_lens: list[int]) -> None:
    problem = make_problem([9] * len(query_lens), query_lens, Shape(2, 1, 16, dtype=torch.float16))
    out = far_apart(torch.zeros_like(problem.q))
    replace(problem, q=far_apart(problem.q)).attend(backend, out=out)
    assert torch.equal(out, problem.attend(backend))


def test_writes_and_copies_pass_2_to_the_31(backend: str) -> None:
    kernels = select_backend(CPU, backend)
    cache = far_apart(torch.zeros(3, 2, 1, 4, 8, dtype=torch.float16))
    k, v = (far_apart(torch.randn(3, 1, 8).half()) for _ in range(2))
    kernels.write_kv(k, v, cache, torch.tensor([8, 9, 11]))
    assert torch.equal(cache[2, 0, 0, [0, 1, 3]], k[:, 0])
    assert torch.equal(cache[2, 1, 0, [0, 1, 3]], v[:, 0])
    kernels.copy_blocks(cache, torch.tensor([2]), torch.tensor([1]))
    assert torch.equal(cache[1], cache[2])


@pytest.mark.parametrize("query_len", [1, 5])
def test_garbage_in_the_unused_tail_of_a_block_does_not_leak(backend: str, query_len: int) -> None:
    problem = make_problem([21], [query_len])
    last = int(problem.block_tables[0, 1])
    for garbage in (NAN, torch.inf, -torch.inf):
        problem.kv_cache[last, :, :, 5:] = garbage
        torch.testing.assert_close(problem.attend(backend), problem.attend("reference"))


def test_the_block_table_is_not_read_past_its_row(backend: str) -> None:
    # `make_problem` puts the ids of blocks that do not exist there; reading through one ends the process.
    problem = make_problem([16, 3, 250], [1, 3, 17], Shape(block_size=1))
    assert problem.block_tables.stride(0) > problem.block_tables.shape[1]
    torch.testing.assert_close(problem.attend(backend), problem.attend("reference"))


def test_a_row_that_sees_no_key_is_zeros(backend: str) -> None:
    # A padded chunk: five queries of a sequence that has nothing in the cache.
    problem = make_problem([0, 20], [5, 4], sinks=True)
    out = problem.attend(backend)
    assert torch.equal(out[:5], torch.zeros_like(out[:5]))
    torch.testing.assert_close(out, problem.attend("reference"))


@pytest.mark.parametrize("longest", [1, 600], ids=["one split", "many splits"])
def test_a_padded_decode_of_length_0_writes_zeros(backend: str, longest: int) -> None:
    problem = make_problem([longest, 0, 0])
    out = torch.full_like(problem.q, NAN)
    problem.attend(backend, out=out)
    assert torch.equal(out[1:], torch.zeros_like(out[1:]))
    assert out.isfinite().all()


# The interpreter's numpy warns of the overflow to infinity that the kernel's formula is made for.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
@pytest.mark.parametrize("query_len", [1, 5])
def test_softcap_does_not_overflow(backend: str, query_len: int) -> None:
    problem = make_problem([21], [query_len], softcap=2.0)
    loud = replace(problem, q=problem.q * 1e4)
    torch.testing.assert_close(loud.attend(backend), loud.attend("reference"))


def test_sinks_count_once_however_many_splits(backend: str) -> None:
    problem = make_problem([1500], sinks=True)
    strong = replace(problem, sinks=problem.sinks + 6.0)
    torch.testing.assert_close(strong.attend(backend), strong.attend("reference"))


def test_padding_tokens_write_nowhere(backend: str) -> None:
    cache = torch.randn(3, 2, 1, 4, 8)
    before = cache.clone()
    k, v = torch.randn(2, 3, 1, 8)
    select_backend(CPU, backend).write_kv(k, v, cache, torch.tensor([-1, 5, -1]))
    before[1, 0, 0, 1], before[1, 1, 0, 1] = k[1, 0], v[1, 0]
    assert torch.equal(cache, before)


def test_blocks_longer_than_a_tile(backend: str) -> None:
    problem = make_problem([700], [3], Shape(block_size=512))
    torch.testing.assert_close(problem.attend(backend), problem.attend("reference"))


@pytest.mark.parametrize("head_dim", [80, 112])
def test_a_head_dim_that_is_no_power_of_two_stays_in_its_head(backend: str, head_dim: int) -> None:
    problem = make_problem([21, 5], [1, 5], Shape(2, 1, head_dim))
    out = torch.full((*problem.q.shape[:2], head_dim + 32), 7.0)
    problem.attend(backend, out=out[..., :head_dim])
    torch.testing.assert_close(out[..., :head_dim], problem.attend("reference"))
    assert (out[..., head_dim:] == 7.0).all()


def test_sequences_without_queries_take_no_rows(backend: str) -> None:
    problem = make_problem([30, 12, 40, 7, 50], [0, 12, 0, 0, 3])
    torch.testing.assert_close(problem.attend(backend), problem.attend("reference"))


def test_a_block_in_two_tables_survives_copy_on_write(backend: str) -> None:
    kernels = select_backend(CPU, backend)
    problem = make_problem([21], [1])
    full, shared = problem.block_tables[0].tolist()
    copy = 0  # the null block, which nobody owns, serves as the free one
    kernels.copy_blocks(problem.kv_cache, torch.tensor([shared]), torch.tensor([copy]))
    k, v = torch.randn(2, 1, 2, 16)
    kernels.write_kv(k, v, problem.kv_cache, torch.tensor([copy * 16 + 5]))
    fork = replace(
        problem,
        q=problem.q.repeat(2, 1, 1),
        block_tables=torch.tensor([[full, shared], [full, copy]], dtype=torch.int32),
        seq_lens=torch.tensor([21, 22], dtype=torch.int32),
        cu_query_lens=torch.tensor([0, 1, 2], dtype=torch.int32),
    )
    out = fork.attend(backend)
    torch.testing.assert_close(out, fork.attend("reference"))
    assert torch.equal(out[:1], problem.attend(backend))
