"""Which device a model runs on."""

from __future__ import annotations

import torch

from octavo.errors import ConfigError


def choose_device(requested: str) -> torch.device:
    """The device that ``--device`` means here.

    Raises:
        ConfigError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use cpu, or auto to take what there is")
    return torch.device("cuda" if available and requested != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """What it is called."""
    return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
