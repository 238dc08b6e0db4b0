"""Tile shapes: what one program of a kernel holds on chip.

Decode is bound by bytes in flight (32–64 KiB of K and V per SM hide HBM's latency), prefill by the tensor cores.
The entries are for 16-bit K and V on Hopper; 32-bit elements halve the keys per tile, which keeps the bytes equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# tl.dot multiplies nothing smaller than 16 × 16.
MIN_DOT = 16


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut and launched.

    Attributes:
        rows: Rows of Q in one program: query tokens × the query heads of one KV head. Decode derives its own.
        keys: Keys per iteration.
        warps: Warps of one program.
        stages: Iterations whose loads are in flight.
    """

    rows: int
    keys: int
    warps: int
    stages: int


#          head_dim up to:  rows  keys  warps  stages
DECODE = {
    64:  Tile(rows=16, keys=128, warps=4, stages=3),
    128: Tile(rows=16, keys=64, warps=4, stages=3),
    256: Tile(rows=16, keys=32, warps=4, stages=3),
    512: Tile(rows=16, keys=16, warps=4, stages=2),
}  # fmt: skip
PREFILL = {
    64:  Tile(rows=128, keys=128, warps=8, stages=2),
    128: Tile(rows=128, keys=64, warps=8, stages=3),
    256: Tile(rows=64, keys=32, warps=4, stages=2),
    512: Tile(rows=32, keys=16, warps=4, stages=2),
}  # fmt: skip


def decode_tile(head_dim: int, element_size: int, group: int) -> Tile:
    """The tile for one query token per sequence.

    Args:
        head_dim: Elements of one head.
        element_size: Bytes of one element of K and V.
        group: Query heads that share a KV head; they are the rows.
    """
    tile = _fit(DECODE, head_dim, element_size)
    return replace(tile, rows=padded(group))


def prefill_tile(head_dim: int, element_size: int, group: int, max_query_len: int) -> Tile:
    """The tile for a chunk of queries, no taller than the longest chunk and at least one token tall."""
    tile = _fit(PREFILL, head_dim, element_size)
    return replace(tile, rows=max(padded(group), min(tile.rows, padded(max_query_len * group))))


def padded(size: int) -> int:
    """The next power of two that `tl.dot` accepts."""
    return max(MIN_DOT, 1 << (size - 1).bit_length())


def _fit(table: dict[int, Tile], head_dim: int, element_size: int) -> Tile:
    largest = max(table)
    if head_dim > largest:
        raise ValueError(f"head_dim {head_dim} is larger than the {largest} that the triton kernels are tiled for")
    tile = next(tile for limit, tile in table.items() if head_dim <= limit)
    return tile if element_size <= 2 else replace(tile, keys=max(MIN_DOT, tile.keys // 2))
