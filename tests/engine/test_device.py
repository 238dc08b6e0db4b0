"""Which device a model runs on."""

from __future__ import annotations

import pytest
import torch

from octavo.engine.device import choose_device, device_name
from octavo.errors import ConfigError


@pytest.mark.parametrize(
    ("requested", "gpu", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_choices(monkeypatch: pytest.MonkeyPatch, requested: str, gpu: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(requested).type == chosen


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")
    assert device_name(torch.device("cpu")) == "CPU"
