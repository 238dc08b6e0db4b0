"""Where operands lie, in code that is emitted by hand, and asking for them ahead of time."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from octavo.kernels.cpu.bits import I32

LINE = 64  # bytes that come from memory together
# Weights are fetched so many bytes before they are multiplied: the hardware stops at the end of each page of 4 KiB.
AHEAD = 4096
_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)


def emit_address(context, builder, signature, args, i):
    """A byte pointer to where an operand begins: an array and, after it, an offset in its elements."""
    data = context.make_array(signature.args[i])(context, builder, args[i]).data
    return builder.bitcast(builder.gep(data, [args[i + 1]]), _BYTE.as_pointer())


def emit_fetch(builder, pointer, num_bytes=LINE):
    """Asks for so many bytes from a pointer to a byte on, into the nearest cache; never faults, wherever they are."""
    function_type = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
    for at in range(0, num_bytes, LINE):
        builder.call(function, [builder.gep(pointer, [_INT64(at)]), I32(0), I32(3), I32(1)])


def emit_fetch_share(builder, begin, lines, step, steps):
    """Asks for those of so many lines, from a pointer to a byte on, that fall to one of a loop's steps.

    Args:
        lines, step: Values. steps: a number, a power of two.
    """
    first, last = (builder.udiv(builder.mul(lines, at), _INT64(steps)) for at in (step, builder.add(step, _INT64(1))))
    with cgutils.for_range(builder, builder.sub(last, first)) as loop:
        offset = builder.mul(builder.add(first, loop.index), _INT64(LINE))
        emit_fetch(builder, builder.gep(begin, [offset]))
