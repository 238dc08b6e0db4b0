"""Elementary functions that LLVM can vectorise: libm's are opaque calls, and one exp per score would cost as much
as reading the KV cache."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from octavo.kernels.cpu.bits import power_of_two

# Options of numba's. A function that does not say what may be reordered is compiled with the flags of whoever calls it
# first. C functions beside the ones that compiled code calls, which numba makes by itself, take a sixth of the time.
_ALL = {"error_model": "numpy", "no_cfunc_wrapper": True}
# Sums may be reordered and fused. NaN and infinity keep their meaning.
FAST = {**_ALL, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
# No operation is fused or reordered: equal to the last bit wherever the function is inlined.
EXACT = {**_ALL, "fastmath": False}
LOG2E = np.float32(math.log2(math.e))

# 2**f for |f| <= 1/2: a fit with the value at 0 pinned to 1; relative error below 2e-7.
EXP2 = (6.931472e-01, 2.402265e-01, 5.550411e-02, 9.618129e-03, 1.333356e-03, 1.540353e-04)
# Here the exponent field is 0, and so is the power.
UNDERFLOW = -127
_C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in EXP2)
_ONE, _TWO, _HALF, _SMALLEST = np.float32(1.0), np.float32(2.0), np.float32(0.5), np.float32(UNDERFLOW)


@njit(**FAST, forceinline=True)
def exp2(x):
    """2**x in float32 for x <= 0; 0 below the range of normal numbers."""
    x = max(x, _SMALLEST)
    whole = np.int32(x - _HALF)  # truncation towards zero rounds a negative x to the nearest
    f = x - np.float32(whole)
    return (_ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))) * power_of_two(whole)


@njit(**FAST, forceinline=True)
def softcapped(x, softcap):
    """softcap · tanh(x / softcap), by an exponential that cannot overflow: that of −2 |x / softcap|."""
    e = exp2(-_TWO * LOG2E * abs(x) / softcap)
    return np.copysign(softcap * (_ONE - e) / (_ONE + e), x)
