"""All layers of a decoder in one compiled call.

A decode step of a small model is bound by what lies between its kernels: some hundred calls and as many forks and
joins. Here a team of threads goes through the layers by itself (`octavo.kernels.cpu.team`); a line is a stage, and the
team waits for each other after it:

    norm of each row                                         rows
    q, k, v = their projection                               groups of outputs
    norm and rotation of heads, K and V to their slots       rows
    decode attention: chunks of each sequence                items;  K and V of prompt chunks are packed meanwhile
    decode attention: merge;  attention of prompt chunks     sequences, items
    x += output projection                                   groups of outputs
    norm of each row                                         rows
    gated = act(gate) · up                                   groups of outputs
    x += down projection                                     groups of outputs

The residual stream x, sums and all that is computed row by row are float32. Weights, K and V are in the model's type;
what is multiplied with them is in that which products want (`octavo.kernels.cpu.products.type_of_rows`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types

from octavo.config import KV_SCALE_BYTES
from octavo.kernels.cpu.bits import NUMBA_TYPES
from octavo.kernels.cpu.disk_cache import kept, kept_callback
from octavo.kernels.cpu.elementary import FAST
from octavo.kernels.cpu.int8 import NUM_SUMS, group_bytes
from octavo.kernels.cpu.kv_rows import put_row
from octavo.kernels.cpu.linear import PANEL, ROW_BLOCK, add_product, gated_product, room_bytes, store_product
from octavo.kernels.cpu.packing import GROUP, groups_of
from octavo.kernels.cpu.products import configure, few_rows, release, type_of_rows
from octavo.kernels.cpu.team import WORDS, barrier, caller, join, share
from octavo.kernels.cpu.tile_decodes import attend_decodes_with, decode_units, merge_decodes
from octavo.kernels.cpu.tile_layout import desk_bytes, pack_share, padded_width
from octavo.kernels.cpu.tile_prompts import attend_prompts
from octavo.kernels.cpu.tile_softmax import KEYS, TILE_ROWS
from octavo.kernels.cpu.tiles import (
    ACTIVATIONS,
    ROWS,
    add_normed,
    array_at,
    norm_head,
    norm_row,
    rotate_head,
    tiled_size,
)

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float32]

_LINE = 64  # bytes of a cache line

# Where a layer's weights lie: columns of the table of addresses. 0 is the address of what a model lacks.
# Those of a projection in int8 have scales; in bfloat16 they have none.
(
    QKV, QKV_SCALES, QKV_BIAS, OUTPUT, OUTPUT_SCALES, OUTPUT_BIAS,
    GATE_UP, GATE_UP_SCALES, GATE_UP_BIAS, DOWN, DOWN_SCALES, DOWN_BIAS,
    ATTENTION_NORM, MLP_NORM, HEAD_NORM, ATTENTION_POST_NORM, MLP_POST_NORM, ROTARY, WINDOW, NUM_FIELDS,
) = range(20)  # fmt: skip
SCALES, BIAS = 1, 2  # after a projection's weights

# Where a step's tensors lie, for each layer.
KV_CACHE, BLOCK_TABLES, SLOTS, NUM_PLACES = range(4)

# What the threads of a step are given: addresses first, then numbers.
(
    X, LAYERS, PLACES, POSITIONS, SEQ_LENS, CU_QUERY_LENS, FIRST_PART, ENTRIES, UNITS, FIRST_CHUNK, FIRST_ITEM,
    SCALARS, CREW, COUNTERS, NORMED, ATTENDED, GATED, QKV_ROWS, BRANCH, PARTS, PART_SUMS, PACKED, DESKS, ROOMS,
    NUM_WORKERS, NUM_TOKENS, HIDDEN, INTERMEDIATE, NUM_LAYERS, NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE,
    NUM_SEQS, NUM_DECODES, NUM_COLUMNS, NUM_PARTS, NUM_UNITS, NUM_ENTRIES,
) = range(38)  # fmt: skip

# For their types.
_FLOATS = np.empty(0, np.float32)
_INTS, _LONGS = np.empty(0, np.int32), np.empty(0, np.int64)
_NUMBERS, _BYTES = np.empty(0, np.int8), np.empty(0, np.uint8)
_compiled = njit(**FAST)


class Stack:
    """All layers of one model.

    Args:
        layers: int64 [num_layers, NUM_FIELDS], what is where; the caller keeps it alive.
        dtype: Of weights, K and V.
        num_q_heads, num_kv_heads, head_dim: Heads; head_dim is a multiple of 16.
        hidden, intermediate: Widths, multiples of 32.
        activation: Of the MLP; see `octavo.kernels.cpu.tiles.ACTIVATIONS`.
        scale: Factor on the scores. softcap: bound on their magnitude; 0 means none. eps: of the norms.
    """

    def __init__(
        self,
        layers: IntArray,
        dtype: torch.dtype,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        hidden: int,
        intermediate: int,
        activation: str,
        scale: float,
        softcap: float,
        eps: float,
    ) -> None:
        self._group, self._num_kv_heads, self._head_dim = num_q_heads // num_kv_heads, num_kv_heads, head_dim
        self._hidden, self._intermediate = hidden, intermediate
        self._layers = layers
        self._number = np.dtype(str(NUMBA_TYPES[dtype]))
        self._scalars = np.array([scale, softcap, eps], dtype=np.float32)
        self._activation = ACTIVATIONS.index(activation)
        self._widest = max(hidden, intermediate, num_q_heads * head_dim)
        self._scratch = np.empty(0, dtype=np.uint8)

    def compile(self, *, int8_kv: bool) -> int:
        """Compiles the code for these heads, or loads it, unless that was done before; returns its address."""
        address: int = _share_of(self._group, self._head_dim, self._activation, self._number, int8_kv).address
        return address

    def run(
        self,
        x: FloatArray,
        places: IntArray,
        kv_shape: tuple[int, ...],
        int8_kv: bool,
        tables: IntArray,
        positions: IntArray,
        seq_lens: IntArray,
        cu_query_lens: IntArray,
        num_decodes: int,
        num_workers: int,
    ) -> None:
        """Runs a step.

        Args:
            x: float32 [num_tokens, hidden], contiguous; the residual stream, changed in place.
            places: int64 [num_layers, NUM_PLACES], addresses of the layers' KV cache (contiguous), block
                tables (int32 [num_seqs, num_columns], contiguous) and slots (int64 [num_tokens]).
            kv_shape: Of a layer's cache. int8_kv: whether it is in int8, and not in the model's type.
            tables: The block tables of a layer without a window, if there is one.
            positions, seq_lens, cu_query_lens, num_decodes: As in `octavo.kernels.attention.PagedBatch`.
            num_workers: Threads.
        """
        num_tokens, kv_heads, head_dim = len(x), self._num_kv_heads, self._head_dim
        chunk_lens, query_lens = seq_lens[num_decodes:], np.diff(cu_query_lens[num_decodes:])
        first_chunk = _running_total(-(-chunk_lens // KEYS))
        first_item = _running_total(-(-query_lens * self._group // TILE_ROWS) * kv_heads)
        first_part = _running_total(-(-seq_lens[:num_decodes] // KEYS))
        entries, units = decode_units(tables[:num_decodes], seq_lens[:num_decodes], kv_shape[3], self._group)
        num_parts, width = int(first_part[-1]), padded_width(head_dim)
        crew, counters = np.zeros(WORDS, dtype=np.int64), np.zeros(2 * len(self._layers), dtype=np.int64)
        num_q_heads = self._group * kv_heads
        row_bytes = type_of_rows(self._number).itemsize
        scratch = self._reserve(
            row_bytes * tiled_size(num_tokens, self._hidden),
            row_bytes * tiled_size(num_tokens, num_q_heads * head_dim),
            row_bytes * tiled_size(num_tokens, self._intermediate),
            4 * num_tokens * (num_q_heads + 2 * kv_heads) * head_dim,
            4 * num_tokens * self._hidden,
            4 * num_parts * num_q_heads * width,
            4 * num_parts * num_q_heads * 2,
            self._number.itemsize * int(first_chunk[-1]) * kv_heads * 2 * KEYS * width,
            num_workers * desk_bytes(head_dim),
            num_workers * room_bytes(num_tokens, self._widest) if self._layers[0, QKV_SCALES] else 0,
        )
        arrays = (
            x, self._layers, places, positions, seq_lens, cu_query_lens, first_part, entries, units,
            first_chunk, first_item, self._scalars, crew, counters,
        )  # fmt: skip
        frame = np.array(
            [
                *(array.ctypes.data for array in arrays), *scratch,
                num_workers, num_tokens, self._hidden, self._intermediate, len(self._layers), kv_shape[0], kv_heads,
                kv_shape[3], len(seq_lens), num_decodes, tables.shape[1], num_parts, len(units),
            ],
            dtype=np.int64,
        )  # fmt: skip
        caller()(self.compile(int8_kv=int8_kv), frame.ctypes.data, num_workers)

    def _reserve(self, *sizes: int) -> list[int]:
        """Addresses of so many bytes each, on cache lines of their own; the next step has the same memory."""
        ends = np.cumsum([-(-size // _LINE) * _LINE for size in sizes])
        if len(self._scratch) < ends[-1] + _LINE:
            self._scratch = np.empty(int(ends[-1]) + _LINE, dtype=np.uint8)
        begin = -(-self._scratch.ctypes.data // _LINE) * _LINE
        return [begin, *(begin + int(end) for end in ends[:-1])]


def _running_total(counts: IntArray) -> IntArray:
    """int64 [n + 1]: the sum of all counts before each, and of all at the end."""
    total = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=total[1:])
    return total


@cache
def _share_of(group: int, head_dim: int, activation: int, number: np.dtype[Any], int8_kv: bool):  # noqa: PLR0915 - a table of arguments and a list of stages
    """A thread's share of all layers, for models of one shape of heads: a C function of a frame's address."""
    of_rows, of_weights = np.empty(0, type_of_rows(number)), np.empty(0, number)
    attend_decodes = attend_decodes_with(few_rows(number))
    stored, row_width = (_NUMBERS, head_dim + KV_SCALE_BYTES) if int8_kv else (of_weights, head_dim)

    @kept_callback(types.void(types.int64), **FAST)
    def go_through(address):  # noqa: PLR0915
        kinds = of_rows, of_weights
        frame = array_at(address, (NUM_ENTRIES,), _LONGS)
        crew = array_at(frame[CREW], (WORDS,), _LONGS)
        rank, size = join(crew, frame[NUM_WORKERS])
        if rank < 0:
            return
        num_tokens, hidden, intermediate = frame[NUM_TOKENS], frame[HIDDEN], frame[INTERMEDIATE]
        num_seqs, num_decodes, num_kv_heads = frame[NUM_SEQS], frame[NUM_DECODES], frame[NUM_KV_HEADS]
        num_heads, q_size = (group + 2) * num_kv_heads, group * num_kv_heads * head_dim
        qkv_size = num_heads * head_dim
        scale, softcap, eps = array_at(frame[SCALARS], (3,), _FLOATS)
        x = array_at(frame[X], (num_tokens, hidden), _FLOATS)
        layers = array_at(frame[LAYERS], (frame[NUM_LAYERS], NUM_FIELDS), _LONGS)
        places = array_at(frame[PLACES], (frame[NUM_LAYERS], NUM_PLACES), _LONGS)
        positions = array_at(frame[POSITIONS], (num_tokens,), _LONGS)
        seq_lens = array_at(frame[SEQ_LENS], (num_seqs,), _INTS)
        cu_query_lens = array_at(frame[CU_QUERY_LENS], (num_seqs + 1,), _INTS)
        first_chunk = array_at(frame[FIRST_CHUNK], (num_seqs - num_decodes + 1,), _LONGS)
        first_item = array_at(frame[FIRST_ITEM], (num_seqs - num_decodes + 1,), _LONGS)
        first_part = array_at(frame[FIRST_PART], (num_decodes + 1,), _LONGS)
        entries = array_at(frame[ENTRIES], (frame[NUM_PARTS], 2), _INTS)
        units = array_at(frame[UNITS], (frame[NUM_UNITS],), _LONGS)
        counters = array_at(frame[COUNTERS], (2 * frame[NUM_LAYERS],), _LONGS)
        normed = array_at(frame[NORMED], (tiled_size(num_tokens, hidden),), of_rows)
        attended = array_at(frame[ATTENDED], (tiled_size(num_tokens, q_size),), of_rows)
        gated = array_at(frame[GATED], (tiled_size(num_tokens, intermediate),), of_rows)
        qkv = array_at(frame[QKV_ROWS], (num_tokens, num_heads, head_dim), _FLOATS)
        qkv_rows = array_at(frame[QKV_ROWS], (num_tokens * qkv_size,), _FLOATS)
        branch = array_at(frame[BRANCH], (num_tokens, hidden), _FLOATS)
        width = padded_width(head_dim)
        parts = array_at(frame[PARTS], (frame[NUM_PARTS], num_kv_heads, group, width), _FLOATS)
        part_sums = array_at(frame[PART_SUMS], (frame[NUM_PARTS], num_kv_heads, 2, group), _FLOATS)
        num_packed = first_chunk[-1] * num_kv_heads * 2 * KEYS * width
        packed = array_at(frame[PACKED], (num_packed,), of_weights)
        kv_shape = (frame[NUM_BLOCKS], 2, num_kv_heads, frame[BLOCK_SIZE], row_width)
        desk = frame[DESKS] + rank * desk_bytes(head_dim)
        sums, row = np.empty(2 * PANEL, np.float32), np.empty(hidden, np.float32)
        room_size = room_bytes(num_tokens, max(hidden, intermediate, q_size))
        room = array_at(frame[ROOMS] + rank * room_size, (room_size,), _BYTES)
        scratch = room, np.empty(ROW_BLOCK, np.float32), np.empty(NUM_SUMS, np.int32)
        config = np.zeros(64, np.uint8)
        configure(config, min(num_tokens, ROWS))
        for layer in range(layers.shape[0]):
            weights = layers[layer]
            norm_share(normed, x, weights[ATTENTION_NORM], eps, rank, size)
            barrier(crew, size)
            matrix, bias = (
                matrix_at(weights, QKV, qkv_size, hidden, of_weights, scratch),
                vector_at(weights[QKV_BIAS], qkv_size),
            )
            store_product(
                (qkv_rows, qkv_size), normed, num_tokens, hidden, matrix, groups_of(qkv_size), bias, rank, size, sums
            )
            barrier(crew, size)
            kv = array_at(places[layer, KV_CACHE], kv_shape, stored)
            slots = array_at(places[layer, SLOTS], (num_tokens,), _LONGS)
            place_share(qkv, kv, positions, slots, weights, eps, rank, size)
            barrier(crew, size)
            tables = array_at(places[layer, BLOCK_TABLES], (num_seqs, frame[NUM_COLUMNS]), _INTS)
            window, num_q_heads = weights[WINDOW], group * num_kv_heads
            lens, starts = seq_lens[num_decodes:], cu_query_lens[num_decodes:]
            configure(config, ROWS)
            attend_decodes(
                parts, part_sums, qkv, kv, tables, seq_lens, entries, units, first_part, counters, 2 * layer,
                num_q_heads, scale, window, softcap, desk, kinds, size,
            )  # fmt: skip
            pack_share(packed, kv, tables[num_decodes:], lens, starts, first_chunk, window, desk, kinds, rank, size)
            barrier(crew, size)
            merge_decodes(attended, parts, part_sums, first_part, num_decodes, head_dim, desk, kinds, rank, size)
            attend_prompts(
                attended, qkv, packed, first_chunk, first_item, counters, 2 * layer + 1, lens, starts,
                num_q_heads, num_kv_heads, scale, window, softcap, desk, kinds,
            )  # fmt: skip
            configure(config, min(num_tokens, ROWS))
            barrier(crew, size)
            matrix, bias = (
                matrix_at(weights, OUTPUT, hidden, q_size, of_weights, scratch),
                vector_at(weights[OUTPUT_BIAS], hidden),
            )
            add_branch(
                x, branch, attended, q_size, matrix, bias, weights[ATTENTION_POST_NORM], eps, row,
                crew, rank, size, sums,
            )  # fmt: skip
            norm_share(normed, x, weights[MLP_NORM], eps, rank, size)
            barrier(crew, size)
            matrix = matrix_at(weights, GATE_UP, 2 * intermediate, hidden, of_weights, scratch)
            bias = vector_at(weights[GATE_UP_BIAS], 2 * intermediate)
            gated_product(
                (gated, intermediate, activation), normed, num_tokens, hidden, matrix, groups_of(2 * intermediate),
                bias, rank, size, sums,
            )  # fmt: skip
            barrier(crew, size)
            matrix, bias = (
                matrix_at(weights, DOWN, hidden, intermediate, of_weights, scratch),
                vector_at(weights[DOWN_BIAS], hidden),
            )
            add_branch(
                x, branch, gated, intermediate, matrix, bias, weights[MLP_POST_NORM], eps, row,
                crew, rank, size, sums,
            )  # fmt: skip
        release()

    return go_through


@_compiled
def matrix_at(weights, field, num_outputs, num_inputs, like, scratch):
    """A projection's packed weights as `octavo.kernels.cpu.linear.product_with` wants them.

    Args:
        weights: The layer's addresses; ``field`` says which.
        like: An array of the model's type. scratch: What products with weights in int8 need.
    """
    groups, scales = groups_of(num_outputs), weights[field + SCALES]
    num_words = groups * GROUP * num_inputs if scales == 0 else 0
    num_bytes = groups * group_bytes(num_inputs) if scales != 0 else 0
    return (
        array_at(weights[field], (num_words,), like),
        array_at(weights[field], (num_bytes,), _NUMBERS),
        vector_at(scales, num_outputs),
        scratch[0],
        scratch[1],
        scratch[2],
    )


@_compiled
def vector_at(address, length):
    """float32 [length]; empty if the model has none."""
    return array_at(address, (length if address != 0 else 0,), _FLOATS)


@kept(**FAST)
def norm_share(normed, x, weight, eps, rank, size):
    """A rank's share of the rows of x, normalised, to tiles."""
    weight = vector_at(weight, x.shape[1])
    begin, end = share(x.shape[0], rank, size)
    for token in range(begin, end):
        norm_row(normed, token, x[token], weight, eps)


