"""Why a prefix look-up found no more than it did."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


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
NOT_READ = Miss(MissReason.NOT_READ)


class EvictionHistory:
    """Remembers late evictions by the blocks' hashes, to explain misses.

    Each hash has one place in a table, where the latest eviction takes that of an earlier one: of ``n`` later ones,
    one in `SLOTS` is in the same place. A pool that is full gives a block up for each that it takes, so this costs
    every new prompt something, and may not cost more the more there is to remember.

    Args:
        clock: Seconds.
    """

    SLOTS = 1 << 17

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Mapped lazily: memory is taken as evictions are noted.
        self._hashes: npt.NDArray[np.int64] = np.zeros(self.SLOTS, dtype=np.int64)
        self._times: npt.NDArray[np.float64] = np.zeros(self.SLOTS, dtype=np.float64)

    def add(self, hashes: npt.NDArray[np.int64]) -> None:
        """Notes that blocks of these hashes, int64 ``[n]``, are evicted now."""
        places = hashes & (self.SLOTS - 1)
        self._hashes[places] = hashes
        self._times[places] = self._clock()

    def seconds_since(self, hashed: int) -> float | None:
        """How long ago a block of this hash was evicted; None if that is not remembered."""
        place = hashed & (self.SLOTS - 1)
        if not hashed or self._hashes.item(place) != hashed:
            return None
        return self._clock() - self._times.item(place)
