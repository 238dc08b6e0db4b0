"""The one statistical test that the suite needs."""

from __future__ import annotations

import numpy as np


def chi_squared_ok(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts are compatible with expectations: χ² below its 99.99 % point (Wilson and Hilferty, 1931)."""
    degrees = len(observed) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    bound = degrees * (1 - 2 / (9 * degrees) + 3.72 * np.sqrt(2 / (9 * degrees))) ** 3
    return statistic < bound
