"""The threads that compute a step together, inside compiled code.

A decode step of a small model is hundreds of short stages, and a fork and join for each costs more than some of them.
So the threads are called once and agree among themselves where each stage ends:

    thread 0   join ─┬─ its share of stage 1 ─┐ barrier ┌─ its share of stage 2 ─┐ barrier …
    thread 1   join ─┘  its share of stage 1 ─┘         └─ its share of stage 2 ─┘

Whoever does not come in time is done without: a team closes with those who joined, so that a thread that the machine
runs late, or never, delays the step and cannot stop it. No result depends on the team's size.
"""

from __future__ import annotations

import platform
from functools import cache

import numba
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import EXACT

# Words of a team, each on a cache line of its own: threads spin on some while others change.
_JOINED, _SIZE, _ARRIVED, _STAGE = 0, 8, 16, 24
WORDS = 32
_CLOSED = 1 << 32
# A wait asks so often, some tens of nanoseconds apart, before it lets other threads run between its questions.
_SPINS = 2_000
# Then it gives up on those who have not joined after so many more, some milliseconds at least.
_YIELDS = 10_000

_INT64 = ir.IntType(64)
_yield = types.ExternalFunction("sched_yield", types.int32())


def threads_for(shares: int) -> int:
    """As many threads as there are, and no more than shares of work; numba's next parallel loop will have them."""
    threads = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, shares))
    numba.set_num_threads(threads)
    return threads


@njit(**EXACT)
def join(team, wanted):
    """Makes the calling thread part of a team.

    Args:
        team: int64 [WORDS], all zeros at first, shared by all threads.
        wanted: How many threads were called.

    Returns:
        The thread's rank and the team's size; rank −1 if it came too late and has nothing to do.
    """
    rank = _add(team, _JOINED, 1)
    if rank >= _CLOSED:
        return -1, 0
    if rank == 0:
        waited = 0
        while _load(team, _JOINED) < wanted and waited < _SPINS + _YIELDS:
            waited = _wait(waited)
        size = _add(team, _JOINED, _CLOSED)
        _add(team, _SIZE, size)
        return 0, size
    waited = 0
    while _load(team, _SIZE) == 0:
        waited = _wait(waited)
    return rank, _load(team, _SIZE)


@njit(**EXACT)
def barrier(team, size):
    """Returns when all of the team have called it; what they wrote before is seen after."""
    if size == 1:
        return
    stage = _load(team, _STAGE)
    if _add(team, _ARRIVED, 1) == size - 1:
        _add(team, _ARRIVED, -size)
        _add(team, _STAGE, 1)
        return
    waited = 0
    while _load(team, _STAGE) == stage:
        waited = _wait(waited)


@njit(**EXACT)
def draw(counters, which, count):
    """The next ``count`` numbers of a counter that the team shares; returns the first: 0, count, …"""
    return _add(counters, which, count)


@njit(**EXACT)
def share(count, rank, size):
    """The range of ``count`` things that falls to a rank."""
    return count * rank // size, count * (rank + 1) // size


@cache
def caller():
    """``call_together(function, frame, num_workers)``: every thread calls a C function of one argument, all by address.

    Compiled on its own, it spares the functions that it calls from being compiled as parts of a parallel loop, which
    takes numba some three times as long.
    """

    @kept(types.void(types.int64, types.int64, types.int64), parallel=True, nogil=True, **EXACT)
    def call_together(function, frame, num_workers):
        for _worker in prange(num_workers):
            _call(function, frame)

    return call_together


@intrinsic
def _call(typingctx, function, argument):
    def codegen(context, builder, signature, args):
        function_type = ir.FunctionType(ir.VoidType(), [_INT64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@njit(**EXACT)
def _wait(waited):
    if waited < _SPINS:
        _pause()
    else:
        _yield()
    return waited + 1


@intrinsic
def _add(typingctx, array, index, value):
    """Adds to a word and returns what it was, in one step."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def _load(typingctx, array, index):
    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def _pause(typingctx):
    """Tells the core that its thread only waits."""

    def codegen(context, builder, signature, args):
        if platform.machine() in ("x86_64", "AMD64"):
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen
