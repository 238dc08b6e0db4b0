"""Everything that can be found wrong before a process is spawned and weights are read. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from octavo.config import EngineConfig
from octavo.engine.disk_store import check_folder
from octavo.engine.memory import free_host_memory, plan_pool
from octavo.models.checkpoint import Checkpoint
from octavo.models.resolve import resolve
from octavo.models.shape import SERVED_DTYPES, ModelShape

GPU_DRIVER = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model folder that has passed the checks.

    Attributes:
        folder: Holds ``config.json``, ``tokenizer.json`` and the weights.
        name: What clients call the model unless the operator says otherwise.
    """

    folder: Path
    name: str


def prepare_model(config: EngineConfig, progress: Callable[[str], None] = lambda text: None) -> PreparedModel:
    """Finds the model, fetching or converting it if need be, and checks that it can be served as configured.

    Args:
        progress: Told about every step that takes a while.

    Raises:
        SetupError: The model does not exist, is of an unsupported kind, or does not fit.
    """
    found = resolve(config.model.model, progress=progress)
    shape = ModelShape.read(found.path, trust_remote_code=config.model.trust_remote_code)
    if config.model.load_format == "auto":
        Checkpoint(found.path, shape)
    if config.execution.device == "cpu" or (config.execution.device == "auto" and not GPU_DRIVER.exists()):
        # A GPU's memory is measured by the engine; asking for it takes torch.
        weights = shape.num_parameters * SERVED_DTYPES[shape.served_dtype(config.model.dtype, "cpu")]
        free = free_host_memory() - weights
        plan_pool(config, shape, free=free, free_host=free, device="cpu")
    if config.cache.swap_dir is not None:
        check_folder(Path(config.cache.swap_dir), config.cache.swap_disk)
    return PreparedModel(found.path, found.name)
