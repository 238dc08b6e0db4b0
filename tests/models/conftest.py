"""Fixtures for the tests of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from paged import unwritten
from tiny_models import make_tiny
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.models.decoder import Decoder

Tiny = Callable[..., tuple[Path, Any]]
RunPaged = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and on a busy machine waiting for them takes most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    def make(family: str, **changes: Any) -> tuple[Path, Any]:
        return tmp_path, make_tiny(tmp_path, family, **changes)

    return make


@pytest.fixture
def run_paged() -> RunPaged:
    """Runs a sequence through the decoder in pieces of the given lengths, over shuffled blocks of four tokens."""

    def run(decoder: Decoder, ids: Tensor, pieces: Sequence[int], kv_dtype: torch.dtype | None = None) -> Tensor:
        shape, block_size = decoder.shape, 4
        num_blocks = -(-len(ids) // block_size)
        table = torch.randperm(num_blocks + 5, generator=torch.Generator().manual_seed(3))[:num_blocks]
        # Blocks start as garbage: whatever reads beyond the sequence shows up as NaN.
        size = (num_blocks + 5, 2, shape.num_kv_heads, block_size)
        kv_caches = [unwritten(size, shape.head_dim, kv_dtype or decoder.dtype) for _ in range(shape.num_layers)]
        logits, done = [], 0
        for piece in pieces:
            positions = torch.arange(done, done + piece)
            done += piece
            batch = PagedBatch(
                block_tables=table[None].int(),
                seq_lens=torch.tensor([done], dtype=torch.int32),
                cu_query_lens=torch.tensor([0, piece], dtype=torch.int32),
                slot_mapping=table[positions // block_size] * block_size + positions % block_size,
                num_decodes=int(piece == 1),
                max_query_len=piece,
                max_seq_len=done,
            )
            logits.append(
                decoder.logits(decoder.forward(ids[positions], positions, kv_caches, [batch] * len(kv_caches)))
            )
        return torch.cat(logits)

    return run
