"""The tiers below the device: host memory, and a disk under it.

    DEVICE   blocks that the model reads        block_manager.pool, one table entry per block
      │ ▲
      ▼ │    swap out / sink · swap in / promote
    HOST     blocks in (pinned) host memory
      │ ▲
      ▼ │
    DISK     blocks in a file, checksummed

Everything here is ids: `octavo.engine.kv_cache` moves the bytes.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Tier(enum.IntEnum):
    """Where a block lies; the higher the number, the further from the model."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Transfer(NamedTuple):
    """A block whose KV has to be copied from one tier to another. Ids start at 1 in every tier."""

    source: Tier
    source_block: int
    target: Tier
    target_block: int


class TransferTiming(NamedTuple):
    """How long it took to copy some blocks in one direction."""

    source: Tier
    target: Tier
    num_blocks: int
    seconds: float


class TransferOutcome(NamedTuple):
    """What came of a step's transfers.

    Attributes:
        lost: Those whose content did not arrive intact (a full disk, a damaged file); their target holds garbage.
        timings: What was measured.
    """

    lost: tuple[Transfer, ...] = ()
    timings: tuple[TransferTiming, ...] = ()
