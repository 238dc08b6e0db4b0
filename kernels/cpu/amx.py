"""Matrix products in bfloat16 on Intel's AMX tiles, for any number of rows.

A step's linear layers are bound by how fast the weights come from memory when few rows are computed, and by the tiles
when many are. One layout serves both, so the weights are kept once. They are cut into panels of 16 outputs, in which
pairs of inputs lie side by side, as the tile product wants them:

    panel p    [ k, k+1 of output 16p ][ … of 16p+1 ] … [ … of 16p+15 ]      64 bytes
               [ k+2, k+3 …                                          ]
    16 such rows are one tile: 32 inputs × 16 outputs, 1 KiB in a row

    product    rows of x (≤ 16 × 32)  ·  tile of a panel (32 × 16)  →  float32 sums (≤ 16 × 16), held over all inputs

Sums run over the inputs in one order whatever the number of rows, so a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from octavo.kernels.cpu import bits
from octavo.kernels.cpu.bits import NUMBA_TYPES, narrow, source_key, stored

# Of a tile.
ROWS, OUTPUTS, INPUTS = 16, 16, 32
# Panels that one pass over the rows computes together, and tiles of rows beside them: 2 × 2 sums, of 8 tiles.
_PANELS = 2
_GROUP = _PANELS * OUTPUTS
# From so many rows on it pays to make each tile of them contiguous first.
_MANY_ROWS = 65
# Tiles of rows are fetched so many steps before they are multiplied; the hardware sees no pattern in them.
_AHEAD = 3
# Waking the other threads costs about as much as multiplying with so many weights.
_WEIGHTS_PER_THREAD = 64 * 1024

# Linux gives a process the tiles' registers when it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_BYTE, _INT64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_POINTER = _BYTE.as_pointer()
_NO_BIAS = np.empty(0, np.float32)


@cache
def is_available() -> bool:
    """Whether this machine has AMX for bfloat16, and this process may use it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    if not {"amx_tile", "amx_bf16"} <= set(flags.split()):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def fits(weight: Tensor) -> bool:
    """Whether `pack` takes a weight [out, in]."""
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and weight.shape[1] % INPUTS == 0


