"""GGUF files and tokenizers become the files that the rest of Octavo reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from octavo.errors import WeightsError
from octavo.models import convert as convert_module
from octavo.models.convert import convert
from octavo.models.loader import load_model
from octavo.models.shape import ModelShape

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ Ġ", "h i"]
HIDDEN, INNER, HEADS, KV_HEADS = 32, 64, 4, 2


def write_gguf(file: Path, *, pre: str) -> None:
    """A one-layer Llama over bytes, quantized to Q8_0."""
    rng = np.random.default_rng(0)
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    kv = HIDDEN // HEADS * KV_HEADS
    matrices = {
        "token_embd": (len(tokens), HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (kv, HIDDEN),
        "blk.0.attn_v": (kv, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    for name, shape in matrices.items():
        blocks = gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    source, target = tmp_path_factory.mktemp("source") / "tiny.gguf", tmp_path_factory.mktemp("target")
    write_gguf(source, pre="smollm")
    convert(source, target)
    return target


def test_writes_what_the_rest_reads(converted):
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in converted.iterdir()} == expected


def test_the_shape_survives(converted):
    shape = ModelShape.read(converted)
    assert (shape.num_layers, shape.num_q_heads, shape.num_kv_heads) == (1, HEADS, KV_HEADS)
    assert (shape.max_position_embeddings, shape.rope.theta, shape.dtype) == (128, 500.0, "bfloat16")
    assert shape.tied_embeddings


def test_every_end_token_ends_a_generation(converted):
    assert ModelShape.read(converted).eos_token_ids == (2, 0)


def test_the_weights_load(converted):
    assert load_model(converted, attention_backend="reference").weight_bytes > 0


def test_the_chat_template_is_in_the_tokenizer_config(converted):
    config = json.loads((converted / "tokenizer_config.json").read_text())
    assert config["chat_template"].startswith("{% for m in messages %}")
    assert config["model_max_length"] == 128


def test_special_tokens_are_those_of_the_file(converted):
    config = json.loads((converted / "tokenizer_config.json").read_text())
    special = [config[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")]
    assert special == ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"]


def test_any_text_survives(converted):
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    text = "a\u2581b  北京 🙂 's ,"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_split_from_the_white_space_before_them(converted):
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("hi\n\n12  3<|im_end|>").tokens == ["hi", "ĊĊ", "1", "2", "ĠĠ", "3", "<|im_end|>"]


def test_a_tokenizer_of_another_format(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet, "hi"])}
    models.BPE(vocabulary, [("h", "i")]).save(str(source))
    (source / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    convert(source, target)
    assert Tokenizer.from_file(str(target / "tokenizer.json")).encode("hi!").tokens == ["hi", "!"]


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [("noise\nValueError: unknown architecture\n", "ValueError: unknown"), ("", "the converter ended without a word")],
)
def test_failure_carries_the_last_line(stderr, reason, tmp_path, monkeypatch):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, None, stderr)

    monkeypatch.setattr(convert_module.subprocess, "run", run)
    with pytest.raises(WeightsError, match=rf"cannot convert .*x\.gguf: {reason}"):
        convert(tmp_path / "x.gguf", tmp_path)
