"""How `octavo doctor` tells what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from octavo.config import EngineConfig, ServerConfig
from octavo.engine.doctor.finding import Finding
from octavo.server.commands import doctor
from octavo.server.serve import bind


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the examination will find."""
    found: list[Finding] = []

    def examine(config: EngineConfig) -> Iterator[Finding]:
        yield from found

    monkeypatch.setattr(doctor, "examine", examine)
    return found


def test_all_is_well(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings += [Finding("cores", "2 of [2]"), Finding("model", "tiny\nis not here", "note", "fetch it")]
    assert doctor.main(["--port", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "ok       cores         2 of [2]",
        "note     model         tiny is not here",
        " " * 23 + "→ fetch it",
    ]
    assert lines[3].startswith("ok       port          http://127.0.0.1:")
    assert lines[-1] == "`octavo serve` should work here, with 1 note above"


def test_a_problem_is_told_in_the_words_of_who_caused_it(
    findings: list[Finding], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind(ServerConfig(port=0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("OCTAVO_PORT", str(port))
        assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert f"problem  port          127.0.0.1:{port} is already in use; choose another OCTAVO_PORT" in out
    assert out.endswith("would not start here: 1 problem\n")


def test_for_machines(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings += [Finding("cores", "2 of 2", values={"usable": 2}), Finding("device", "none", "problem", "buy one")]
    assert doctor.main(["--json", "--port", "0"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["works"] is False
    assert told["findings"][:2] == [
        {"topic": "cores", "text": "2 of 2", "state": "ok", "advice": "", "values": {"usable": 2}},
        {"topic": "device", "text": "none", "state": "problem", "advice": "buy one", "values": {}},
    ]
    findings.pop()
    assert doctor.main(["--json", "--port", "0"]) == 0


def test_options_reach_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(doctor, "examine", lambda config: seen.append(config) or iter(()))
    assert doctor.main(["org/name", "--port", "0", "--dtype", "float32"]) == 0
    assert seen == [EngineConfig.of(model="org/name", dtype="float32")]
