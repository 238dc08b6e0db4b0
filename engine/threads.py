"""Keeps the two OpenMP pools of one process (torch's and numba's) from fighting over the cores. Loads no torch."""

from __future__ import annotations

from collections.abc import MutableMapping

# After a parallel region, GNU OpenMP's workers spin for about 300,000 pauses, some 20 ms on current processors,
# before they sleep. Torch's workers would spin on the very cores that numba's attention kernel needs next, and the
# other way round. This many pauses bridge the gap between two operations of one library and little more.
_SPIN_COUNT = "2000"


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Sets the OpenMP runtime's spinning, unless the user has; works only before torch and numba are loaded."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
