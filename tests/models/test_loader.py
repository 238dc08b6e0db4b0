"""Options of `load_model`: types, dummy weights, backends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.cpu import amx, packing, tile_softmax, tiles
from octavo.models import processor
from octavo.models import shape as shapes
from octavo.models.loader import load_model
from octavo.models.shape import ModelShape

IDS = torch.arange(3, 15)


@pytest.mark.parametrize(
    ("option", "checkpoint", "expected"),
    [
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "float16"),
        ("auto", "float32", "bfloat16"),
        ("auto", "float8_e4m3fn", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float16", "bfloat16", "float16"),
    ],
)
def test_dtype(option, checkpoint, expected, tiny):
    folder, _ = tiny("Llama")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"float32"', f'"{checkpoint}"'))
    assert ModelShape.read(folder).served_dtype(option, "cuda") == expected


@pytest.mark.parametrize("checkpoint", ["bfloat16", "float16", "float32"])
def test_what_a_processor_has_no_instructions_for_is_float32_unless_asked_for(checkpoint, tiny, monkeypatch):
    folder, _ = tiny("Llama")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"float32"', f'"{checkpoint}"'))
    shape = ModelShape.read(folder)
    monkeypatch.setattr(processor, "_flags", lambda: frozenset({"sse4_2"}))
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    assert shape.served_dtype("auto", "cpu") == "float32"
    assert shape.served_dtype("bfloat16", "cpu") == "bfloat16"
    assert shape.served_dtype("auto", "cuda") != "float32"
    # Vectors of float32 are enough for our own kernels, and not for oneDNN's.
    monkeypatch.setattr(processor, "_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
    assert not shape.fits_tiles
    assert shape.served_dtype("auto", "cpu") == "float32"
    tiled = replace(shape, hidden_size=64, intermediate_size=96, num_q_heads=4, num_kv_heads=2, head_dim=16)
    assert tiled.fits_tiles
    assert tiled.served_dtype("auto", "cpu") == tiled.served_dtype("auto", "cuda")
    flags = frozenset({"avx512bw", "avx512dq", "avx512vl", "avx512_fp16"})
    monkeypatch.setattr(processor, "_flags", lambda: flags)
    assert shape.served_dtype("auto", "cpu") == shape.served_dtype("auto", "cuda")


def test_what_this_processor_computes_in_is_what_torch_and_our_kernels_find():
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        assert processor.computes_in("float16", tiled=False)
    if amx.is_available():
        assert processor.computes_in("bfloat16")
    assert processor.computes_in("float16") <= packing.is_known(torch.float16)


def test_what_fits_our_tiles_is_what_their_kernels_take():
    assert (shapes.TILE_WIDTH, shapes.TILE_ROWS) == (tiles.BLOCK, tiles.ROWS)
    assert shapes.MOST_SHARING == tile_softmax.TILE_ROWS
    assert set(shapes.ACTIVATIONS) <= set(tiles.ACTIVATIONS)


@pytest.mark.parametrize("option", ["int8", "double"])
def test_unknown_dtype(option, tiny):
    folder, _ = tiny("Llama")
    with pytest.raises(ConfigError, match="dtype must be auto, float32, bfloat16, float16"):
        load_model(folder, dtype=option)


def test_unknown_load_format(tiny):
    folder, _ = tiny("Llama")
    with pytest.raises(ConfigError, match="load format must be auto or dummy, not 'npz'"):
        load_model(folder, load_format="npz")


def test_unknown_attention_backend(tiny):
    folder, _ = tiny("Llama")
    with pytest.raises(ConfigError, match="'flash'"):
        load_model(folder, attention_backend="flash")


def test_unsupported_architecture_is_found_before_its_weights(tiny):
    folder, _ = tiny("Llama")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "OtherForCausalLM"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match="OtherForCausalLM"):
        load_model(folder)


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_dummy_weights_need_only_the_config(family, tiny, run_paged):
    folder, _ = tiny(family)
    (folder / "model.safetensors").unlink()

    def logits(seed: int) -> torch.Tensor:
        decoder = load_model(
            folder, dtype="float32", load_format="dummy", seed=seed, attention_backend="reference", max_model_len=32
        )
        return run_paged(decoder, IDS, (len(IDS),))

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert logits(1).isfinite().all()


def test_loading_does_not_hold_two_copies(tiny, monkeypatch):
    """Fused weights are filled in place: no tensor larger than one fused matrix is ever alive beside them."""
    folder, _ = tiny("Llama")
    made = []
    empty = torch.empty

    def recording(*args, **kwargs):
        made.append(empty(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(torch, "empty", recording)
    decoder = load_model(folder, dtype="float32", attention_backend="reference")
    stored = sum(tensor.numel() for tensor in made)
    assert stored == decoder.shape.num_parameters
