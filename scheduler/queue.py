"""The waiting queues: first come first served, by priority, or tenants in turn.

A preempted sequence goes back to the place of its arrival, so it is never behind those that came after it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator
from itertools import chain, zip_longest
from operator import attrgetter
from typing import Protocol

from octavo.scheduler.request import Sequence
from octavo.scheduler.tenants import Tenant

Order = Callable[[Sequence], tuple[int, ...]]


by_arrival: Order = attrgetter("order")


def by_priority(sequence: Sequence) -> tuple[int, ...]:
    """The smallest priority number first; then first come, first served."""
    return (sequence.request.priority, *sequence.order)


class WaitingQueue(Protocol):
    """Sequences that wait.

    Attributes:
        order: The order in which running sequences are served and give way; waiting ones follow it too, except that
            tenants may take turns.
    """

    order: Order

    def __len__(self) -> int: ...

    def __contains__(self, sequence: Sequence) -> bool: ...

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at its place."""

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""

    def in_turn(self) -> Iterator[Sequence]:
        """The sequences, whose turn it is first; ends with any change."""

    def rank(self, sequence: Sequence) -> Hashable:
        """Sequences of equal rank may be reordered among each other without breaking the policy."""


class OrderedQueue:
    """Sequences in one fixed order."""

    def __init__(self, order: Order = by_arrival) -> None:
        self.order = order
        self._sequences: list[Sequence] = []
        self._members: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._members

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at its place."""
        assert sequence not in self._members, f"sequence {sequence.order} waits already"
        self._members.add(sequence)
        bisect.insort(self._sequences, sequence, key=self.order)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        self._members.remove(sequence)
        place = 0 if self._sequences[0] is sequence else self._place_of(sequence)
        del self._sequences[place]

    def _place_of(self, sequence: Sequence) -> int:
        return bisect.bisect_left(self._sequences, self.order(sequence), key=self.order)

    def in_turn(self) -> Iterator[Sequence]:
        """The sequences, whose turn it is first; ends with any change."""
        return iter(self._sequences)

    def rank(self, sequence: Sequence) -> Hashable:
        """All but the order of arrival."""
        return self.order(sequence)[: -len(sequence.order)]


class FairQueue:
    """A queue for each tenant; whoever had least service for its weight comes next (see `octavo.scheduler.tenants`)."""

    def __init__(self) -> None:
        self.order: Order = by_arrival
        self._lanes: dict[Tenant, OrderedQueue] = {}  # of tenants that wait
        self._last: Tenant | None = None  # the tenant that left the queue last

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def __contains__(self, sequence: Sequence) -> bool:
        lane = self._lanes.get(sequence.request.tenant)
        return lane is not None and sequence in lane

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence; a tenant that was not waiting is lifted to those who were."""
        tenant = sequence.request.tenant
        if tenant not in self._lanes:
            waited = min(self._lanes or ([self._last] if self._last else [tenant]), key=lambda other: other.virtual)
            tenant.virtual = max(tenant.virtual, waited.virtual)
            self._lanes[tenant] = OrderedQueue()
        self._lanes[tenant].push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        tenant = sequence.request.tenant
        self._lanes[tenant].remove(sequence)
        if not len(self._lanes[tenant]):
            del self._lanes[tenant]
            self._last = tenant

    def in_turn(self) -> Iterator[Sequence]:
        """Every tenant's first sequence, least served tenant first; then every tenant's second, and so on."""
        tenants = sorted(self._lanes, key=lambda tenant: (tenant.virtual, tenant.index))
        rounds = zip_longest(*(self._lanes[tenant].in_turn() for tenant in tenants))
        return (sequence for sequence in chain.from_iterable(rounds) if sequence is not None)

    def rank(self, sequence: Sequence) -> Hashable:
        """The tenant."""
        return sequence.request.tenant


def make_queue(policy: str) -> WaitingQueue:
    """The queue of a ``--policy``."""
    if policy == "fair":
        return FairQueue()
    return OrderedQueue(by_priority if policy == "priority" else by_arrival)
