"""K and V of a chunk the way tile products want them, and the scratch memory in which that happens.

K as weights   a key is one output          V as weights   a key is one input
K, V as rows   16 beside each other, where they lie if blocks hold whole tiles, else copied
"""

from __future__ import annotations

import numpy as np
from numba import njit

from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import FAST
from octavo.kernels.cpu.kv_rows import numbers_of, scale_of
from octavo.kernels.cpu.packing import GROUP, OUTPUTS, groups_of
from octavo.kernels.cpu.team import share
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import (
    BLOCK,
    ROWS,
    array_at,
    columns_as_weights,
    fetch,
    put_scaled_run,
    rows_as_weights,
)

TILES = KEYS // ROWS  # of the rows of a chunk

_FLOATS, _LONGS = np.empty(0, np.float32), np.empty(0, np.int64)  # for their types
_ZERO = np.float32(0.0)
_compiled = njit(**FAST)


@_compiled
def padded_width(head_dim):
    """Numbers of a head as the tiles have it."""
    return (head_dim + BLOCK - 1) // BLOCK * BLOCK


@_compiled
def desk_bytes(head_dim):
    """What `workspace` takes at most for heads of so many numbers."""
    of_heads = padded_width(head_dim) * (8 * KEYS + 4 * TILE_ROWS + 8 * TILE_ROWS + 4)
    return of_heads + KEYS * TILE_ROWS * 12 + 40 * TILE_ROWS + 8 * 3 * TILES


@_compiled
def workspace(desk, width, kinds):
    """A thread's scratch memory: slices of arrays that nobody counts references to cost nothing.

    Args:
        desk: Where it begins.
        kinds: An array of the type that rows of activations have in tiles, and one of that of weights, K and V.

    Returns:
        copies of rows of K or V, and K or V as weights; queries; weights of keys; scores, and scores turned round; sums
        of values, and those of a chunk; the largest scores and the sums of weights, those of a chunk, and what sums are
        multiplied with; the keys that rows see; places of tiles of rows, three times; a row, zeros.
    """
    shapes = (KEYS * width,), (TILE_ROWS * width,), (TILE_ROWS * KEYS,)
    of_rows, of_weights = kinds
    rows = array_at(desk, shapes[0], of_weights)
    desk += of_weights.itemsize * KEYS * width
    packed = array_at(desk, shapes[0], of_weights)
    desk += of_weights.itemsize * KEYS * width
    q = array_at(desk, shapes[1], of_rows)
    desk += of_rows.itemsize * TILE_ROWS * width
    weights = array_at(desk, shapes[2], of_rows)
    desk += of_rows.itemsize * TILE_ROWS * KEYS
    scores = array_at(desk, shapes[2], _FLOATS)
    turned = array_at(desk + 4 * TILE_ROWS * KEYS, shapes[2], _FLOATS)
    desk += 8 * TILE_ROWS * KEYS
    total = array_at(desk, (TILE_ROWS, width), _FLOATS)
    part = array_at(desk + 4 * TILE_ROWS * width, shapes[1], _FLOATS)
    desk += 8 * TILE_ROWS * width
    sums = array_at(desk, (2, TILE_ROWS), _FLOATS)
    of_chunk = array_at(desk + 8 * TILE_ROWS, (2, TILE_ROWS), _FLOATS)
    factors = array_at(desk + 16 * TILE_ROWS, (2, TILE_ROWS), _FLOATS)
    ranges = array_at(desk + 24 * TILE_ROWS, (TILE_ROWS, 2), _LONGS)
    places = array_at(desk + 40 * TILE_ROWS, (3, TILES), _LONGS)
    row = array_at(desk + 40 * TILE_ROWS + 8 * 3 * TILES, (width,), _FLOATS)
    row[:] = _ZERO
    return rows, packed, q, weights, scores, turned, total, part, sums, of_chunk, factors, ranges, places, row


@kept(**FAST)
def pack_share(packed, kv, block_tables, seq_lens, cu_query_lens, first_chunk, window, desk, kinds, rank, size):
    """A rank's share of the chunks of K and V that prompts read.

    Args:
        packed: [chunks, KV heads, 2 (K, V), KEYS · padded width], flat, as weights are stored.
        kv: The same type or int8 [num_blocks, 2, KV heads, block_size, row width].
        first_chunk: int64 [num_seqs + 1], each sequence's first chunk, and their number at the end.
    """
    num_kv_heads, width = kv.shape[2], padded_width(numbers_of(kv))
    rows, _, _, _, _, _, _, _, _, _, _, _, places, _ = workspace(desk, width, kinds)
    seq = 0
    begin, end = share(first_chunk[-1] * num_kv_heads, rank, size)
    for unit in range(begin, end):
        chunk, head = unit // num_kv_heads, unit % num_kv_heads
        while first_chunk[seq + 1] <= chunk:
            seq += 1
        start = (chunk - first_chunk[seq]) * KEYS
        query_len = cu_query_lens[seq + 1] - cu_query_lens[seq]
        if window > 0 and start + KEYS <= seq_lens[seq] - query_len + 1 - window:
            continue  # behind the first query's window
        at = unit * 2 * KEYS * width
        count = min(KEYS, seq_lens[seq] - start)
        find_tiles(places[0], rows, kv, 0, block_tables[seq], head, start, count, width)
        pack_keys(packed, at, places[0], width, count)
        find_tiles(places[0], rows, kv, 1, block_tables[seq], head, start, count, width)
        pack_values(packed, at + KEYS * width, places[0], width, count)


