"""What goes wrong: named sites, each with a probability of its own for each seed, most of them 0."""

from __future__ import annotations

import random
from collections.abc import Callable

# Site → what its probability is drawn from. Each time the site is passed, the fault happens with this probability.
PASSED: dict[str, tuple[float, ...]] = {
    "step raises before anything was written": (0, 0, 0, 0.03, 0.1),
    "step raises and leaves garbage": (0, 0, 0, 0.03, 0.1),
    "request poisons its steps": (0, 0, 0, 0.08),
    "step takes long": (0, 0, 0.01, 0.03),
    "transfer is lost": (0, 0, 0.1),
    "transfer to the device is lost": (0, 0.4),
    "transfers raise": (0, 0, 0.1),
    "engine does not start": (0, 0.5),
    "client leaves": (0, 0.1, 0.4),
    "client reads slowly": (0, 0.1, 0.4),
    "client stops reading": (0, 0, 0.1),
    "request is aborted": (0, 0, 0.1, 0.4),
    "operator pins": (0, 0, 0.05, 0.2),
    "operator invalidates": (0, 0, 0, 0.05),
}

# Site → what its number of times per run is drawn from. They come at random times while requests arrive.
TIMED: dict[str, tuple[int, ...]] = {
    "engine is killed": (0, 0, 0, 1, 2),
    "engine freezes": (0, 0, 0, 0, 1, 2),
    "clock pauses": (0, 0, 0, 1, 3),
    "disk is down": (0, 0, 1, 3),
    "all clients leave": (0, 0, 0, 1, 2),
}


class Faults:
    """One seed's faults. Each site has its own chance, so that one more draw at one site changes no other.

    Args:
        note: Told of every fault.

    Attributes:
        rates: Site → probability. times: site → number of times.
    """

    def __init__(self, seed: int, note: Callable[[str], None]) -> None:
        self._note = note
        self._chances = {site: random.Random(f"{seed}/{site}") for site in (*PASSED, *TIMED)}
        self.rates = {site: self._chances[site].choice(rates) for site, rates in PASSED.items()}
        self.times = {site: self._chances[site].choice(times) for site, times in TIMED.items()}
        self._stopped = False

    def stop(self) -> None:
        """From now on all goes well."""
        self._stopped = True

    def strikes(self, site: str) -> bool:
        """Whether the fault happens now."""
        rate = self.rates[site]
        if not rate or self._stopped or self._chances[site].random() >= rate:
            return False
        self._note(site)
        return True

    def moments(self, site: str, seconds: float) -> list[float]:
        """When the fault happens, in seconds from the start."""
        chance = self._chances[site]
        return sorted(chance.uniform(0, seconds) for _ in range(self.times[site]))

    def chance(self, site: str) -> random.Random:
        """What else is left to chance there: how long, how much."""
        return self._chances[site]
