"""What 8 bits cost: perplexity on a text of ours, and how often the likeliest token stays the likeliest.

make test ARGS="tests/models/test_quality.py -s"                     # prints the figures
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from octavo.config import DEFAULT_MODEL
from octavo.models.loader import load_model
from octavo.models.resolve import resolve

pytestmark = pytest.mark.model

NIGHTLY = os.environ.get("OCTAVO_NIGHTLY") == "1"
TEXT = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8")


class Quality(NamedTuple):
    """Of a text's tokens, each predicted from all before it."""

    perplexity: float
    agreement: float
    divergence: float


def test_8_bits_cost_little(run_paged) -> None:
    folder = resolve(DEFAULT_MODEL, progress=lambda _: None).path
    ids = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids)

    def logits(kv_dtype: torch.dtype | None = None, **options: str) -> Tensor:
        decoder = load_model(folder, max_model_len=1024, **options)
        return run_paged(decoder, ids, (400, len(ids) - 403, 1, 1, 1), kv_dtype)[:-1]

    def quality(scored: Tensor) -> Quality:
        likelihoods = scored.log_softmax(-1)
        per_token = likelihoods.gather(-1, ids[1:, None]).mean()
        agreement = (scored.argmax(-1) == exact.argmax(-1)).float().mean()
        divergence = (exact.softmax(-1) * (exact.log_softmax(-1) - likelihoods)).sum(-1).mean()
        return Quality(math.exp(-float(per_token)), float(agreement), float(divergence))

    exact = logits(dtype="float32")
    results = {
        "float32": quality(exact),
        "bfloat16": quality(logits(dtype="bfloat16")),
        "int8": quality(logits(dtype="bfloat16", quantization="int8")),
        "bfloat16, KV in int8": quality(logits(torch.int8, dtype="bfloat16")),
    }
    if NIGHTLY:
        results["float32, KV in int8"] = quality(logits(torch.int8, dtype="float32"))
        results["int8, KV in int8"] = quality(logits(torch.int8, dtype="bfloat16", quantization="int8"))
    for name, (perplexity, agreement, divergence) in results.items():
        print(f"{name}: perplexity {perplexity:.3f}, same likeliest token {agreement:.1%}, KL {divergence:.5f}")
    for name in results.keys() - {"float32"}:
        assert results[name].perplexity < 1.015 * results["float32"].perplexity
        assert results[name].agreement > (0.93 if name.startswith("int8") else 0.97)
        assert results[name].divergence < 0.01
