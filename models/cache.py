"""The folder where Octavo keeps what it downloaded or converted, and the one way to add to it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import ConfigError

Progress = Callable[[str], None]
"""Tells the person at the terminal what is going on, in a few words."""

# Raised whenever the converter writes something else than before, so that nobody serves an old conversion.
LAYOUT = 1


def cache_folder() -> Path:
    """``$OCTAVO_CACHE``, else ``octavo`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if own := os.environ.get("OCTAVO_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo"


def cached(name: str) -> Path | None:
    """The cached folder of this name, if it was built."""
    folder = cache_folder() / f"v{LAYOUT}" / name
    return folder if folder.is_dir() else None


def build_once(name: str, build: Callable[[Path], None], *, progress: Progress) -> Path:
    """Returns the cached folder of this name, building it first if there is none.

    The folder appears complete or not at all: it is built beside its place and renamed. Of several processes that
    want it at once, one builds and the others wait; what a killed process left behind is swept by the next.

    Args:
        name: The folder's name in the cache.
        build: Fills the empty folder that it is given.
        progress: Told when another process is already building.

    Raises:
        ConfigError: The cache folder cannot be written.
    """
    target = cache_folder() / f"v{LAYOUT}" / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(
            target.with_name(f".{name}.lock"), lambda: progress(f"another process is preparing {name}; waiting")
        ):
            if not target.is_dir():
                _build(target, build)
    except PermissionError as error:
        raise ConfigError(
            f"cannot write to {target.parent} ({error}); set OCTAVO_CACHE to a folder that can"
        ) from error
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        build(staging)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    # The kernel drops the lock with the process that holds it, so a crash cannot leave it taken.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
