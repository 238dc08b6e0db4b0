"""Pins: prefixes that stay resident although no request uses them, within a hard budget and for a limited time.

A pin is one more owner of each of its blocks. Several pins may share a beginning; its blocks count once. No two pins
end with the same block, so there are never more of them than the budget has blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Pin:
    """A prefix that is kept.

    Attributes:
        number: Names the pin; never used twice.
        blocks: In order. namespace: in which the prefix lies.
        tenant: Whose quota the blocks count against.
        expires: Seconds on the scheduler's clock.
    """

    number: int
    blocks: tuple[int, ...]
    namespace: int
    tenant: int
    expires: float


class Pins:
    """The pins there are.

    Args:
        budget: Distinct blocks that may be pinned at the same time.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._pins: dict[int, Pin] = {}
        self._ends: dict[int, int] = {}  # last block -> the pin's number
        self._held: Counter[int] = Counter()  # block -> pins
        self._last = 0
        self.next_expiry = float("inf")

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def num_blocks(self) -> int:
        """Distinct pinned blocks."""
        return len(self._held)

    @property
    def blocks(self) -> Collection[int]:
        """The pinned blocks."""
        return self._held.keys()

    def held(self, block: int) -> int:
        """How many pins hold a block."""
        return self._held[block]

    def missing(self, blocks: Sequence[int]) -> int:
        """By how many blocks the budget is too small for one more pin of these; 0 if it is not."""
        return max(0, self.num_blocks + sum(block not in self._held for block in blocks) - self.budget)

    def add(self, blocks: Sequence[int], namespace: int, tenant: int, expires: float) -> Pin:
        """Notes a pin; the caller has checked `missing`, and becomes an owner of the blocks."""
        self._last += 1
        pin = Pin(self._last, tuple(blocks), namespace, tenant, expires)
        self._pins[pin.number] = pin
        self._ends[pin.blocks[-1]] = pin.number
        self._held.update(pin.blocks)
        self.next_expiry = min(self.next_expiry, expires)
        return pin

    def renew(self, blocks: Sequence[int], expires: float) -> Pin | None:
        """Lets the pin of these very blocks last until ``expires`` at least; None if there is none."""
        pin = self._pins.get(self._ends.get(blocks[-1], 0))
        if pin is None:
            return None
        pin = self._pins[pin.number] = replace(pin, expires=max(pin.expires, expires))
        self._find_next_expiry()
        return pin

    def find(self, number: int) -> Pin | None:
        """The pin of this number, if there is one."""
        return self._pins.get(number)

    def remove(self, pin: Pin) -> None:
        """Forgets a pin; the caller gives its ownership of the blocks up."""
        del self._pins[pin.number], self._ends[pin.blocks[-1]]
        self._held.subtract(pin.blocks)
        self._held = +self._held
        self._find_next_expiry()

    def _find_next_expiry(self) -> None:
        self.next_expiry = min((pin.expires for pin in self._pins.values()), default=float("inf"))

    def listed(self) -> list[Pin]:
        """All pins; the one that expires next comes first."""
        return sorted(self._pins.values(), key=lambda pin: pin.expires)
