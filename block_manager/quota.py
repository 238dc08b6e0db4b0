"""Floors and ceilings: how many blocks each tenant is sure of, and how many it may hold.

Tenants never share blocks (their prompts live in namespaces of their own), so every used block belongs to one of
them, and three rules hold after every step:

    used[t] ≤ ceiling[t]
    available ≥ Σ over tenants of max(0, floor[t] − used[t])        floors are kept free until they are used
    Σ floor[t] ≤ total
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from octavo.errors import ConfigError


class Shortage(NamedTuple):
    """Tenants need more blocks than they may take.

    Attributes:
        tenant: One that cannot get what it needs. blocks: by how many there are too few.
        yields: Per tenant, whether it helps if one of its sequences gives way.
    """

    tenant: int
    blocks: int
    yields: list[bool]


class Quota:
    """Counts each tenant's used blocks and says how many more it may take.

    Args:
        total: Blocks in the pool.
        floors: Per tenant, blocks that nobody else may take.
        ceilings: Per tenant, the most it may hold; None for no limit.

    Raises:
        ConfigError: The floors add up to more than the pool, or a floor is above its ceiling.
    """

    def __init__(self, total: int, floors: Sequence[int] = (0,), ceilings: Sequence[int | None] = (None,)) -> None:
        if sum(floors) > total:
            raise ConfigError(f"the tenants' floors add up to {sum(floors)} blocks, and the pool has {total}")
        self._total = total
        self.floors = tuple(floors)
        self.ceilings = tuple(total if ceiling is None else min(ceiling, total) for ceiling in ceilings)
        for tenant, (floor, ceiling) in enumerate(zip(self.floors, self.ceilings, strict=True)):
            if floor > ceiling:
                raise ConfigError(f"tenant {tenant} has a floor of {floor} blocks above its ceiling of {ceiling}")
        unbound = total - sum(self.floors)
        self._capacities = [min(c, unbound + f) for c, f in zip(self.ceilings, self.floors, strict=True)]
        self.used = [0] * len(self.floors)
        self.limited = any(self.floors) or any(ceiling < total for ceiling in self.ceilings)

    def charge(self, tenant: int, blocks: int) -> None:
        """Notes that a tenant's used blocks have become more, or fewer."""
        self.used[tenant] += blocks

    def room(self, tenant: int, available: int) -> int:
        """Blocks that a tenant may take of ``available`` ones; not negative."""
        return max(0, self._headroom(tenant, available, {}))

    def missing(self, tenant: int, needed: int, available: int, freed: Mapping[int, int] | None = None) -> int:
        """By how many blocks ``available`` ones, which may be a negative number, are too few; 0 if they are not.

        Args:
            freed: Tenant → blocks that it would give back first.
        """
        if freed or self.limited:
            available = self._headroom(tenant, available, freed or {})
        return needed - available if needed > available else 0

    def shortage(self, needs: Mapping[int, int], available: int) -> Shortage | None:
        """What keeps all tenants from getting what they need; None if nothing does.

        Args:
            needs: Tenant → blocks.
        """
        after = [used + needs.get(tenant, 0) for tenant, used in enumerate(self.used)]
        for tenant, (used, ceiling) in enumerate(zip(after, self.ceilings, strict=True)):
            if used > ceiling:
                return Shortage(tenant, used - ceiling, self.yields_to(tenant, needs))
        kept = sum(max(0, floor - used) for floor, used in zip(self.floors, after, strict=True))
        excess = sum(needs.values()) + kept - available
        if excess <= 0:
            return None
        # What lies within a floor is always possible, so somebody is beyond: who grows, or whose window moves on from
        # what another goes on using.
        tenant = next(tenant for tenant in (*needs, *range(len(after))) if after[tenant] > self.floors[tenant])
        return Shortage(tenant, excess, self.yields_to(tenant, needs))

    def at_ceiling(self, tenant: int, needed: int) -> bool:
        """Whether its own ceiling, and not the pool, keeps a tenant from taking so many blocks."""
        return self.limited and self.used[tenant] + needed > self.ceilings[tenant] < self._total

    def capacity(self, tenant: int) -> int:
        """The most blocks that a tenant can ever hold."""
        return self._capacities[tenant]

    def yields_to(self, tenant: int, needs: Mapping[int, int] | None = None) -> list[bool]:
        """Per tenant: whether a sequence of it that gives way leaves ``tenant`` more; it does not below its floor.

        Args:
            needs: Tenant → blocks that it is about to take on top.
        """
        needs = needs or {}
        over_ceiling = self.at_ceiling(tenant, needs.get(tenant, 1))
        return [
            other == tenant or (not over_ceiling and used + needs.get(other, 0) > self.floors[other])
            for other, used in enumerate(self.used)
        ]

    def check(self, available: int) -> list[str]:
        """The rules above that do not hold, in words."""
        problems = []
        for tenant, used in enumerate(self.used):
            if not 0 <= used <= self.ceilings[tenant]:
                problems.append(f"tenant {tenant} uses {used} blocks of at most {self.ceilings[tenant]}")
        kept = sum(max(0, floor - used) for floor, used in zip(self.floors, self.used, strict=True))
        if kept > available:
            problems.append(f"{available} blocks are available and {kept} are promised as floors")
        if sum(self.used) != self._total - available:
            problems.append(f"tenants use {sum(self.used)} blocks and the pool {self._total - available}")
        return problems

    def _headroom(self, tenant: int, available: int, freed: Mapping[int, int]) -> int:
        if not self.limited:
            return available + sum(freed.values()) if freed else available
        available += sum(freed.values())
        used = [used - freed.get(other, 0) for other, used in enumerate(self.used)]
        kept = sum(max(0, floor - used[other]) for other, floor in enumerate(self.floors) if other != tenant)
        return min(self.ceilings[tenant] - used[tenant], available - kept)
