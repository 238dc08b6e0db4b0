"""Every way in which a weight file can be wrong is found before loading, and named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import WeightsError
from octavo.models.checkpoint import INDEX, Checkpoint, read_header
from octavo.models.shape import ModelShape

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c\nsize 269060552\n"
)


@pytest.fixture
def folder(tiny):
    return tiny("Llama")[0]


def open_checkpoint(folder):
    return Checkpoint(folder, ModelShape.read(folder))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in files.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in files.items() for name in members}}
    (folder / INDEX).write_text(json.dumps(index))
    return tensors


def test_reads_tensors_from_shards(folder):
    tensors = shard(folder)
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_multimodal_names_lead_to_the_text_part(folder):
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("model.", "model.language_model.")
        if name.startswith("model.")
        else f"language_model.{name}": tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed | {"vision_tower.weight": torch.zeros(2)}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_git_lfs_pointer(folder):
    (folder / "model.safetensors").write_text(LFS_POINTER)
    with pytest.raises(WeightsError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        open_checkpoint(folder)


def test_git_lfs_pointer_as_index(folder):
    (folder / INDEX).write_text(LFS_POINTER)
    with pytest.raises(WeightsError, match=r"index\.json is a Git LFS pointer"):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [4, 100, 20_000])
def test_truncated(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is (truncated|not a safetensors file)"):
        open_checkpoint(folder)


def test_too_long(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="longer than it should be"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip archive, not safetensors", b"\x02" + bytes(7) + b"[]"])
def test_something_else(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        read_header(tmp_path / "model.safetensors")


def test_unreadable(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_header(tmp_path / "model.safetensors")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has no safetensors files"):
        open_checkpoint(folder)


def test_pickled_weights_are_refused_with_advice(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        open_checkpoint(folder)


def test_missing_shard(folder):
    shard(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks b\.safetensors, named in model\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_malformed_index(folder):
    (folder / INDEX).write_text("{}")
    with pytest.raises(WeightsError, match="is not an index"):
        open_checkpoint(folder)


def test_missing_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(folder)


def test_unexpected_tensors(folder):
    rewrite(folder, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(1) for i in range(5)}))
    with pytest.raises(WeightsError, match=r"does not: extra\.0, extra\.1, extra\.2 and 2 more"):
        open_checkpoint(folder)


def test_wrong_shape(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(47)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight in .* has the shape \[47\]; .* calls for \[48\]"):
        open_checkpoint(folder)


def test_tied_checkpoint_may_repeat_its_output_layer(tiny):
    folder, _ = tiny("Llama", tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(97, 48)}))
    open_checkpoint(folder)