def pack(weight: Tensor) -> Tensor:
    """A weight in panels.

    Args:
        weight: bfloat16 [out, in]; ``in`` is a multiple of 32.

    Returns:
        bfloat16 [panels, in / 2, 16, 2]; there are as many panels as cover ``out``, rounded up to an even number.
    """
    num_outputs, num_inputs = weight.shape
    padding = -num_outputs % _GROUP
    padded = torch.nn.functional.pad(weight, (0, 0, 0, padding))
    return padded.view(-1, OUTPUTS, num_inputs // 2, 2).permute(0, 2, 1, 3).contiguous()


def linear(x: Tensor, packed: Tensor, num_outputs: int, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x Wᵀ + b``, summed in float32.

    Args:
        x: bfloat16 [num_rows, in]; rows are contiguous.
        packed: From `pack`.
        num_outputs: Rows of the weight.
        bias: float32 [out], or None.
        dtype: Of the result: bfloat16 or float32.

    Returns:
        [num_rows, out].
    """
    out = torch.empty((x.shape[0], num_outputs), dtype=dtype)
    workers = max(
        1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, packed.numel() // _WEIGHTS_PER_THREAD)
    )
    numba.set_num_threads(workers)
    kernel = _linear_kernel(NUMBA_TYPES[dtype])
    kernel(
        stored(out).numpy(), stored(x).numpy(), stored(packed).numpy().reshape(-1),
        _NO_BIAS if bias is None else bias.numpy(), workers,
    )  # fmt: skip
    return out


@cache
def _linear_kernel(number: types.Type):
    key = source_key(bits)
    signature = types.void(
        number[:, ::1], types.Array(types.uint16, 2, "A"), types.uint16[::1], types.float32[::1], types.int64
    )

    @njit(signature, parallel=True, error_model="numpy", nogil=True, cache=True)
    def kernel(out, x, weights, bias, num_workers):
        _ = key  # part of the key under which numba keeps compiled code
        num_rows, num_outputs = out.shape
        num_inputs, row_bytes = x.shape[1], x.strides[0]
        groups = (num_outputs + _GROUP - 1) // _GROUP
        whole = num_rows // ROWS * ROWS
        num_tiles = whole // ROWS if num_rows >= _MANY_ROWS else 0
        tiled = np.empty((num_tiles, num_inputs // INPUTS, ROWS, INPUTS), np.uint16)
        for tile in prange(num_tiles):
            _tile(tiled[tile], x[tile * ROWS : (tile + 1) * ROWS])
        for worker in prange(num_workers):
            sums = np.empty((2 * ROWS, _GROUP), np.float32)
            config = np.zeros(64, np.uint8)
            first, last = groups * worker // num_workers, groups * (worker + 1) // num_workers
            if whole:
                _configure(config, ROWS)
                for group in range(first, last):
                    for row in range(0, whole, 2 * ROWS):
                        if whole - row == ROWS:
                            _multiply(sums, weights, group, num_inputs, x[row:], row_bytes, 0, 2 * INPUTS, 1)
                            _store(out, sums, row, ROWS, group, bias)
                        elif num_tiles > 0:
                            tile, (tile_bytes, step_bytes) = tiled[row // ROWS], tiled.strides[:2]
                            _multiply(sums, weights, group, num_inputs, tile, 2 * INPUTS, tile_bytes, step_bytes, 2)
                            _store(out, sums, row, 2 * ROWS, group, bias)
                        else:
                            tile_bytes = ROWS * row_bytes
                            _multiply(sums, weights, group, num_inputs, x[row:], row_bytes, tile_bytes, 2 * INPUTS, 2)
                            _store(out, sums, row, 2 * ROWS, group, bias)
            if whole < num_rows:
                _configure(config, num_rows - whole)
                for group in range(first, last):
                    _multiply(sums, weights, group, num_inputs, x[whole:], row_bytes, 0, 2 * INPUTS, 1)
                    _store(out, sums, whole, num_rows - whole, group, bias)
            _release()

    return kernel


@njit(error_model="numpy")
def _tile(tiles, rows):
    """Makes the tiles of 16 rows [16, in] contiguous: [in / 32, 16, 32]."""
    for k in range(tiles.shape[0]):
        for row in range(ROWS):
            for i in range(INPUTS):
                tiles[k, row, i] = rows[row, k * INPUTS + i]


@njit(error_model="numpy")
def _store(out, sums, first_row, num_rows, group, bias):
    """Rows of sums [num_rows, _GROUP] to their place in the result, rounded to its type."""
    begin = group * _GROUP
    count = min(_GROUP, out.shape[1] - begin)
    if bias.shape[0] > 0:
        for row in range(num_rows):
            for i in range(count):
                sums[row, i] += bias[begin + i]
    if count == _GROUP:
        _round_rows(out[first_row:, begin:], sums, num_rows)
        return
    for row in range(num_rows):
        to = out[first_row + row, begin:]
        for i in range(count):
            to[i] = narrow(sums[row, i], to[i])


@njit(error_model="numpy")
def _configure(config, num_rows):
    """Shapes the tiles: 0 to 3 hold sums, 4 and 5 rows of x, all of ``num_rows`` rows; 6 and 7 hold weights."""
    config[0] = 1
    for tile in range(8):
        config[16 + 2 * tile] = 64  # bytes of a row
        config[48 + tile] = num_rows if tile < 6 else INPUTS // 2  # rows
    _load_config(config)


def _emit(builder, name, argument_types, arguments):
    function_type = ir.FunctionType(_VOID, argument_types)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
    builder.call(function, arguments)


class _BFloat(ir.types.Type):
    """LLVM's type of that name, which llvmlite lacks."""

    null = "0.0"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


@intrinsic
def _round_rows(typingctx, out, sums, num_rows):
    """Rows of sums float32 [num_rows, 32] to as many numbers of each row of out, rounded to its type.

    There are instructions that round 32 of them to bfloat16 at once, which no compiler finds behind `narrow`.
    """

    def codegen(context, builder, signature, args):
        to, total = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1))
        row_bytes = cgutils.unpack_tuple(builder, to.strides)[0]
        wide, narrowed = ir.VectorType(ir.FloatType(), _GROUP), ir.VectorType(_BFloat(), _GROUP)
        with cgutils.for_range(builder, args[2]) as loop:
            source = builder.gep(total.data, [builder.mul(loop.index, _INT64(_GROUP))])
            value = builder.load(builder.bitcast(source, wide.as_pointer()), align=4)
            if out.dtype == types.uint16:
                value = builder.fptrunc(value, narrowed)
            target = builder.gep(builder.bitcast(to.data, _POINTER), [builder.mul(loop.index, row_bytes)])
            builder.store(value, builder.bitcast(target, value.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(out, sums, types.intp), codegen


@intrinsic
def _load_config(typingctx, config):
    """Loads 64 bytes that say how large each tile is."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        _emit(builder, "ldtilecfg", [_POINTER], [builder.bitcast(array.data, _POINTER)])
        return context.get_dummy_value()

    return types.void(config), codegen


@intrinsic
def _release(typingctx):
    """Gives the tiles back: a thread that holds some is slower to switch from."""

    def codegen(context, builder, signature, args):
        _emit(builder, "tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def _multiply(typingctx, sums, weights, group, num_inputs, x, row_bytes, tile_bytes, step_bytes, row_tiles):
    """sums[: row_tiles · 16] = rows of x · two panels, over all inputs.

    Args:
        sums: float32 [32, 32], contiguous.
        weights: uint16, the panels one after the other.
        group: Which two panels.
        num_inputs: Of each row.
        x: uint16; the first row begins where it does.
        row_bytes, tile_bytes, step_bytes: From a row, a tile of rows, or 32 inputs to the next, in bytes.
        row_tiles: 1 or 2; a literal.
    """

    def codegen(context, builder, signature, args):
        tiles = signature.args[8].literal_value
        total, weight, rows = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1, 4))

        def at(array, offset):
            """A pointer so many bytes from an array's beginning."""
            return builder.gep(builder.bitcast(array.data, _POINTER), [offset])

        def times(value, number):
            return builder.mul(value, _INT64(number))

        panel_bytes = times(args[3], 2 * OUTPUTS)
        begin = times(builder.mul(args[2], panel_bytes), _PANELS)
        for tile in range(tiles * _PANELS):
            _emit(builder, "tilezero", [_BYTE], [_BYTE(tile)])
        with cgutils.for_range(builder, builder.udiv(args[3], _INT64(INPUTS))) as loop:
            for i in range(tiles):
                offset = builder.add(times(args[6], i), builder.mul(loop.index, args[7]))
                _emit_load(builder, 4 + i, at(rows, offset), args[5])
                if tiles == 2:
                    ahead = builder.add(offset, times(args[7], _AHEAD))
                    for row in range(ROWS):
                        _emit_prefetch(builder, at(rows, builder.add(ahead, times(args[5], row))))
            for j in range(_PANELS):
                offset = builder.add(begin, builder.add(times(panel_bytes, j), times(loop.index, 2 * INPUTS * OUTPUTS)))
                _emit_load(builder, 6 + j, at(weight, offset), _INT64(2 * INPUTS))
                for i in range(tiles):
                    names = [_BYTE(i * _PANELS + j), _BYTE(4 + i), _BYTE(6 + j)]
                    _emit(builder, "tdpbf16ps", [_BYTE] * 3, names)
        for i in range(tiles):
            for j in range(_PANELS):
                target = at(total, _INT64(4 * (i * ROWS * _GROUP + j * OUTPUTS)))
                arguments = [_BYTE(i * _PANELS + j), target, _INT64(4 * _GROUP)]
                _emit(builder, "tilestored64", [_BYTE, _POINTER, _INT64], arguments)
        return context.get_dummy_value()

    kept = (types.Array, types.IntegerLiteral)
    given = (sums, weights, group, num_inputs, x, row_bytes, tile_bytes, step_bytes, row_tiles)
    return types.void(*(value if isinstance(value, kept) else types.intp for value in given)), codegen


def _emit_prefetch(builder, pointer):
    arguments = [pointer, ir.IntType(32)(0), ir.IntType(32)(3), ir.IntType(32)(1)]
    function_type = ir.FunctionType(_VOID, [_POINTER, *[ir.IntType(32)] * 3])
    builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8"), arguments)


def _emit_load(builder, tile, pointer, stride):
    _emit(builder, "tileloadd64", [_BYTE, _POINTER, _INT64], [_BYTE(tile), pointer, stride])
