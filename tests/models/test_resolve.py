"""From what a person types to a folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from octavo.errors import ModelNotFoundError, WeightsError
from octavo.models import resolve as resolve_module
from octavo.models.builtin import BUILTIN_MODELS
from octavo.models.cache import build_once
from octavo.models.resolve import ModelFolder, locate, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def converted(monkeypatch) -> list[Path]:
    """Replaces the converter by one that only records; returns what it was asked to convert."""
    sources: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        sources.append(source)
        (target / ("tokenizer.json" if source.is_dir() else "config.json")).write_text("{}")

    monkeypatch.setattr(resolve_module, "convert", convert)
    return sources


def find(name: str | Path) -> ModelFolder:
    return resolve(str(name), progress=lambda _: None)


def test_a_folder_is_served_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path) == ModelFolder(tmp_path, tmp_path.name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"neither a config\.json nor a GGUF file"):
        find(tmp_path)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFoundError, match=r"model\.bin is a file, but not a GGUF file"):
        find(tmp_path / "model.bin")


def test_a_gguf_file_is_converted_once(tmp_path, converted):
    file = tmp_path / "tiny.Q4_0.gguf"
    file.write_bytes(b"GGUF")
    first, second = find(file), find(tmp_path)
    assert (first.name, second.name) == ("tiny.Q4_0", tmp_path.name)
    assert first.path == second.path
    assert converted == [file]


def test_a_changed_gguf_file_is_converted_again(tmp_path, converted):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    first = find(file)
    file.write_bytes(b"GGUF, longer")
    assert find(file).path != first.path


def test_several_gguf_files_are_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        find(tmp_path)


def test_safetensors_win_over_gguf(tmp_path, converted):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tiny.gguf"):
        (tmp_path / name).touch()
    assert find(tmp_path).path == tmp_path
    assert not converted


def test_another_tokenizer_format_is_converted_beside_links(tmp_path, converted):
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (tmp_path / name).write_text(name)
    folder = find(tmp_path).path
    assert converted == [tmp_path]
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "model.safetensors").resolve() == tmp_path / "model.safetensors"


def test_a_builtin_name_is_fetched_and_converted(converted, monkeypatch):
    messages: list[str] = []

    def fetch(name: str, folder: Path, *, progress) -> Path:
        (folder / "carrier").mkdir()
        (folder / "carrier" / "x.gguf").touch()
        return folder / "carrier" / "x.gguf"

    monkeypatch.setattr(resolve_module, "fetch_builtin", fetch)
    name = next(iter(BUILTIN_MODELS))
    folder = resolve(name, progress=messages.append)
    assert folder.name == name
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]
    assert messages == [f"converting {name} (once)"]


@pytest.mark.parametrize("name", ["smollm3", "a b/c", "/no/such/folder", "org/name/extra", "../x"])
def test_what_names_nothing_is_answered_at_once(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        find(name)
    assert time.monotonic() - started < 1
    assert repr(name) in str(caught.value)
    assert next(iter(BUILTIN_MODELS)) in str(caught.value)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelNotFoundError, match=r"'org/name' on the Hugging Face Hub has no config\.json"):
        find("org/name")
    (tmp_path / "config.json").write_text("{}")
    assert find("org/name") == ModelFolder(tmp_path, "org/name")
    assert "*.safetensors" in calls[0][1]["allow_patterns"]
    assert not any(pattern.endswith(("bin", "py")) for pattern in calls[0][1]["allow_patterns"])


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("you are offline\nmore"), ConnectionError("you are offline")]
)
def test_an_unreachable_hub(error, monkeypatch):
    def snapshot_download(name: str, **_: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        ModelNotFoundError, match="cannot get 'org/name' from the Hugging Face Hub: you are offline; give"
    ):
        find("org/name")


def test_loads_no_torch():
    code = (
        "import sys, octavo.models.resolve, octavo.models.builtin, octavo.models.convert, octavo.models.shape\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output.replace("'", '"')) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not GGUF at all", "is not a GGUF file"),
        (b"version https://git-lfs.github.com/", "Git LFS pointer"),
    ],
)
def test_a_gguf_file_that_is_none(content, reason, tmp_path, converted):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"broken\.gguf .*{reason}"):
        find(tmp_path / "broken.gguf")
    assert not converted


def test_what_is_here_is_located(tmp_path, converted):
    assert locate(str(tmp_path)) == tmp_path  # whoever prepares it finds out what is missing
    (tmp_path / "tokenizer.model").touch()
    assert locate(str(tmp_path)) is None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "tiny.gguf").touch()
    assert locate(str(tmp_path / "tiny.gguf")) is None
    assert converted == []
    with pytest.raises(ModelNotFoundError, match="there is no model 'smollm'"):
        locate("smollm")


def test_a_built_in_model_is_located_once_it_was_built():
    name = next(iter(BUILTIN_MODELS))
    assert locate(name) is None
    folder = build_once(name, lambda folder: None, progress=lambda _: None)
    assert locate(name) == folder


def test_a_model_of_the_hub_is_located_when_it_is_complete(tmp_path, monkeypatch):
    def snapshot_download(name: str, local_files_only: bool) -> str:
        assert local_files_only
        if name == "org/none":
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate("org/none") is None
    assert locate("org/half") is None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert locate("org/whole") == tmp_path
