"""The computer and its software, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from octavo.engine.doctor.finding import Finding, look
from octavo.engine.memory import free_host_memory
from octavo.models.cache import cache_folder

PACKAGES = ("octavo", "torch", "triton", "transformers", "numba", "llguidance")
# What kernels are written for, here or in the libraries below, the best first.
INSTRUCTION_SETS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2")

_GROUP = Path("/sys/fs/cgroup")
_LITTLE_MEMORY = 2**30
_LITTLE_DISK = 2**30


def examine_host() -> Iterator[Finding]:
    """Versions, processor, memory and disk."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        yield look(package, partial(_package, package))
    yield look("processor", _processor)
    yield look("cores", _cores)
    yield look("memory", _memory)
    yield look("cache", _cache)
    yield look("sockets", _sockets)


def _package(name: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        if name == "triton":
            return Finding(
                name, "is not installed; only GPUs need it", "note", "on a machine with one: pip install triton"
            )
        return Finding(name, "is not installed", "problem", "pip install octavo brings it")
    return Finding(name, found, values={"version": found})


def _processor() -> Finding:
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()  # of the first core
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, flags = info.get("model name", platform.machine()), info.get("flags", "").split()
    sets = [known for known in INSTRUCTION_SETS if known in flags]
    values = {"model": name, "instruction_sets": sets}
    if "avx2" not in sets and platform.machine() == "x86_64":
        return Finding("processor", f"{name}, without AVX2", "note", "products will be slow on it", values)
    return Finding("processor", f"{name} · {', '.join(sets) or platform.machine()}", values=values)


def _cores() -> Finding:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    values = {"usable": usable, "all": there}
    text = f"{usable} of {there} may be used"
    if (quota := _quota()) is not None and quota < usable:
        return Finding(
            "cores",
            f"{text}, but the container gets the time of {quota:g} only",
            "note",
            f"give --threads {max(1, int(quota))}, or the container more",
            values | {"quota": quota},
        )
    return Finding("cores", text, values=values)


def _quota() -> float | None:
    """Cores' time that the cgroup allows; None for no limit."""
    try:
        time, period = (_GROUP / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if time == "max" else int(time) / int(period)


def _memory() -> Finding:
    total, free, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), free_host_memory(), _limit()
    text = f"{_gib(free)} of {_gib(total)} available"
    if limit is not None and limit < total:
        text += f", within the container's limit of {_gib(limit)}"
    values = {"available_bytes": free, "total_bytes": total, "limit_bytes": limit}
    if free < _LITTLE_MEMORY:
        return Finding("memory", text, "note", "there is room for small models only", values)
    return Finding("memory", text, values=values)


def _limit() -> int | None:
    """Bytes that the cgroup allows; None for no limit."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)


def _cache() -> Finding:
    folder = cache_folder()
    free = shutil.disk_usage(_existing(folder)).free
    values = {"folder": str(folder), "free_bytes": free}
    if not can_be_made(folder):
        advice = "set OCTAVO_CACHE to a folder that can, or only models that are there already can be served"
        return Finding("cache", f"{folder} cannot be written", "note", advice, values)
    text = f"{folder} can be written, {_gib(free)} free"
    if free < _LITTLE_DISK:
        return Finding("cache", text, "note", "set OCTAVO_CACHE to a folder on a larger disk", values)
    return Finding("cache", text, values=values)


def can_be_made(folder: Path) -> bool:
    """Whether a folder can be written, once those that are missing on the way to it are made."""
    try:
        with tempfile.TemporaryDirectory(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _sockets() -> Finding:
    """Where a server and its engine meet."""
    try:
        with tempfile.TemporaryDirectory(prefix="octavo-"):
            return Finding("sockets", f"{tempfile.gettempdir()} can be written")
    except OSError as error:
        return Finding(
            "sockets", f"no temporary folder can be written: {error}", "problem", "set TMPDIR to one that can"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
