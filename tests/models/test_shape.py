"""Shapes read from configs in the spellings of transformers 4 and 5, and what is refused."""

from __future__ import annotations

import json

import pytest

from octavo.errors import ModelNotFoundError, UnsupportedModelError
from octavo.models.shape import SUPPORTED_ARCHITECTURES, ModelShape, RopeShape, shape_from_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def shape(**changes) -> ModelShape:
    return shape_from_config(LLAMA | changes, {})


def test_reads_what_a_llama_config_says():
    llama = shape()
    assert (llama.head_dim, llama.q_size, llama.kv_size) == (16, 64, 32)
    assert (llama.norm_eps, llama.dtype, llama.eos_token_ids) == (1e-6, "float16", (2,))
    assert llama.windows == (0, 0)
    assert llama.rope == RopeShape(10_000.0)
    assert not llama.tied_embeddings


def test_counts_parameters_and_kv_bytes():
    llama = shape()
    attention = 64 * 64 * 2 + 32 * 64 * 2
    assert llama.num_parameters == 2 * 100 * 64 + 64 + 2 * (attention + 3 * 64 * 96 + 2 * 64)
    assert llama.kv_bytes_per_token(32) == 2 * 2 * 2 * 32


def test_old_and_new_spellings_of_rope_agree():
    old = shape(rope_theta=5e5, rope_scaling=LLAMA3_ROPE)
    new = shape(rope_parameters=LLAMA3_ROPE | {"rope_theta": 5e5})
    assert old.rope == new.rope
    assert (old.rope.kind, old.rope.theta, old.rope.trained_len) == ("llama3", 5e5, 64)


def test_rope_type_was_once_called_type():
    assert shape(rope_scaling={"type": "linear", "factor": 2.0}).rope == RopeShape(10_000.0, "linear", 2.0, 128)


def test_gemma3_has_a_rope_for_windows_in_both_spellings():
    gemma = LLAMA | {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 3, "sliding_window_pattern": 3}
    old = shape_from_config(
        gemma
        | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {},
    )
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    new = shape_from_config(gemma | {"rope_parameters": {"full_attention": full, "sliding_attention": local}}, {})
    assert (old.rope, old.local_rope, old.windows) == (new.rope, new.local_rope, new.windows)
    assert old.local_rope == RopeShape(1e4)
    assert old.windows == (4096, 4096, 0)


def test_gemma3_multimodal_folder_is_served_by_its_text_part():
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "rope_scaling": None},
        "vision_config": {"hidden_size": 32},
    }
    gemma = shape_from_config(config, {})
    assert (gemma.hidden_size, gemma.head_dim, gemma.vocab_size) == (64, 256, 262208)
    assert gemma.windows == (4096,) * 5 + (0,)
    assert gemma.qk_norm
    assert gemma.tied_embeddings
    assert gemma.eos_token_ids == (1, 106)


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("MistralForCausalLM", {"sliding_window": 8}, (8, 8)),
        ("MistralForCausalLM", {"sliding_window": None}, (0, 0)),
        ("Qwen2ForCausalLM", {"sliding_window": 8}, (0, 0)),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, (0, 8)),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": None}, (0, 0)),
        ("Gemma2ForCausalLM", {"sliding_window": 8}, (8, 0)),
    ],
)
def test_windows(architecture, changes, windows):
    assert shape(architectures=[architecture], **changes).windows == windows


def test_generation_config_overrides_end_tokens():
    assert shape_from_config(LLAMA, {"eos_token_id": [2, 7]}).eos_token_ids == (2, 7)
    assert shape(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; these are: LlamaForCausalLM"),
        ({"architectures": None}, "none is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized \\(gptq\\)"),
        ({"hidden_act": "relu"}, "'relu' is not supported; these are: silu"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported; these are: default"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"head_dim": 15}, "even head_dim, not 15"),
        ({"use_bidirectional_attention": True}, "both directions"),
    ],
)
def test_refuses_what_the_decoder_does_not_do(changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        shape(**changes)


def test_refusal_lists_every_architecture():
    with pytest.raises(UnsupportedModelError) as caught:
        shape(architectures=["Nope"])
    assert all(name in str(caught.value) for name in SUPPORTED_ARCHITECTURES)


def test_a_missing_key_is_named():
    with pytest.raises(UnsupportedModelError, match="does not say 'vocab_size'"):
        shape_from_config({key: value for key, value in LLAMA.items() if key != "vocab_size"}, {})


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        ModelShape.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "version https://git-lfs"])
def test_config_that_is_no_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        ModelShape.read(tmp_path)


def test_remote_code_is_refused_unless_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UnsupportedModelError, match="--trust-remote-code"):
        ModelShape.read(tmp_path)
    assert ModelShape.read(tmp_path, trust_remote_code=True) == shape()
