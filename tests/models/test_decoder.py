"""The decoder agrees with transformers in float32, whole and in pieces, in every family and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.kernels.cpu import packing
from octavo.models.loader import load_model

PROMPT_LEN = 27
WHOLE = (PROMPT_LEN,)
PIECES = (7, *(1,) * (PROMPT_LEN - 7))

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {"head_dim": 12}),
    "qwen2-window": (
        "Qwen2",
        {"head_dim": 12, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 100.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 100.0,
        "beta_fast": 4.0,
    },
    "yarn-untruncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 100.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
}


def prompt(vocab_size: int = 97) -> torch.Tensor:
    return torch.randint(3, vocab_size, (PROMPT_LEN,), generator=torch.Generator().manual_seed(1))


def expected_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("pieces", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_agree_with_transformers(name, pieces, tiny, run_paged):
    family, changes = FAMILIES[name]
    folder, model = tiny(family, **changes)
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    actual = run_paged(decoder, prompt(), pieces)
    torch.testing.assert_close(actual, expected_logits(model, prompt()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ROPES)
def test_rope_variants_agree_with_transformers(name, tiny, run_paged):
    folder, model = tiny("Llama", rope_parameters=dict(ROPES[name]))
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    actual = run_paged(decoder, prompt(), PIECES)
    torch.testing.assert_close(actual, expected_logits(model, prompt()), atol=1e-4, rtol=1e-4)


def test_dynamic_rope_takes_the_base_of_the_longest_sequence(tiny, run_paged):
    """Stretched beyond its training, a sequence of the full length is exact; shorter ones share its base."""
    folder, model = tiny("Llama", rope_parameters=dict(ROPES["dynamic"]), max_position_embeddings=16)
    decoder = load_model(folder, dtype="float32", attention_backend="reference", max_model_len=PROMPT_LEN)
    actual = run_paged(decoder, prompt(), PIECES)
    torch.testing.assert_close(actual, expected_logits(model, prompt()), atol=1e-4, rtol=1e-4)


def test_gemma3_stretches_only_its_global_layers(tiny, run_paged):
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
    folder, model = tiny("Gemma3", **FAMILIES["gemma3"][1] | {"rope_parameters": ropes})
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    actual = run_paged(decoder, prompt(), WHOLE)
    torch.testing.assert_close(actual, expected_logits(model, prompt()), atol=1e-4, rtol=1e-4)


def test_default_backend_agrees_with_transformers(tiny, run_paged):
    folder, model = tiny("Gemma2", **FAMILIES["gemma2"][1])
    decoder = load_model(folder, dtype="float32")
    actual = run_paged(decoder, prompt(), PIECES)
    torch.testing.assert_close(actual, expected_logits(model, prompt()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma3"])
def test_16_bit_types_are_close_to_float32(name, dtype, tiny, run_paged):
    family, changes = FAMILIES[name]
    folder, model = tiny(family, **changes)
    decoder = load_model(folder, dtype=dtype, attention_backend="reference")
    actual, expected = run_paged(decoder, prompt(), PIECES), expected_logits(model, prompt())
    assert actual.dtype is torch.float32
    error = (actual - expected).square().mean().sqrt() / expected.std()
    assert error < (0.05 if dtype == "bfloat16" else 0.006)


def test_float32_is_deterministic(tiny, run_paged):
    folder, _ = tiny("Llama")
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    first, second = (run_paged(decoder, prompt(), PIECES) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_weight_bytes_counts_every_matrix_once(name, tiny, monkeypatch):
    monkeypatch.setattr(packing, "fits", lambda weight: False)  # which fills groups of outputs up
    family, changes = FAMILIES[name]
    folder, _ = tiny(family, **changes)
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    matrices = [shape for shape in decoder.shape.parameter_shapes().values() if len(shape) == 2]
    assert decoder.weight_bytes == 4 * sum(rows * columns for rows, columns in matrices)
