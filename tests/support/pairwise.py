"""Combinations of parameters in which every pair of values occurs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Combination = dict[str, Any]


def pairwise(values: Mapping[str, Sequence[Any]], seed: int = 0, tries: int = 60) -> list[Combination]:
    """A small set of combinations, found greedily among random ones; each parameter's first value is its plainest."""
    rng = random.Random(seed)
    missing = {
        ((first, i), (second, j))
        for first, second in combinations(values, 2)
        for i in range(len(values[first]))
        for j in range(len(values[second]))
    }
    found = []
    while missing:
        wanted = dict(min(missing))  # so that every round gains something
        candidates = [
            {name: wanted.get(name, rng.randrange(len(values[name]))) for name in values} for _ in range(tries)
        ]
        best = max(candidates, key=lambda chosen: len(missing & _pairs(chosen)))
        missing -= _pairs(best)
        found.append({name: values[name][index] for name, index in best.items()})
    return found


def _pairs(chosen: Mapping[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return set(combinations(chosen.items(), 2))
