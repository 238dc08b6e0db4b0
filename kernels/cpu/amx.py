"""Products of tiles on Intel's AMX, in bfloat16 and of bytes.

    product    rows of x (≤ 16 × 32)  ·  tile of weights (32 × 16)  →  float32 sums (≤ 16 × 16), held over all inputs

Sums run over the inputs in one order whatever the number of rows, so a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.memory import AHEAD, LINE, emit_address, emit_fetch
from octavo.kernels.cpu.packing import PANELS
from octavo.kernels.cpu.tiles import BLOCK, ROWS

# Tiles of rows are fetched so many blocks before they are multiplied.
_ROWS_AHEAD = 3

# Linux gives a process the tiles' registers when it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_BYTE, _INT64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_POINTER = _BYTE.as_pointer()
_TILE_BYTES = 2 * BLOCK * ROWS


@cache
def is_available() -> bool:
    """Whether this machine has AMX, and this process may use it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    if not {"amx_tile", "amx_bf16", "amx_int8"} <= set(flags.split()):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


@njit(**EXACT)
def configure(config, num_rows):
    """Shapes the calling thread's tiles: 0 to 3 hold sums, 4 and 5 rows of x, all of ``num_rows`` ≤ 16 rows; 6 and 7
    hold weights.

    Args:
        config: uint8 [64], zeros, scratch.
    """
    config[0] = 1
    for tile in range(8):
        config[16 + 2 * tile] = LINE  # bytes of a row
        config[48 + tile] = num_rows if tile < 6 else BLOCK // 2  # rows
    _load_config(config)


def _emit(builder, name, argument_types, arguments):
    function_type = ir.FunctionType(_VOID, argument_types)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
    builder.call(function, arguments)


@intrinsic
def _load_config(typingctx, config):
    """Loads 64 bytes that say how large each tile is."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        _emit(builder, "ldtilecfg", [_POINTER], [builder.bitcast(array.data, _POINTER)])
        return context.get_dummy_value()

    return types.void(config), codegen


@intrinsic
def release(typingctx):
    """Gives the tiles back: a thread that holds some is slower to switch from."""

    def codegen(context, builder, signature, args):
        _emit(builder, "tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def multiply(
    typingctx, sums, first_sum, row_step, panel_step, weights, first_weight, blocks, x, first_x, tile, count,
    row_tiles, fetch,
):  # fmt: skip
    """See `octavo.kernels.cpu.products`; how many rows count is what the tiles were configured for."""
    if not (isinstance(row_tiles, types.IntegerLiteral) and isinstance(fetch, types.IntegerLiteral)):
        return None

    def codegen(context, builder, signature, args):
        steps = _INT64(LINE), _INT64(_TILE_BYTES)
        _emit_multiply(context, builder, signature, args, row_tiles.literal_value, fetch.literal_value, steps)
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, size, size, size, weights, size, size, x, size, size, size, row_tiles, fetch), codegen


@intrinsic
def multiply_few(typingctx, sums, first_sum, row_step, weights, first_weight, blocks, x, first_x, tile, x_row, x_block):
    """See `octavo.kernels.cpu.products`; sums of the first 16 outputs are written."""

    def codegen(context, builder, signature, args):
        steps = builder.mul(args[9], _INT64(2)), builder.mul(args[10], _INT64(2))
        panel_step = _INT64(0)  # there is one panel
        args = [*args[:3], panel_step, *args[3:9]]
        kinds = [*signature.args[:3], types.intp, *signature.args[3:9]]
        _emit_multiply(context, builder, types.void(*kinds), args, 2, None, steps, panels=1)
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, size, size, weights, size, size, x, size, size, size, size), codegen


def _emit_multiply(context, builder, signature, args, row_tiles, fetch, steps, panels=PANELS):
    """Emits a product; see `multiply`.

    Args:
        fetch: As there; None for no fetching at all.
        steps: From a row of x to the next and from a block of 32 inputs to the next, in bytes.
    """
    total, weight, rows = (emit_address(context, builder, signature, args, i) for i in (0, 4, 7))

    def times(value, number):
        return builder.mul(value, _INT64(number))

    for i in range(row_tiles):
        for j in range(panels):
            _emit(builder, "tilezero", [_BYTE], [_BYTE(i * PANELS + j)])
    with cgutils.for_range(builder, args[6]) as loop:
        for i in range(row_tiles):
            offset = builder.add(times(args[9], 2 * i), builder.mul(loop.index, steps[1]))
            _emit_load(builder, 4 + i, builder.gep(rows, [offset]), steps[0])
            if row_tiles == 2 and fetch == 0:
                ahead = builder.add(offset, _INT64(_ROWS_AHEAD * _TILE_BYTES))
                emit_fetch(builder, builder.gep(rows, [ahead]), _TILE_BYTES)
        offset = times(loop.index, PANELS * _TILE_BYTES)
        if fetch:
            ahead = builder.add(offset, _INT64(AHEAD))
            emit_fetch(builder, builder.gep(weight, [ahead]), PANELS * _TILE_BYTES)
        for j in range(panels):
            pointer = builder.gep(weight, [builder.add(offset, _INT64(j * _TILE_BYTES))])
            _emit_load(builder, 6 + j, pointer, _INT64(LINE))
            for i in range(row_tiles):
                names = [_BYTE(i * PANELS + j), _BYTE(4 + i), _BYTE(6 + j)]
                _emit(builder, "tdpbf16ps", [_BYTE] * 3, names)
    for i in range(row_tiles):
        for j in range(panels):
            offset = builder.add(times(args[2], 4 * i * ROWS), times(args[3], 4 * j))
            arguments = [_BYTE(i * PANELS + j), builder.gep(total, [offset]), times(args[2], 4)]
            _emit(builder, "tilestored64", [_BYTE, _POINTER, _INT64], arguments)


@intrinsic(prefer_literal=True)
def multiply_bytes(typingctx, sums, numbers, first_weight, blocks, fixed, first_x, count, fetch):
    """See `octavo.kernels.cpu.products`; all of the tile's rows are computed."""
    if not isinstance(fetch, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, args):
        _emit_multiply_bytes(context, builder, signature, args, fetch=bool(fetch.literal_value))
        return context.get_dummy_value()

    size = types.intp
    return types.void(sums, numbers, size, size, fixed, size, size, fetch), codegen


