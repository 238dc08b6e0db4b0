"""Tenants: who shares the engine, and how much service each has had.

The virtual counters are those of the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models",
arXiv:2401.00588): a tenant's counter grows by the service it gets, divided by its weight, and whoever has the smallest
comes next. One that comes back after a pause is lifted to the smallest counter of those who waited meanwhile, so that
nobody saves up service.

Between two tenants that both have requests waiting all the time, services divided by weights differ by at most

    2 · max(PROMPT_COST · longest prompt, OUTPUT_COST · tokens that the KV pool holds) / smallest weight

(theorem 4.4 there), plus what preempted sequences hold while they wait, which is within the second term.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.config import DEFAULT_TENANT, TenantConfig
from octavo.errors import InvalidRequestError

# Service per token, as in the paper: an output token costs about as much as two of a prompt.
PROMPT_COST = 1.0
OUTPUT_COST = 2.0


@dataclass(eq=False, slots=True)
class Tenant:
    """One of those who share the engine.

    Attributes:
        index: Its number in quotas and columns.
        virtual: Service so far divided by ``weight``, lifted after pauses.
    """

    name: str
    index: int
    weight: float = 1.0
    virtual: float = 0.0


class Tenants:
    """All tenants; "default" is who requests without a tenant belong to, whether it is configured or not."""

    def __init__(self, configured: Sequence[TenantConfig] = ()) -> None:
        known = {tenant.name: tenant for tenant in configured}
        if DEFAULT_TENANT not in known:
            known = {DEFAULT_TENANT: TenantConfig(name=DEFAULT_TENANT), **known}
        self.configs = tuple(known.values())
        self._tenants = [Tenant(config.name, index, config.weight) for index, config in enumerate(self.configs)]
        self._by_name = {tenant.name: tenant for tenant in self._tenants}

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants)

    def named(self, name: str) -> Tenant:
        """The tenant of this name.

        Raises:
            InvalidRequestError: There is none.
        """
        tenant = self._by_name.get(name or DEFAULT_TENANT)
        if tenant is None:
            raise InvalidRequestError(
                f"unknown tenant {name!r}; the known ones are {', '.join(self._by_name)}", param="tenant"
            )
        return tenant

    def charge_prompt(self, tenant: Tenant, tokens: int) -> None:
        """Counts prompt tokens that are computed for a tenant."""
        tenant.virtual += PROMPT_COST * tokens / tenant.weight

    def charge_output(self, tenants: npt.NDArray[np.int32]) -> None:
        """Counts one output token for each entry: int32, tenants' indices."""
        if len(self._tenants) == 1:
            self._tenants[0].virtual += OUTPUT_COST * len(tenants) / self._tenants[0].weight
            return
        for tenant, tokens in zip(self._tenants, np.bincount(tenants, minlength=len(self._tenants)), strict=True):
            tenant.virtual += OUTPUT_COST * int(tokens) / tenant.weight
