"""Cached folders appear whole or not at all, and once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.models.cache import build_once, cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))


def ignore(_: str) -> None:
    pass


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", "/data/octavo")
    assert cache_folder() == Path("/data/octavo")
    monkeypatch.delenv("OCTAVO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/data")
    assert cache_folder() == Path("/data/octavo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "octavo"


def test_builds_once():
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "x").write_text("done")

    first, second = (build_once("m", build, progress=ignore) for _ in range(2))
    assert first == second
    assert (first / "x").read_text() == "done"
    assert len(built) == 1


def test_a_failed_build_leaves_nothing():
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        build_once("m", fail, progress=ignore)
    assert [path.name for path in cache_folder().glob("v*/*")] == [".m.lock"]


def test_what_a_killed_build_left_is_swept():
    half = build_once("other", lambda folder: None, progress=ignore).with_name(".m.partial")
    half.mkdir()
    (half / "stale").touch()
    folder = build_once("m", lambda folder: (folder / "fresh").touch(), progress=ignore)
    assert [path.name for path in folder.iterdir()] == ["fresh"]
    assert not half.exists()


def test_others_wait_and_are_told():
    begun, told, built, results = threading.Event(), threading.Event(), [], []
    messages: list[str] = []

    def build(folder: Path) -> None:
        built.append(folder)
        begun.set()
        assert told.wait(10)

    def progress(message: str) -> None:
        messages.append(message)
        told.set()

    first = threading.Thread(target=lambda: results.append(build_once("m", build, progress=ignore)))
    first.start()
    assert begun.wait(10)
    results.append(build_once("m", build, progress=progress))
    first.join()
    assert messages == ["another process is preparing m; waiting"]
    assert len(built) == 1
    assert results[0] == results[1]


def test_unwritable_cache_names_the_variable(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="set OCTAVO_CACHE"):
        build_once("m", lambda folder: None, progress=ignore)
