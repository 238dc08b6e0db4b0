"""The default model itself: same logits as transformers, same tokens, and bfloat16 that costs less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.config import DEFAULT_MODEL
from octavo.models.loader import load_model
from octavo.models.resolve import resolve
from octavo.models.shape import ModelShape

pytestmark = pytest.mark.model

TEXTS = (
    "The quick brown fox jumps over the lazy dog. In 1969, humans landed on the Moon, and",
    "def fibonacci(n):\n    if n < 2:\n        return n\n\n    return",
    "<|im_start|>user\nWhat is 12 × 3?\n\n1. 36\n  2. 15<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve(DEFAULT_MODEL, progress=lambda _: None).path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def theirs(folder: Path, dtype: torch.dtype, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return [model(ids[None]).logits[0].float() for ids in prompts]


def test_float32_and_bfloat16_against_transformers(folder, tokenizer, run_paged):
    """float32 agrees to rounding; bfloat16 diverges less than transformers' own does (`Decoder` says why)."""

    def divergence(logits: list[torch.Tensor]) -> float:
        pairs = zip(exact, logits, strict=True)
        return sum(float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()) for p, q in pairs)

    def ours(dtype: str) -> list[torch.Tensor]:
        decoder = load_model(folder, dtype=dtype, attention_backend="reference", max_model_len=128)
        return [run_paged(decoder, ids, (len(ids) - 3, 1, 1, 1)) for ids in prompts]

    prompts = [torch.tensor(tokenizer.encode(text).ids) for text in TEXTS]
    exact = theirs(folder, torch.float32, prompts)
    for mine, reference in zip(ours("float32"), exact, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-3, rtol=1e-3)
    assert divergence(ours("bfloat16")) < 0.75 * divergence(theirs(folder, torch.bfloat16, prompts))


def test_tokenizer_agrees_with_transformers(folder, tokenizer):
    reference = AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, "naïve 北京 🙂\t\r\n  x\u00a0y", "", "   ", "1234567890 3.14159"):
        assert tokenizer.encode(text).ids == reference(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_what_the_conversion_made(folder, tokenizer):
    shape = ModelShape.read(folder)
    assert (shape.max_position_embeddings, shape.rope.theta, shape.dtype) == (8192, 100_000.0, "bfloat16")
    assert {tokenizer.id_to_token(i) for i in shape.eos_token_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert shape.num_parameters == 134_515_008
    assert tokenizer.encode("\n\n1").tokens == ["ĊĊ", "1"]
