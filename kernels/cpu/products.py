"""Products of tiles of activations with packed weights: on AMX tiles where the processor has them for the type, else in
vectors.

What multiplies is known when code is compiled. Rows of activations have the type that it wants: bfloat16 (uint16)
beside weights in bfloat16 for AMX, which multiplies nothing else, and for vectors that multiply pairs of it; else
float32, to which vectors widen weights in registers.

``configure(config, num_rows)`` shapes the calling thread's tiles for products of ``num_rows`` ≤ 16 rows a tile;
``config`` is uint8 [64], zeros, scratch. ``release()`` gives them back.

``multiply(sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles,
fetch)``: sums[r, o] = Σ over the inputs of x[r] · weights[o], for one or two tiles of rows and a group of 32 outputs.
Arrays are flat; where each operand begins is counted in numbers.

    sums                      float32; up to 16 · row_tiles rows of 2 panels of 16 are written
    row_step, panel_step      from a row of sums, or from a panel, to the next
    weights                   as stored, and as `octavo.kernels.cpu.packing.pack` lays out a group
    blocks                    inputs / 32
    x                         in the type of rows, in tiles: see `octavo.kernels.cpu.tiles`
    tile                      numbers from one tile of rows to the next
    count                     rows that are wanted, or more; there is memory for all of the tiles
    row_tiles                 1 or 2; a literal
    fetch                     1 if the weights come from memory and are to be fetched ahead, else 0; a literal

``multiply_few(sums, first_sum, row_step, weights, first_weight, blocks, x, first_x, tile, x_row, x_block)``, of AMX
alone: the same for two whole tiles of rows, which may lie anywhere, as stored, and the first 8 outputs of a group, in
the type of rows: operands have changed places. ``x_row`` and ``x_block`` are numbers from a row of x to the next, and
from a block of 32 inputs to the next. Nothing is fetched ahead.

``multiply_bytes(sums, numbers, first_weight, blocks, fixed, first_x, count, fetch)``: sums of the bytes of a tile of
rows with a group of weights in int8. What counts is 256 · those of high bytes + those of low ones.

    sums                      int32 [`int8.NUM_SUMS`]: those of high bytes, of both panels, then those of low ones
    numbers                   int8, as `octavo.kernels.cpu.int8.pack` lays out groups
    blocks                    inputs / 64
    fixed                     uint8, from `octavo.kernels.cpu.int8.fix_rows_with`, called with ``TAKES_BYTES``
    count, fetch              as above
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from octavo.kernels.cpu import amx, vector_products
from octavo.kernels.cpu.elementary import EXACT

_chosen = amx if amx.is_available() else vector_products

TAKES_BYTES = int(_chosen is amx)  # instead of 16 bits that are whole
_takes_bfloat = _chosen is amx or vector_products.takes_pairs(types.uint16)

CHOSEN = f"{_chosen.__name__} {_takes_bfloat}"  # for the key of compiled code

configure, release, multiply_bytes = _chosen.configure, _chosen.release, _chosen.multiply_bytes


def type_of_rows(number: np.dtype[Any]) -> np.dtype[Any]:
    """The type that rows of activations have in tiles, for weights that are stored in ``number``."""
    return np.dtype(np.uint16 if _takes_bfloat and number == np.uint16 else np.float32)


def few_rows(number: np.dtype[Any]) -> int:
    """Rows up to which a product with weights that would have to be packed for it is cheaper with the operands in each
    other's places, as `multiply_few` has it; 0 if it never is."""
    return 8 if _chosen is amx and type_of_rows(number) == np.uint16 else 0


def multiply(
    sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles, fetch
):
    """See above."""


@overload(multiply, prefer_literal=True, jit_options=EXACT)
def _multiply(
    sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles, fetch
):
    by = (_chosen if weights.dtype == x.dtype == types.uint16 else vector_products).multiply

    def product(
        sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count, row_tiles, fetch
    ):
        by(
            sums,
            first_sum,
            row_step,
            panel_step,
            weights,
            first_weight,
            blocks,
            x,
            first_x,
            tile,
            count,
            row_tiles,
            fetch,
        )

    return product
