"""A model folder's safetensors files: checked whole before anything is loaded, then read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import WeightsError
from octavo.models.files import refuse_lfs_pointer
from octavo.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
# Safetensors' own bound; a larger length means that the file is something else.
_MAX_HEADER = 100_000_000

# Tensors that some checkpoints carry and a decoder has no use for.
_IGNORED = ("vision_tower.", "multi_modal_projector.", "rotary_emb.inv_freq")
# Multimodal folders keep the text model under one of these.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


class Checkpoint:
    """The tensors of a folder, memory-mapped.

    Args:
        folder: The model folder: ``model.safetensors``, or an index and its shards, or any ``*.safetensors``.
        shape: What the tensors must be.

    Raises:
        WeightsError: A file is missing, truncated or not what it claims to be, or the tensors are not those of
            ``shape``; names the file or the tensors.
    """

    def __init__(self, folder: Path, shape: ModelShape) -> None:
        self._places: dict[str, tuple[Path, str]] = {}
        self._files: dict[Path, Any] = {}
        found: dict[str, tuple[int, ...]] = {}
        for file in _weight_files(folder):
            for stored, spec in read_header(file).items():
                name = _canonical(stored)
                found[name] = tuple(spec["shape"])
                self._places[name] = (file, stored)
        _compare(folder, found, shape)

    def read(self, name: str) -> Tensor:
        """One tensor in Hugging Face's spelling; its pages are read from disk when they are used."""
        # Imported here because the front end, which has no torch, checks checkpoints too.
        from safetensors import safe_open

        file, stored = self._places[name]
        if file not in self._files:
            self._files[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._files[file].get_tensor(stored)
        return tensor


def read_header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file: name → ``{"dtype", "shape", "data_offsets"}``.

    Raises:
        WeightsError: The file is missing, cut short, or no safetensors file.
    """
    refuse_lfs_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _MAX_HEADER:
            raise WeightsError(f"{file} is not a safetensors file")
        text = stream.read(length)
    if len(text) < length:
        raise WeightsError(f"{file} is truncated: its header alone needs {8 + length} bytes, it has {size}")
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        needed = 8 + length + max((spec["data_offsets"][1] for spec in header.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise WeightsError(f"{file} is not a safetensors file: its header is malformed") from error
    if size != needed:
        state = "truncated" if size < needed else "longer than it should be"
        raise WeightsError(f"{file} is {state}: it has {size} bytes, and its header speaks of {needed}")
    return header


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _indexed_files(folder / INDEX)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise WeightsError(
            f"{folder} has its weights in {pickles[0].name}, a pickle, which can run code when it is opened; "
            "save them as safetensors: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    raise WeightsError(f"{folder} has no safetensors files")


def _indexed_files(index: Path) -> list[Path]:
    refuse_lfs_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is not an index of safetensors files") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index.parent} lacks {_some(missing)}, named in {index.name}")
    return [index.parent / name for name in names]


def _canonical(name: str) -> str:
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _compare(folder: Path, found: Mapping[str, tuple[int, ...]], shape: ModelShape) -> None:
    wanted = shape.parameter_shapes()
    if missing := [name for name in wanted if name not in found]:
        raise WeightsError(f"{folder} lacks {_some(missing)}, which config.json calls for")
    # Some tied checkpoints store the output layer again; it is the embedding and is left where it is.
    spare = {"lm_head.weight"} if shape.tied_embeddings else set()
    unexpected = [name for name in found if name not in wanted | dict.fromkeys(spare) and not _ignored(name)]
    if unexpected:
        raise WeightsError(f"{folder} has tensors that a {shape.architecture} does not: {_some(unexpected)}")
    for name, expected in wanted.items():
        if found[name] != expected:
            raise WeightsError(
                f"{name} in {folder} has the shape {list(found[name])}; config.json calls for {list(expected)}"
            )


def _ignored(name: str) -> bool:
    return any(part in name for part in _IGNORED)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
