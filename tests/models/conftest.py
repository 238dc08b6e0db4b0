"""Tiny seeded models in every supported family, made by transformers, which is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.models.decoder import Decoder

Tiny = Callable[..., tuple[Path, Any]]
RunPaged = Callable[[Decoder, Tensor, Sequence[int]], Tensor]

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_tiny(folder: Path, family: str, **changes: Any) -> Any:
    """Saves a seeded model of a family ("Llama", "Gemma2", …) and returns transformers' own, in float32."""
    config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, config_class)(**SMALL | changes, attn_implementation="eager")
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        # Fresh norms are ones and fresh biases zeros, which would hide a missing one.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


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

    def run(decoder: Decoder, ids: Tensor, pieces: Sequence[int]) -> Tensor:
        shape, block_size = decoder.shape, 4
        num_blocks = -(-len(ids) // block_size)
        table = torch.randperm(num_blocks + 5, generator=torch.Generator().manual_seed(3))[:num_blocks]
        # Blocks start as garbage: whatever reads beyond the sequence shows up as NaN.
        size = (num_blocks + 5, 2, shape.num_kv_heads, block_size, shape.head_dim)
        kv_caches = [torch.full(size, torch.nan, dtype=decoder.dtype) for _ in range(shape.num_layers)]
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
            logits.append(decoder.logits(decoder.forward(ids[positions], positions, kv_caches, batch)))
        return torch.cat(logits)

    return run
