"""Names for what a full block holds: its tokens, chained to everything before them.

Two kinds. On the device a 64-bit hash finds candidates, and is computed for every block that fills. Between tiers a
block id means nothing, so content has a `Content`: a 128-bit digest that is taken for the content itself. It is
computed only for blocks that leave the device, and for prompts that are looked up below it.

The hash: a hit is always verified, token by token and parent by parent, so a collision costs time and never a wrong
answer; 64 bits of SipHash-1-3 are enough, and a client who does not know the process's key cannot aim for collisions.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Nobody can aim for a collision without it; and nothing is kept beyond this process.
_KEY = os.urandom(16)

ALL_BITS = 2**64 - 1


def new_hasher(mask: int = ALL_BITS) -> npt.NDArray[np.uint64]:
    """What the loops of `octavo.block_manager.loops` hash with: a key of its own, and the bits of a hash that are kept.

    Args:
        mask: Fewer bits make hashes collide, for tests.
    """
    return np.array([*np.frombuffer(os.urandom(16), dtype=np.uint64), mask], dtype=np.uint64)


class Content(NamedTuple):
    """What a full block holds, in whatever tier.

    Attributes:
        digest: Of all tokens from the namespace's beginning to this block's end; 16 bytes.
        parent: The digest of what comes before.
        namespace: The namespace's id.
    """

    digest: bytes
    parent: bytes
    namespace: int

    def followed_by(self, tokens: bytes) -> Content:
        """The content of the next block, which holds these tokens (int32 bytes)."""
        return Content(_digest(self.digest, tokens), self.digest, self.namespace)


def root_content(namespace: int) -> Content:
    """What a namespace's first blocks follow."""
    return Content(_digest(b"", namespace.to_bytes(8, "little", signed=True)), b"", namespace)


def _digest(parent: bytes, tokens: bytes) -> bytes:
    return blake2b(parent + tokens, digest_size=16, key=_KEY).digest()
