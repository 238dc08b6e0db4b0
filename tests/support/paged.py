"""Paged attention problems with known answers: shuffled block tables, poisoned memory, a float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.attention import paged_attention
from octavo.kernels.kv_rows import dequantize, quantize
from octavo.kernels.reference import gather_context, visible_keys

NAN = float("nan")


@dataclass(frozen=True)
class Shape:
    """The model's side of a problem."""

    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    int8_kv: bool = False


@dataclass(frozen=True)
class Problem:
    """Arguments of `paged_attention`, and how it is called."""

    q: Tensor
    kv_cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    cu_query_lens: Tensor
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None

    def attend(self, backend: str, **changes) -> Tensor:
        return paged_attention(**(vars(self) | {"backend": backend} | changes))

    def exact(self) -> Tensor:
        """The answer in float64."""
        quantized = self.kv_cache.dtype is torch.int8
        cache = dequantize(self.kv_cache, torch.float64) if quantized else self.kv_cache.double()
        wide = replace(self, q=self.q.double(), kv_cache=cache)
        return wide.attend("reference")

    def eager(self) -> Tensor:
        """Torch's own attention in the problem's dtype: what rounding alone costs."""
        out = torch.zeros_like(self.q)
        for i, seq_len in enumerate(self.seq_lens.tolist()):
            queries = slice(int(self.cu_query_lens[i]), int(self.cu_query_lens[i + 1]))
            if seq_len and queries.start < queries.stop:
                k, v = gather_context(self.kv_cache, self.block_tables[i], seq_len)
                out[queries] = self._eager_one(self.q[queries], k.to(self.q.dtype), v.to(self.q.dtype))
        return out

    def _eager_one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        q, k, v = q.transpose(0, 1), *(x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores = (q @ k.transpose(1, 2)) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores.masked_fill(~visible_keys(q.shape[1], k.shape[1], self.window, q.device), -torch.inf)
        if self.sinks is not None:
            scores = torch.cat([scores, self.sinks.to(q.dtype)[:, None, None].expand(-1, q.shape[1], 1)], -1)
        weights = torch.softmax(scores, -1)[..., : k.shape[1]]
        return (weights @ v).transpose(0, 1)


def make_problem(
    seq_lens: list[int],
    query_lens: list[int] | None = None,
    shape: Shape = Shape(),
    *,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem. Block tables are shuffled; whatever no sequence owns is NaN, block 0 and the tails of blocks
    included; past its end a row of the table names a block that does not exist."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random).to(shape.dtype)

    query_lens = query_lens or [1] * len(seq_lens)
    blocks_of = [-(-seq_len // shape.block_size) for seq_len in seq_lens]
    free = (torch.randperm(sum(blocks_of), generator=random) + 1).tolist()
    size = (len(free) + 1, 2, shape.num_kv_heads, shape.block_size)
    kv_cache = unwritten(size, shape.head_dim, torch.int8 if shape.int8_kv else shape.dtype)
    table_width = max([*blocks_of, 1])
    tables = torch.full((len(seq_lens), table_width + 3), 2**30, dtype=torch.int32)
    for row, seq_len, count in zip(tables, seq_lens, blocks_of, strict=True):
        for j in range(count):
            row[j] = block = free.pop()
            live = min(shape.block_size, seq_len - j * shape.block_size)
            rows = normal(2, shape.num_kv_heads, live, shape.head_dim)
            kv_cache[block, :, :, :live] = quantize(rows) if shape.int8_kv else rows
    cu_query_lens = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    problem = Problem(
        q=normal(int(cu_query_lens[-1]), shape.num_q_heads, shape.head_dim),
        kv_cache=kv_cache,
        block_tables=tables[:, :table_width],
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        cu_query_lens=cu_query_lens,
        scale=shape.head_dim**-0.5,
        window=window,
        softcap=softcap,
        sinks=torch.randn(shape.num_q_heads, generator=random) if sinks else None,
    )
    moved = {name: x.to(shape.device) for name, x in vars(problem).items() if isinstance(x, Tensor)}
    return replace(problem, **moved)


def unwritten(size: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> Tensor:
    """Rows [*size, row width] of a cache that are NaN."""
    if dtype is not torch.int8:
        return torch.full((*size, head_dim), NAN, dtype=dtype)
    numbers = torch.full((*size, head_dim), 99, dtype=torch.int8)
    return torch.cat((numbers, as_bytes(torch.full((*size, 1), NAN))), dim=-1)


def as_bytes(scales: Tensor) -> Tensor:
    """Scales [..., 1] as they lie in rows of int8."""
    return scales.float().contiguous().view(torch.int8)


def assert_as_exact_as_torch(problem: Problem, out: Tensor) -> None:
    """The error against float64 is at most twice that of torch's own attention in the same dtype, 1.5 times on
    average; a few roundings of the result are always allowed."""
    exact = problem.exact()
    assert out.isfinite().all()
    ours, theirs = (out - exact).abs(), (problem.eager() - exact).abs()
    if not ours.numel():
        return
    # A capped score is only as exact as the last digit of its cap, however it is computed.
    rounding = torch.finfo(problem.q.dtype).eps * exact.abs().max() + torch.finfo(torch.float32).eps * problem.softcap
    assert ours.max() <= 2 * theirs.max() + 4 * rounding
    assert ours.mean() <= 1.5 * theirs.mean() + rounding
