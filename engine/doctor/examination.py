"""Everything that `octavo doctor` looks at but the port, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from octavo.config import EngineConfig
from octavo.engine.doctor.compute import examine_compute
from octavo.engine.doctor.finding import Finding, look
from octavo.engine.doctor.host import can_be_made, examine_host
from octavo.engine.prepare import prepare_model
from octavo.models.builtin import BUILTIN_MODELS
from octavo.models.cache import cache_folder
from octavo.models.resolve import locate
from octavo.models.shape import ModelShape


def examine(config: EngineConfig) -> Iterator[Finding]:
    """Looks at the computer, the model and what they make of the options; fetches and changes nothing."""
    yield from examine_host()
    model = look("model", partial(_model, config))
    yield model
    yield from examine_compute(config, model.values.get("folder"))


def _model(config: EngineConfig) -> Finding:
    """Whether the model is here and would do."""
    name = config.model.model
    folder = locate(name)
    if folder is None and (name in BUILTIN_MODELS or Path(name).exists()) and not can_be_made(cache_folder()):
        text = f"{name} is not here yet, and {cache_folder()}, where it would go, cannot be written"
        return Finding("model", text, "problem", "set OCTAVO_CACHE to a folder that can")
    if folder is None:
        size = f" ({BUILTIN_MODELS[name].megabytes} MB)" if name in BUILTIN_MODELS else ""
        return Finding("model", f"{name} is not here yet", "note", f"the first start fetches or converts it{size}")
    prepare_model(replace(config, model=replace(config.model, model=str(folder))))
    shape = ModelShape.read(folder, trust_remote_code=config.model.trust_remote_code)
    text = f"{name} is here, {shape.num_parameters / 1e6:,.0f} M parameters, and fits"
    return Finding("model", text, values={"folder": str(folder), "parameters": shape.num_parameters})
