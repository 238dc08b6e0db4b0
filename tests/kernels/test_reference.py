"""The oracle itself, against torch's attention on dense tensors."""

from __future__ import annotations

import pytest
import torch
from paged import Shape, make_problem
from torch.nn.functional import scaled_dot_product_attention

from octavo.kernels.reference import ReferenceBackend, attend_dense, gather_context, visible_keys


@pytest.mark.parametrize(("query_len", "seq_len", "window"), [(1, 9, 0), (5, 18, 0), (7, 7, 3), (6, 40, 8)])
def test_dense_attention_is_torchs(query_len: int, seq_len: int, window: int) -> None:
    q, k, v = (torch.randn(n, 4, 16, dtype=torch.float64) for n in (query_len, seq_len, seq_len))
    expected = scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)),
        attn_mask=visible_keys(query_len, seq_len, window, q.device),
        scale=0.3,
    )
    torch.testing.assert_close(attend_dense(q, k, v, scale=0.3, window=window), expected.transpose(0, 1))


def test_grouped_heads_share_their_kv_head() -> None:
    q, k, v = torch.randn(3, 9, 8), torch.randn(5, 3, 8), torch.randn(5, 3, 8)
    expanded = attend_dense(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), scale=1.0)
    torch.testing.assert_close(attend_dense(q, k, v, scale=1.0), expanded)


def test_a_sink_takes_weight_and_adds_no_value() -> None:
    q, k, v = torch.zeros(1, 1, 4), torch.zeros(3, 1, 4), torch.ones(3, 1, 4)
    out = attend_dense(q, k, v, scale=1.0, sinks=torch.zeros(1))
    torch.testing.assert_close(out, torch.full((1, 1, 4), 3 / 4))


def test_softcap_bounds_the_scores() -> None:
    q, k, v = (
        torch.full((1, 1, 1), 100.0),
        torch.tensor([1.0, -1.0]).view(2, 1, 1),
        torch.tensor([1.0, 0.0]).view(2, 1, 1),
    )
    out = attend_dense(q, k, v, scale=1.0, softcap=0.5)
    torch.testing.assert_close(out.item(), torch.sigmoid(torch.tensor(1.0)).item())


def test_gather_reads_back_what_was_written() -> None:
    cache = torch.full((5, 2, 2, 4, 8), float("nan"))
    k, v = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    table = torch.tensor([3, 1], dtype=torch.int32)
    slots = torch.tensor([12, 13, 14, 15, 4, 5])
    ReferenceBackend().write_kv(k, v, cache, slots)
    gathered = gather_context(cache, table, 6)
    torch.testing.assert_close(gathered, (k, v))


def test_reads_no_poison() -> None:
    problem = make_problem([1, 16, 17], shape=Shape())
    assert problem.attend("reference").isfinite().all()
