"""What takes torch to find out: devices, what ``auto`` means here, and how fast the machine is.

    python -m octavo.engine.doctor.compute < question > findings

A process of its own, since torch may also end one: built for instructions that the processor lacks, for example.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.config import EngineConfig, to_mapping
from octavo.engine.doctor.finding import Finding, look
from octavo.engine.prepare import GPU_DRIVER
from octavo.errors import ConfigError

if TYPE_CHECKING:
    import torch

_TIMEOUT_SECONDS = 120


class Question(msgspec.Struct, frozen=True):
    """What is asked of the child.

    Attributes:
        options: A config as `octavo.config.to_mapping` makes it. folder: the model's; None if it is not here yet.
    """

    options: dict[str, Any]
    folder: str | None


def examine_compute(config: EngineConfig, folder: str | None) -> list[Finding]:
    """Asks a child process; how it fails, if it does, is a finding too."""
    question = msgspec.json.encode(Question(to_mapping(config), folder))
    # -P: folders of the working directory are not modules.
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(command, input=question, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Finding("compute", f"torch was not done after {_TIMEOUT_SECONDS} s", "note", "is the machine busy?")]
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        text = f"a process that loads torch ended with status {done.returncode}: {words[-1]}"
        return [Finding("compute", text, "problem", 'try it: python -c "import torch"')]
    # Libraries may have said something before.
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Finding])


def answer(question: Question) -> Iterator[Finding]:
    """What the child finds."""
    from octavo.engine.device import choose_device

    config = EngineConfig.of(**question.options)
    yield look("devices", _devices)
    try:
        device = choose_device(config.execution.device)
    except ConfigError as error:
        yield Finding("device", str(error), "problem")
        return
    yield look("device", partial(_device, config, device))
    yield look("attention", partial(_attention, config, device))
    if question.folder is not None:
        yield look("layers", partial(_layers, config, device, question.folder))
    yield look("speed", partial(_speed, device))


def _devices() -> Finding:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        text = " · ".join(f"{gpu.name}, {gpu.total_memory / 2**30:,.0f} GiB" for gpu in found)
        return Finding("devices", text, values={"gpus": [gpu.name for gpu in found]})
    if GPU_DRIVER.exists():
        kind = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        advice = "install a torch for CUDA that the driver (nvidia-smi) supports"
        return Finding(
            "devices", f"there is a GPU, but torch {torch.__version__} {kind} and cannot use it", "note", advice
        )
    return Finding("devices", "no GPU", values={"gpus": []})


def _device(config: EngineConfig, device: torch.device) -> Finding:
    requested = config.execution.device
    why = f"as --device {requested} says"
    if requested == "auto":
        why = "since torch sees a GPU" if device.type == "cuda" else "since torch sees no GPU"
    return Finding("device", f"{device.type}, {why}", values={"device": device.type})


def _attention(config: EngineConfig, device: torch.device) -> Finding:
    from octavo.kernels.attention import select_backend

    requested = config.execution.attention_backend
    backend = select_backend(device, requested)
    if config.cache.kv_cache_dtype == "int8" and not backend.reads_int8:
        raise ConfigError(f"--kv-cache-dtype int8: the {backend.name} kernels cannot read it")
    why = "the kernels for this device" if requested == "auto" else f"as --attention-backend {requested} says"
    return Finding("attention", f"{backend.name}, {why}", values={"backend": backend.name})


def _layers(config: EngineConfig, device: torch.device, folder: str) -> Finding:
    import torch

    from octavo.kernels.attention import select_backend
    from octavo.models.compiled import fits
    from octavo.models.shape import FITTING, ModelShape

    shape = ModelShape.read(Path(folder), trust_remote_code=config.model.trust_remote_code)
    dtype = shape.served_dtype(config.model.dtype, device.type)
    quantized = config.model.quantization == "int8"
    kernels = select_backend(device, config.execution.attention_backend)
    compiled = kernels.name == "cpu" and fits(shape, getattr(torch, dtype), quantized=quantized)
    values = {"dtype": dtype, "compiled": compiled}
    if compiled:
        return Finding("layers", f"{dtype}, all in one compiled call, {_how(dtype)}", values=values)
    for asked, option in ((quantized, "--quantization int8"), (config.execution.deterministic, "--deterministic")):
        if asked:
            raise ConfigError(f"{option} needs a CPU, --attention-backend auto or cpu, and a model with {FITTING}")
    why = ""
    if kernels.name == "cpu":
        lacking = f"the processor has no vectors of {dtype}"
        why = f": {lacking}" if shape.fits_tiles else f": the compiled call takes models with {FITTING}"
    return Finding("layers", f"{dtype}, operation by operation{why}", values=values)


def _how(dtype: str) -> str:
    from octavo.kernels.cpu import amx

    if dtype != "bfloat16":
        return "in vectors"
    return "on AMX tiles" if amx.is_available() else "in vectors: the processor has no AMX"


def _speed(device: torch.device) -> Finding:
    from octavo.engine.machine import measure

    rates = measure(device)
    text = (
        f"reads {rates.read_bytes / 1e9:,.0f} GB/s · products in bfloat16 {rates.operations / 1e9:,.0f} GFLOP/s, "
        f"in float32 {rates.float32_operations / 1e9:,.0f} GFLOP/s"
    )
    values = msgspec.to_builtins(rates)
    # On CPUs our own kernels take bfloat16 at float32's speed at least.
    if device.type != "cpu" and rates.operations < rates.float32_operations / 2:
        return Finding("speed", text, "note", "bfloat16 is slow here: try --dtype float32", values)
    return Finding("speed", text, values=values)


if __name__ == "__main__":
    found = list(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Question)))
    print(msgspec.json.encode(found).decode())