def _emit_multiply_bytes(context, builder, signature, args, *, fetch):
    """Emits a product of bytes; tiles 4 and 5 hold high and low bytes of the rows."""
    sums = builder.bitcast(context.make_array(signature.args[0])(context, builder, args[0]).data, _POINTER)
    weight, rows = (emit_address(context, builder, signature, args, i) for i in (1, 4))
    for tile in range(2 * PANELS):
        _emit(builder, "tilezero", [_BYTE], [_BYTE(tile)])
    with cgutils.for_range(builder, args[3]) as loop:
        offset = builder.mul(loop.index, _INT64(2 * _TILE_BYTES))
        for part in range(2):
            pointer = builder.gep(rows, [builder.add(offset, _INT64(part * _TILE_BYTES))])
            _emit_load(builder, 4 + part, pointer, _INT64(LINE))
        if fetch:
            ahead = builder.add(offset, _INT64(AHEAD))
            emit_fetch(builder, builder.gep(weight, [ahead]), PANELS * _TILE_BYTES)
        else:
            ahead = builder.add(offset, _INT64(_ROWS_AHEAD * 2 * _TILE_BYTES))
            emit_fetch(builder, builder.gep(rows, [ahead]), 2 * _TILE_BYTES)
        for j in range(PANELS):
            pointer = builder.gep(weight, [builder.add(offset, _INT64(j * _TILE_BYTES))])
            _emit_load(builder, 6 + j, pointer, _INT64(LINE))
            _emit(builder, "tdpbssd", [_BYTE] * 3, [_BYTE(j), _BYTE(4), _BYTE(6 + j)])
            _emit(builder, "tdpbusd", [_BYTE] * 3, [_BYTE(PANELS + j), _BYTE(5), _BYTE(6 + j)])
    for tile in range(2 * PANELS):
        arguments = [_BYTE(tile), builder.gep(sums, [_INT64(tile * _TILE_BYTES)]), _INT64(LINE)]
        _emit(builder, "tilestored64", [_BYTE, _POINTER, _INT64], arguments)


def _emit_load(builder, tile, pointer, row_bytes):
    _emit(builder, "tileloadd64", [_BYTE, _POINTER, _INT64], [_BYTE(tile), pointer, row_bytes])
