"""The content hash of a full block: its tokens, chained to everything before them.

The hash only finds candidates. A hit is always verified, token by token and parent by parent, so a collision
costs a miss and never a wrong answer; 64 bits of Python's keyed SipHash are enough, cost about 0.1 µs, and a
client who does not know the process's key cannot aim for collisions.
"""

from __future__ import annotations

from collections.abc import Callable

# (hash of the parent block or of the namespace, the block's tokens as int32 bytes) -> hash
ChainHash = Callable[[int, bytes], int]


def chain_hash(parent: int, tokens: bytes) -> int:
    """Hash of a block given its parent's hash and its own tokens (int32, little or big endian alike)."""
    return hash((parent, tokens))
