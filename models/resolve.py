"""From what the person typed to a folder that can be served. Loads no torch: the HTTP process resolves names."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelNotFoundError, WeightsError
from octavo.models.builtin import BUILTIN_MODELS, fetch_builtin
from octavo.models.cache import Progress, build_once, cached
from octavo.models.convert import convert
from octavo.models.files import refuse_lfs_pointer

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
# What a checkpoint needs; repositories often hold the same weights again in other formats.
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja"]
_HUB_DUPLICATES = ["original/*", "consolidated*", "onnx/*"]
_TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with ``config.json``, ``*.safetensors`` and ``tokenizer.json``.

    Attributes:
        path: The folder.
        name: What clients call the model unless the operator says otherwise.
    """

    path: Path
    name: str


def resolve(name: str, *, progress: Progress) -> ModelFolder:
    """Finds a model, fetching or converting it if need be.

    Args:
        name: A model folder, a GGUF file or a folder with one, a built-in name, or a Hub id ``org/name``; the
            first of these that exists.
        progress: Told about every step that takes a while.

    Raises:
        ModelNotFoundError: It is none of these, or cannot be fetched.
        WeightsError: What was found or fetched cannot be read.
        ConfigError: The cache folder cannot be written.
    """
    path = Path(name).expanduser()
    if path.exists():
        return _resolve_local(path.resolve(), progress)
    if name in BUILTIN_MODELS:
        return ModelFolder(
            build_once(name, lambda folder: _build_builtin(name, folder, progress), progress=progress), name
        )
    if _HUB_ID.match(name):
        return ModelFolder(_with_tokenizer(_download(name, progress), progress), name)
    raise ModelNotFoundError(f"there is no model {name!r}; {_choices()}")


def locate(name: str) -> Path | None:
    """Where a model is, if it is here; None if `resolve` would have to fetch or convert something first.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    path = Path(name).expanduser()
    if path.exists():
        return None if not _is_complete(path) and _is_convertible(path) else path
    if name in BUILTIN_MODELS:
        return cached(name)
    if _HUB_ID.match(name):
        return _downloaded(name)
    raise ModelNotFoundError(f"there is no model {name!r}; {_choices()}")


def _downloaded(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    return (
        (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file() and _has(folder, "*.safetensors")
    )


def _is_convertible(path: Path) -> bool:
    return path.suffix == ".gguf" or any(_has(path, name) for name in ("*.gguf", *_TOKENIZER_SOURCES))


def _has(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _choices() -> str:
    return (
        "give a folder with config.json and safetensors, a GGUF file, a Hub id such as org/name, "
        f"or a built-in name ({', '.join(BUILTIN_MODELS)})"
    )


def _resolve_local(path: Path, progress: Progress) -> ModelFolder:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(f"{path} is a file, but not a GGUF file; {_choices()}")
        return ModelFolder(_from_gguf(path, progress), path.stem)
    files = sorted(path.glob("*.gguf"))
    if files and not any(path.glob("*.safetensors")):
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ModelNotFoundError(f"{path} holds several GGUF files ({names}); name the one to serve")
        return ModelFolder(_from_gguf(files[0], progress), path.name)
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} has neither a config.json nor a GGUF file; {_choices()}")
    return ModelFolder(_with_tokenizer(path, progress), path.name)


def _build_builtin(name: str, folder: Path, progress: Progress) -> None:
    gguf = fetch_builtin(name, folder, progress=progress)
    progress(f"converting {name} (once)")
    convert(gguf, folder)
    shutil.rmtree(gguf.parent)


def _from_gguf(file: Path, progress: Progress) -> Path:
    _check_gguf(file)

    def build(folder: Path) -> None:
        progress(f"converting {file.name} (once)")
        convert(file, folder)

    return build_once(f"{file.stem}-{_fingerprint(file)}", build, progress=progress)


def _check_gguf(file: Path) -> None:
    # The converter would find out as well, seconds later, once it has loaded transformers.
    refuse_lfs_pointer(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise WeightsError(f"{file} is not a GGUF file")


def _with_tokenizer(path: Path, progress: Progress) -> Path:
    """The folder itself, or a folder of links to its files beside a converted tokenizer."""
    source = next((path / name for name in _TOKENIZER_SOURCES if (path / name).is_file()), None)
    if source is None or (path / "tokenizer.json").is_file():
        return path

    def build(folder: Path) -> None:
        progress(f"converting the tokenizer of {path.name} (once)")
        convert(path, folder)
        for file in path.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())

    return build_once(f"{path.name}-{_fingerprint(source)}", build, progress=progress)


def _fingerprint(file: Path) -> str:
    """Changes with the file: its place, size and time of change stand for its contents."""
    stat = file.stat()
    return hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]


def _download(name: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    progress(f"looking for {name} on the Hugging Face Hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_DUPLICATES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(f"cannot get {name!r} from the Hugging Face Hub: {reason}; {_choices()}") from error
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{name!r} on the Hugging Face Hub has no config.json; {_choices()}")
    return folder