@_compiled
def pack_keys(packed, at, places, width, count):
    """Keys, which `find_tiles` has found, as weights, as many groups as ``count`` keys take: a key is one output."""
    for tile in range(2 * groups_of(count)):
        rows = rows_at(places[tile], width, packed)
        to = at + tile // 2 * GROUP * width + tile % 2 * (ROWS * BLOCK)
        for block in range(width // BLOCK):
            columns_as_weights(packed, to + block * (2 * ROWS * BLOCK), rows, block * BLOCK, width)


@_compiled
def pack_values(packed, at, places, width, count):
    """Values, which `find_tiles` has found, as weights, for as many groups as ``count`` keys take: a value is one
    input."""
    for tile in range(2 * groups_of(count)):
        rows = rows_at(places[tile], width, packed)
        for panel in range(width // OUTPUTS):
            to = at + panel // 2 * (KEYS * GROUP) + tile // 2 * (2 * ROWS * BLOCK) + panel % 2 * (ROWS * BLOCK)
            to += tile % 2 * (ROWS // 2 * BLOCK)
            rows_as_weights(packed, to, rows, panel * OUTPUTS, width)


@_compiled
def rows_at(address, width, like):
    """16 rows that lie there."""
    return array_at(address, (ROWS * width,), like)


@_compiled
def find_tiles(places, rows, kv, part, table, head, start, count, width):
    """Where K (part 0) or V (1) of a chunk lies, 16 rows beside each other.

    They stay in their blocks if a block holds whole tiles of rows as they are wanted, and are copied otherwise.
    What a product reads beyond the sequence meets weights of zero, and zero times NaN would be NaN; so rows that are
    not all there are copied, too, with zeros for the others.

    Args:
        places: int64 [TILES], told the addresses of as many tiles as groups of keys take.
        rows: As stored, [KEYS · width], for copies.
    """
    in_place = _is_in_place(kv, width)
    for tile in range(2 * groups_of(count)):
        left = count - tile * ROWS
        if in_place and left >= ROWS:
            places[tile] = _address_of(kv, part, table, head, start + tile * ROWS)
        else:
            places[tile] = rows.ctypes.data + tile * ROWS * width * rows.itemsize
            _copy_rows(rows, tile * ROWS * width, kv, part, table, head, start + tile * ROWS, min(left, ROWS), width)


@_compiled
def expect_tiles(places, kv, part, table, head, start, count):
    """Where K (part 0) or V (1) of a chunk is going to be read, 16 rows beside each other if blocks hold as many.

    Args:
        places: int64 [TILES], told the addresses; beyond the last one, that of the first one.
    """
    for tile in range(TILES):
        position = start + tile * ROWS if tile * ROWS < count else start
        places[tile] = _address_of(kv, part, table, head, position)


@_compiled
def _is_in_place(kv, width):
    """Whether blocks hold whole tiles of rows of this width, in the model's type."""
    return kv.itemsize > 1 and kv.shape[3] % ROWS == 0 and kv.shape[4] == width


@_compiled
def _address_of(kv, part, table, head, position):
    """Of a row of K or V."""
    size = kv.shape[3]
    block, slot = np.int64(table[position // size]), position % size
    row = ((block * 2 + part) * kv.shape[2] + head) * size + slot
    return kv.ctypes.data + row * kv.shape[4] * kv.itemsize


@_compiled
def _copy_rows(rows, to, kv, part, table, head, position, count, width):
    """Up to 16 rows, and zeros for what is missing of them, one after the other."""
    head_dim = numbers_of(kv)
    if count < ROWS or width > head_dim:
        rows[to : to + ROWS * width] = 0
    # It walks the slots one by one: a division for each key would cost more than copying it.
    column, slot = position // kv.shape[3], position % kv.shape[3]
    for _ in range(count):
        row = kv[np.int64(table[column]), part, head, slot]
        scale = scale_of(row, head_dim)
        if head_dim % BLOCK == 0:
            for first in range(0, head_dim, BLOCK):
                put_scaled_run(rows, to + first, row, first, BLOCK, scale)
        else:
            for first in range(0, head_dim, OUTPUTS):
                put_scaled_run(rows, to + first, row, first, OUTPUTS, scale)
        to, slot = to + width, slot + 1
        if slot == kv.shape[3]:
            column, slot = column + 1, 0


@_compiled
def fetch_rows(kv, part, table, head, start, count):
    """Asks for K (part 0) or V (1) of a chunk."""
    column, slot, head_bytes = start // kv.shape[3], start % kv.shape[3], kv.itemsize * kv.shape[4]
    while count > 0:
        run = min(kv.shape[3] - slot, count)
        fetch(kv[np.int64(table[column]), part, head, slot], 0, run * head_bytes)
        column, slot, count = column + 1, 0, count - run
