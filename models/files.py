"""What weight files of every format have in common."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import WeightsError

_LFS_MARK = b"version https://git-lfs"


def refuse_lfs_pointer(file: Path) -> None:
    """Checks that a file is not the 135-byte stand-in that a clone without Git LFS leaves in its place.

    Raises:
        WeightsError: It is, or it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_MARK))
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
    if start == _LFS_MARK:
        raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
