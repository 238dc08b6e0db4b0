"""What is found out without torch, on computers that are not like this one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from octavo.engine.doctor import host
from octavo.engine.doctor.finding import Finding
from octavo.engine.doctor.host import PACKAGES, examine_host


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The container's limits; no file, no limit."""
    monkeypatch.setattr(host, "_GROUP", tmp_path)
    return tmp_path


@pytest.fixture
def found(group: Path) -> Callable[[str], Finding]:
    def of(topic: str) -> Finding:
        (one,) = (finding for finding in examine_host() if finding.topic == topic)
        return one

    return of


def test_this_computer_will_do() -> None:
    findings = list(examine_host())
    topics = [finding.topic for finding in findings]
    assert topics == ["python", *PACKAGES, "processor", "cores", "memory", "cache", "sockets"]
    assert all(finding.state != "problem" for finding in findings)
    assert not any("could not be looked at" in finding.text for finding in findings)


def test_cores(found: Callable[[str], Finding], group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert found("cores") == Finding("cores", "8 of 16 may be used", values={"usable": 8, "all": 16})
    (group / "cpu.max").write_text("max 100000")
    assert found("cores").state == "ok"
    (group / "cpu.max").write_text("250000 100000")
    assert (found("cores").state, found("cores").advice) == ("note", "give --threads 2, or the container more")
    assert found("cores").values["quota"] == 2.5


def test_memory(found: Callable[[str], Finding], group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_host_memory", lambda: 2 * 2**30)
    assert (found("memory").state, found("memory").values["limit_bytes"]) == ("ok", None)
    (group / "memory.max").write_text(str(3 * 2**30))
    assert found("memory").text.endswith("within the container's limit of 3.0 GiB")
    monkeypatch.setattr(host, "free_host_memory", lambda: 2**29)
    assert found("memory").state == "note"


def test_a_cache_folder_that_cannot_be_made(
    found: Callable[[str], Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "new" / "cache"))
    assert found("cache").text.startswith(f"{tmp_path}/new/cache can be written, ")
    (tmp_path / "new").touch()
    assert (found("cache").state, found("cache").text) == ("note", f"{tmp_path}/new/cache cannot be written")
    assert "OCTAVO_CACHE" in found("cache").advice


def test_missing_packages(found: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(host, "version", missing)
    assert {name: found(name).state for name in PACKAGES} == dict.fromkeys(PACKAGES, "problem") | {"triton": "note"}


def test_without_a_temporary_folder(
    found: Callable[[str], Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert (found("sockets").state, found("sockets").advice) == ("problem", "set TMPDIR to one that can")


def test_what_cannot_be_looked_at_is_told(found: Callable[[str], Finding], group: Path) -> None:
    (group / "cpu.max").write_text("?")
    assert found("cores").state == "note"
    assert found("cores").text.startswith("could not be looked at: ValueError")
