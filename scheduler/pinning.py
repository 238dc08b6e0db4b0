"""Pins, seen from outside: keep a prefix resident for some time, list what is kept, let it go.

A prefix that is not cached yet is computed by a request of its own, and pinned when that request's prompt is complete.
"""

from __future__ import annotations

import math

from octavo.block_manager.pins import Pin
from octavo.errors import InvalidRequestError, NeverFitsError, PinBudgetError
from octavo.scheduler.request import Tokens
from octavo.scheduler.state import State
from octavo.scheduler.tenants import Tenant


class Pinning:
    """The scheduler's pins. Changes blocks."""

    def __init__(self, state: State) -> None:
        self._state = state

    def check_ttl(self, ttl: float) -> None:
        """Raises:
        InvalidRequestError: ``ttl`` is no positive number.
        """
        if type(ttl) not in (int, float) or not (math.isfinite(ttl) and ttl > 0):
            raise InvalidRequestError(f"ttl must be a number of seconds above 0, not {ttl!r}", param="ttl")

    def check_size(self, num_tokens: int) -> None:
        """Refuses what can never be pinned.

        Raises:
            InvalidRequestError: No block is full, or nothing is cached at all.
            NeverFitsError: More blocks than may ever be pinned.
        """
        pins, size = self._state.manager.pins, self._state.manager.block_size
        if not self._state.manager.prefix_caching:
            raise InvalidRequestError("nothing can be pinned while prefix caching is off", param="prompt")
        blocks = self._state.manager.pin_size(num_tokens // size)
        if num_tokens < size:
            raise InvalidRequestError(
                f"{num_tokens} tokens fill no block of {size}; only full blocks can be pinned", param="prompt"
            )
        if blocks > pins.budget:
            raise NeverFitsError(
                f"{num_tokens} tokens are {blocks} blocks, and at most {pins.budget} may be pinned (--pin-ratio)",
                largest=pins.budget // self._state.manager.blocks_per_column * size,
                param="prompt",
            )

    def pin(self, tokens: Tokens, ttl: float, tenant: Tenant, salt: str) -> Pin | None:
        """Pins the full blocks of some tokens for ``ttl`` seconds; None if they are not all cached.

        Raises:
            InvalidRequestError, NeverFitsError: They can never be pinned.
            PinBudgetError: Other pins leave too little of the budget.
        """
        state, manager = self._state, self._state.manager
        self.check_ttl(ttl)
        self.check_size(len(tokens))
        self.expire()
        blocks, namespace = manager.find_pinnable(tokens, salt, tenant.index)
        if len(blocks) < len(tokens) // manager.block_size:
            return None
        if missing := manager.pins_missing(blocks):
            raise PinBudgetError(
                f"{len(blocks)} blocks cannot be pinned: {manager.pinned_blocks} of {manager.pins.budget} are "
                f"pinned already, {missing} too many; drop a pin, or wait until one expires"
            )
        if manager.blocks_to_pin(blocks) > manager.room(tenant.index):
            raise PinBudgetError(f"{len(blocks)} blocks cannot be pinned: tenant {tenant.name} may hold no more")
        return manager.pin(blocks, namespace, tenant.index, state.clock() + ttl)

    def drop(self, number: int) -> bool:
        """Drops a pin; False if there is none of this number (any more)."""
        pin = self._state.manager.pins.find(number)
        if pin is None:
            return False
        self._state.manager.unpin(pin)
        return True

    def listed(self) -> list[Pin]:
        """The pins there are; the one that expires next comes first."""
        self.expire()
        return self._state.manager.pins.listed()

    def expire(self) -> None:
        """Drops the pins whose time is over."""
        manager, now = self._state.manager, self._state.clock()
        while manager.pins.next_expiry <= now:
            manager.unpin(manager.pins.listed()[0])
            self._state.counters.pins_expired += 1
