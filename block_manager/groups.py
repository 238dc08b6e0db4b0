"""Groups of layers whose K and V share a block: which layers see everything, and which only a window.

A block holds K and V of one *group* of layers for ``block_size`` tokens. Where every layer sees everything there is
one group, and a block for each ``block_size`` tokens. A model that mixes full and sliding-window layers has several
groups of equally many layers, so that one pool of equal blocks serves all of them, and what lies behind the window is
given back:

    Gemma 3, 26 layers: 4 full, 22 with a window of 512           groups of 4 layers, the last one padded

    full    ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇      1 block  for every block_size tokens of the sequence
    window  · · · · · · · · ▇▇▇▇      6 blocks for every block_size tokens of the window only
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A last group may be padded with layers that do not exist, as long as that wastes no more than this share.
_MAX_PADDING = 0.1

# Of a sequence that nothing else bounds; block ids and token positions are int32.
MAX_COLUMNS = 2**24


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The groups of one model.

    Attributes:
        members: Per group, its layers; those of full layers come first.
        num_full: How many of the groups have no window.
        window: Keys that a query of the other groups' layers sees, its own included; 0 if there are no such groups.
    """

    members: tuple[tuple[int, ...], ...]
    num_full: int
    window: int = 0

    @classmethod
    def of(cls, windows: Sequence[int], longest: int) -> LayerGroups:
        """Groups the layers of a model.

        Args:
            windows: Per layer, the keys that a query sees; 0 means all. Of several windows the largest counts.
            longest: Tokens of the longest sequence; a window that holds it is none.
        """
        windowed = [layer for layer, window in enumerate(windows) if 0 < window < longest]
        full = [layer for layer, window in enumerate(windows) if not 0 < window < longest]
        if not windowed:
            return cls((tuple(full),), num_full=1)
        size = _group_size(len(full), len(windowed))
        groups = [_split(full, size), _split(windowed, size)]
        return cls((*groups[0], *groups[1]), len(groups[0]), max(windows[layer] for layer in windowed))

    @property
    def layers_per_block(self) -> int:
        """Layers whose K and V one block has room for."""
        return max(map(len, self.members))

    @property
    def num_windowed(self) -> int:
        """How many of the groups have a window."""
        return len(self.members) - self.num_full

    def group_of(self, layer: int) -> tuple[int, int]:
        """A layer's group, and which of the group's layers it is."""
        return next((group, members.index(layer)) for group, members in enumerate(self.members) if layer in members)


@dataclass(frozen=True, slots=True)
class Footprint:
    """How many blocks a sequence takes.

    Attributes:
        groups: The model's groups of layers.
        block_size: Tokens in a block.
        max_chunk: The most tokens that one sequence computes in a step.
    """

    groups: LayerGroups
    block_size: int
    max_chunk: int

    @property
    def columns_in_sight(self) -> int:
        """The most table entries that one query sees through the window."""
        return self._columns_across(self.groups.window)

    @property
    def columns_of_step(self) -> int:
        """The most table entries that the queries of one step see through the window, or are written to."""
        return self._columns_across(self.groups.window - 1 + self.max_chunk)

    def _columns_across(self, num_tokens: int) -> int:
        """The most table entries that so many tokens in a row lie in, wherever they begin."""
        return -(-(num_tokens - 1) // self.block_size) + 1

    def most_blocks(self, num_tokens: int) -> int:
        """The most blocks that a sequence holds at any time until it has so many tokens."""
        columns = -(-num_tokens // self.block_size)
        return self.groups.num_full * columns + self.groups.num_windowed * min(columns, self.columns_of_step)

    def longest(self, num_blocks: int, most_columns: int | None = None) -> int:
        """Tokens of the longest sequence for which so many blocks do.

        Args:
            most_columns: Entries of a block table; None for any number.
        """
        columns = num_blocks // len(self.groups.members)
        if self.groups.num_windowed and columns >= self.columns_of_step:
            columns = most_columns if most_columns is not None else MAX_COLUMNS
            if self.groups.num_full:
                beyond = num_blocks - self.groups.num_windowed * self.columns_of_step
                columns = beyond // self.groups.num_full
        return min(columns, most_columns if most_columns is not None else MAX_COLUMNS) * self.block_size


def _group_size(num_full: int, num_windowed: int) -> int:
    """The most layers per group for which padding wastes little."""
    sizes = [count for count in (num_full, num_windowed) if count]
    total = sum(sizes)
    return next(
        size
        for size in range(min(sizes), 0, -1)
        if sum(-(-count // size) * size for count in sizes) - total <= _MAX_PADDING * total
    )


def _split(layers: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(layers[start : start + size]) for start in range(0, len(layers), size))