@kept(**FAST)
def place_share(qkv, kv, positions, slots, weights, eps, rank, size):
    """A rank's share of the tokens: norms and rotates query and key heads, and writes K and V to their slots.

    Args:
        qkv: float32 [num_tokens, heads, head_dim], changed in place; first the query heads, then K, then V.
        kv: The layer's cache. positions, slots: int64 [num_tokens]. weights: the layer's addresses.
    """
    num_heads, head_dim = qkv.shape[1:]
    num_kv_heads, block_size = kv.shape[2:4]
    num_rotated = num_heads - num_kv_heads
    num_q_heads = num_rotated - num_kv_heads
    norms = vector_at(weights[HEAD_NORM], num_rotated * head_dim)
    begin, end = share(qkv.shape[0], rank, size)
    for token in range(begin, end):
        angles = vector_at(weights[ROTARY] + positions[token] * head_dim * 4, head_dim)
        for head in range(num_rotated):
            if norms.shape[0] > 0:
                norm_head(qkv[token, head], norms[head * head_dim : (head + 1) * head_dim], eps)
            rotate_head(qkv[token, head], angles)
        slot = slots[token]
        if slot >= 0:
            for head in range(num_kv_heads):
                for part in range(2):
                    source = qkv[token, num_q_heads + part * num_kv_heads + head]
                    put_row(kv[slot // block_size, part, head, slot % block_size], source)


@kept(**FAST)
def add_branch(x, branch, tiled, width, matrix, bias, post_norm, eps, row, crew, rank, size, sums):
    """Adds a branch's last projection to the residual stream, through its norm if it has one; ends with a barrier."""
    num_tokens, hidden = x.shape
    if post_norm == 0:
        add_product(
            (x.reshape(-1), hidden), tiled, num_tokens, width, matrix, groups_of(hidden), bias, rank, size, sums
        )
        barrier(crew, size)
        return
    store_product(
        (branch.reshape(-1), hidden), tiled, num_tokens, width, matrix, groups_of(hidden), bias, rank, size, sums
    )
    barrier(crew, size)
    weight = vector_at(post_norm, hidden)
    begin, end = share(num_tokens, rank, size)
    for token in range(begin, end):
        add_normed(x[token], branch[token], weight, eps, row)
    barrier(crew, size)
