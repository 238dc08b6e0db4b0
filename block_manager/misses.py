"""Why a prefix look-up found no more than it did."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple


class MissReason(enum.StrEnum):
    """Why the block after a prefix hit was not found."""

    SHORTER_THAN_A_BLOCK = "shorter_than_a_block"  # nothing was missed: the rest fills no block, or must be computed
    NEVER_SEEN = "never_seen"
    EVICTED = "evicted"
    OTHER_SALT = "other_salt"
    CACHE_OFF = "cache_off"
    NOT_READ = "not_read"  # the request wants its prompt's log-probabilities, so all of it is computed

    __hash__ = str.__hash__  # that of an enumeration is computed in Python


class Miss(NamedTuple):
    """A reason, and how many seconds ago the block was evicted if that is the reason."""

    reason: MissReason
    seconds_ago: float | None = None


NEVER_SEEN = Miss(MissReason.NEVER_SEEN)


class EvictionHistory:
    """Remembers the latest evictions by the blocks' hashes, to explain misses.

    Args:
        clock: Seconds.
    """

    _CAPACITY = 16_384

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[int, float] = {}  # oldest first

    def add(self, keys: Iterable[int]) -> None:
        """Notes that blocks of these hashes are evicted now."""
        now = self._clock()
        for key in keys:
            self._times.pop(key, None)
            self._times[key] = now
            if len(self._times) > self._CAPACITY:
                del self._times[next(iter(self._times))]

    def seconds_since(self, key: int) -> float | None:
        """How long ago a block of this hash was evicted; None if that is not remembered."""
        evicted = self._times.get(key)
        return None if evicted is None else self._clock() - evicted
