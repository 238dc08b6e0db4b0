"""What the child process finds, and what becomes of it if there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tiny

from octavo.config import EngineConfig, to_mapping
from octavo.engine import machine
from octavo.engine.doctor import compute
from octavo.engine.doctor.compute import Question, answer, examine_compute
from octavo.engine.doctor.finding import Finding
from octavo.engine.machine import Rates
from octavo.kernels.cpu import amx, packing
from octavo.models import processor, shape


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda device: Rates(5e9, 100e9, 30e9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "GPU_DRIVER", Path("/none"))
    monkeypatch.setattr(processor, "_flags", frozenset)  # of nothing that is known: whatever is asked for is there


@pytest.fixture
def folder(tmp_path: Path) -> str:
    make_tiny(tmp_path, "Llama")
    return str(tmp_path)


def found(folder: str | None = None, **options: Any) -> dict[str, Finding]:
    question = Question(to_mapping(EngineConfig.of(**options)), folder)
    return {finding.topic: finding for finding in answer(question)}


def test_what_auto_means_here(folder: str) -> None:
    findings = found(folder)
    assert {topic: finding.text for topic, finding in findings.items() if topic != "layers"} == {
        "devices": "no GPU",
        "device": "cpu, since torch sees no GPU",
        "attention": "cpu, the kernels for this device",
        "speed": "reads 5 GB/s · products in bfloat16 100 GFLOP/s, in float32 30 GFLOP/s",
    }
    assert findings["layers"].values["dtype"] == "bfloat16"
    assert "layers" not in found()


def test_what_was_asked_for(folder: str) -> None:
    findings = found(folder, device="cpu", attention_backend="reference", dtype="float32")
    assert findings["device"].text == "cpu, as --device cpu says"
    assert findings["attention"].text == "reference, as --attention-backend reference says"
    assert findings["layers"].text.startswith("float32, operation by operation")


def test_without_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path, "Llama", hidden_size=64, intermediate_size=96)
    folder = str(tmp_path)
    monkeypatch.setattr(amx, "is_available", lambda: False)
    assert found(folder)["layers"].text == "bfloat16, all in one compiled call, in vectors: the processor has no AMX"
    for option in ({"deterministic": True}, {"quantization": "int8"}):
        assert found(folder, **option)["layers"].state == "ok"


def test_what_has_no_compiled_call(folder: str) -> None:
    for dtype in ("float32", "bfloat16"):
        text = f"{dtype}, operation by operation: the compiled call takes models with widths that are multiples of 32"
        assert found(folder, dtype=dtype)["layers"].text.startswith(text)
    for option, flag in (({"deterministic": True}, "--deterministic"), ({"quantization": "int8"}, "--quantization")):
        refused = found(folder, dtype="float32", **option)["layers"]
        assert (refused.state, refused.text.startswith(flag)) == ("problem", True)


def test_without_vectors(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "computes_in", lambda dtype, *, tiled: False)
    assert found(folder)["layers"].values == {"dtype": "float32", "compiled": False}


def test_without_instructions_for_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path, "Llama", hidden_size=64, intermediate_size=96)
    monkeypatch.setattr(packing, "_has_float16", lambda: False)
    layers = found(str(tmp_path), dtype="float16")["layers"]
    assert layers.text == "float16, operation by operation: the processor has no vectors of float16"
    assert found(str(tmp_path), dtype="float32")["layers"].text == "float32, all in one compiled call, in vectors"


def test_options_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # under which Triton's kernels run on CPUs, too
    assert list(found(device="cuda")) == ["devices", "device"]
    assert found(device="cuda")["device"].state == "problem"
    assert found(attention_backend="triton")["attention"].state == "problem"


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compute, "GPU_DRIVER", tmp_path)
    assert (found()["devices"].state, "cannot use it" in found()["devices"].text) == ("note", True)


def test_slow_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda device: Rates(5e9, 1e9, 30e9))
    assert compute._speed(torch.device("cuda")).advice == "bfloat16 is slow here: try --dtype float32"
    assert found()["speed"].advice == ""  # what torch takes for it there, our kernels do not


def test_the_child_answers() -> None:
    findings = {finding.topic: finding for finding in examine_compute(EngineConfig.of(device="cpu"), None)}
    assert list(findings) == ["devices", "device", "attention", "speed"]
    assert findings["speed"].values["read_bytes"] > 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libgomp.so.1 is missing')", "status 1: ImportError: libgomp.so.1 is missing"),
        ("import os; os.kill(os.getpid(), 4)", "status -4: without a word"),
    ],
)
def test_a_child_that_ends(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([sys.executable, "-c", code], **options))
    (finding,) = examine_compute(EngineConfig(), None)
    assert (finding.state, finding.text.endswith(words)) == ("problem", True)


def test_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert [finding.state for finding in examine_compute(EngineConfig(), None)] == ["note"]
