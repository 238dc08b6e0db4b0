"""Whether the model is here and would do; nothing is fetched to find out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny
from tiny_tokenizer import write_tokenizer

from octavo.config import DEFAULT_MODEL, EngineConfig
from octavo.engine.doctor import examination
from octavo.engine.doctor.examination import examine
from octavo.engine.doctor.finding import Finding


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """The folders that the child is asked about."""
    folders: list[str | None] = []

    def ask(config: EngineConfig, folder: str | None) -> list[Finding]:
        folders.append(folder)
        return []

    monkeypatch.setattr(examination, "examine_compute", ask)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return folders


def model(**options: Any) -> Finding:
    findings = list(examine(EngineConfig.of(device="cpu", **options)))
    return next(finding for finding in findings if finding.topic == "model")


def test_a_model_that_is_here(asked: list[str | None], tmp_path: Path) -> None:
    make_tiny(tmp_path, "Llama")
    write_tokenizer(tmp_path)
    assert model(model=str(tmp_path)).text.endswith(" M parameters, and fits")
    too_large = model(model=str(tmp_path), memory=2**60)
    assert (too_large.state, "--kv-cache-memory" in too_large.text) == ("problem", True)
    assert asked == [str(tmp_path), None]


def test_the_default_model_before_the_first_start(asked: list[str | None], tmp_path: Path) -> None:
    finding = model()
    assert (finding.state, finding.text) == ("note", f"{DEFAULT_MODEL} is not here yet")
    assert finding.advice.endswith("(93 MB)")
    assert not (tmp_path / "cache").exists()
    assert asked == [None]


def test_the_default_model_with_nowhere_to_go(
    asked: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", "/proc/octavo")
    assert (model().state, model().advice) == ("problem", "set OCTAVO_CACHE to a folder that can")


def test_a_model_that_does_not_exist(asked: list[str | None]) -> None:
    assert model(model="/no/such/folder").state == "problem"
