"""The output layer of some rows of the residual stream, with the norm before it, in one call.

After the layers nothing of what follows is at hand any more: they have read all weights since the last time. An
operation of torch's on a few rows then takes fifty microseconds whatever it does, and there were six of them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import prange, types
from torch import Tensor

from octavo.kernels.cpu.bits import NUMBA_TYPES, stored
from octavo.kernels.cpu.disk_cache import kept
from octavo.kernels.cpu.elementary import EXACT
from octavo.kernels.cpu.fused import put_normed
from octavo.kernels.cpu.linear import store_share, workers_for
from octavo.kernels.cpu.packing import OUTPUTS
from octavo.kernels.cpu.products import type_of_rows
from octavo.kernels.cpu.tiles import tile_rows, tiled_size

_NO_BIAS = np.empty(0, np.float32)


class NormedLinear:
    """``norm(x) Wᵀ`` of the rows that are wanted, to the last bit what the two give one after the other.

    Args:
        norm: float32 [in], the norm's weight. eps: added to the mean square.
        packed: As for `octavo.kernels.cpu.linear.linear`; and so are ``num_outputs`` and ``scales``.
        dtype: What the norm's results are rounded to.
    """

    def __init__(
        self, norm: Tensor, eps: float, packed: Tensor, num_outputs: int, dtype: torch.dtype, scales: Tensor | None
    ) -> None:
        flat, nothing = packed.view(-1), torch.empty(0, dtype=dtype)
        self._arrays = (
            norm.numpy(), eps,
            stored(flat if scales is None else nothing).numpy(),
            np.empty(0, np.int8) if scales is None else flat.numpy(),
            np.empty(0, np.float32) if scales is None else scales.numpy(),
        )  # fmt: skip
        self._num_weights, self._num_outputs = packed.numel(), num_outputs
        self._width = -(-num_outputs // OUTPUTS) * OUTPUTS
        self._dtype = dtype

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """float32 [T, in], contiguous, and int64 [N] → float32 [N, out]."""
        out = np.empty((len(rows), self._width), np.float32)
        _kernel(self._dtype)(out, x.numpy(), rows.numpy(), *self._arrays, workers_for(self._num_weights))
        sums = torch.from_numpy(out)
        return sums if self._width == self._num_outputs else sums[:, : self._num_outputs].contiguous()


@cache
def _kernel(dtype: torch.dtype):
    number = NUMBA_TYPES[dtype]
    normed_type = np.dtype(str(number)).type
    row_type = type_of_rows(np.dtype(normed_type)).type
    floats = types.float32[::1]
    signature = types.void(
        types.float32[:, ::1], types.float32[:, ::1], types.int64[::1], floats, types.float32,
        number[::1], types.int8[::1], floats, types.int64,
    )  # fmt: skip

    @kept(signature, parallel=True, nogil=True, **EXACT)
    def kernel(out, x, rows, norm, eps, words, numbers, scales, num_workers):
        num_rows, num_inputs = len(rows), x.shape[1]
        flat, width = out.reshape(-1), out.shape[1]
        for worker in prange(num_workers):
            # Every worker does the few rows for itself: to wait for each other would take longer.
            normed = np.empty((num_rows, num_inputs), normed_type)
            for i in range(num_rows):
                put_normed(normed, i, x[rows[i]], norm, eps)
            tiled = np.empty(tiled_size(num_rows, num_inputs), row_type)
            tile_rows(tiled, normed)
            store_share(
                (flat, width), tiled, num_rows, num_inputs, words, numbers, scales, _NO_BIAS, worker, num_workers
            )  # fmt: skip

    return kernel
