"""Streams: one number for a request's key and a sequence's index, as the token messages carry it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.scheduler.sampling import MAX_N


def stream_of(key: int, index: int) -> int:
    """Packs a request's key and a sequence's index into one integer."""
    return key * MAX_N + index


def keys_of(streams: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The keys of many streams."""
    return streams // MAX_N


def split_stream(stream: int) -> tuple[int, int]:
    """The inverse of `stream_of`: (key, index)."""
    return divmod(stream, MAX_N)
