"""The entry point names what is wrong."""

from __future__ import annotations

import pytest
import torch
from paged import Shape, make_problem

from octavo.kernels.attention import select_backend
from octavo.kernels.checks import check_write

GOOD = make_problem([20, 5], [1, 5], Shape(4, 2, 16))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": GOOD.q[0]}, ValueError, r"q must be \[num_tokens, heads, head_dim\], not \[4, 16\]"),
        ({"q": GOOD.q[..., :8]}, ValueError, "q has head_dim 8, but kv_cache has 16"),
        ({"q": GOOD.q[:, :3]}, ValueError, "q has 3 heads; it must be a multiple of kv_cache's 2"),
        ({"q": GOOD.q.half()}, TypeError, "q has dtype torch.float16, but kv_cache has torch.float32"),
        ({"q": GOOD.q.transpose(1, 2).contiguous().transpose(1, 2)}, ValueError, "q's last dimension must be contig"),
        ({"q": GOOD.q.to("meta"), "backend": "reference"}, ValueError, "q is on meta; it must be on cpu"),
        ({"kv_cache": GOOD.kv_cache[:, :1]}, ValueError, r"kv_cache must be \[num_blocks, 2, num_kv_heads"),
        ({"kv_cache": GOOD.kv_cache.double(), "q": GOOD.q.double()}, TypeError, "the cpu backend takes torch.bfloat16"),
        ({"block_tables": GOOD.block_tables.long()}, TypeError, "block_tables must have dtype torch.int32, not"),
        ({"block_tables": GOOD.block_tables[0]}, ValueError, r"block_tables must be \[\d, any\], not \[2\]"),
        ({"seq_lens": GOOD.seq_lens[:1]}, ValueError, r"seq_lens must be \[2\], not \[1\]"),
        ({"cu_query_lens": GOOD.cu_query_lens[:2]}, ValueError, r"cu_query_lens must be \[3\], not \[2\]"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, not nan"),
        ({"window": -1}, ValueError, r"window must be 0 \(none\) or a number of keys, not -1"),
        ({"softcap": -2.0}, ValueError, r"softcap must be 0 \(none\) or positive, not -2.0"),
        ({"sinks": torch.zeros(3)}, ValueError, r"sinks must be \[4\], not \[3\]"),
        ({"sinks": torch.zeros(4, dtype=torch.int64)}, TypeError, "sinks must be floating-point, not torch.int64"),
        ({"out": GOOD.q[:2]}, ValueError, r"out must be \[6, 4, 16\], not \[2, 4, 16\]"),
        ({"out": GOOD.q.half()}, TypeError, "out has dtype torch.float16"),
    ],
)
def test_bad_arguments_are_named(changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GOOD.attend(changes.pop("backend", "cpu"), **changes)


def test_good_arguments_pass() -> None:
    assert GOOD.attend("cpu").shape == GOOD.q.shape


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("v", torch.zeros(2, 2, 16), ValueError, r"v must be \[3, 2, 16\], not \[2, 2, 16\]"),
        ("k", torch.zeros(3, 2, 16).half(), TypeError, "k has dtype torch.float16"),
        ("slot_mapping", torch.zeros(3, dtype=torch.int32), TypeError, "slot_mapping must have dtype torch.int64"),
        ("slot_mapping", torch.zeros(2, dtype=torch.int64), ValueError, r"slot_mapping must be \[3\], not \[2\]"),
    ],
)
def test_bad_writes_are_named(name: str, value: torch.Tensor, error: type, message: str) -> None:
    arguments = {
        "k": torch.zeros(3, 2, 16),
        "v": torch.zeros(3, 2, 16),
        "kv_cache": GOOD.kv_cache,
        "slot_mapping": torch.zeros(3, dtype=torch.int64),
    }
    backend = select_backend(torch.device("cpu"))
    check_write(backend, **arguments)
    with pytest.raises(error, match=message):
        check_write(backend, **arguments | {name: value})
