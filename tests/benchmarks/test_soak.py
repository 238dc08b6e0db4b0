"""What the soak calls a fault, and what it does not."""

from __future__ import annotations

import httpx
import pytest
from soak import FILES_MAY_GROW, Look, Soak, differences, faults, slope


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("used blocks", 1, True),
        ("used blocks", 0, False),
        ("files of the engine", FILES_MAY_GROW, False),
        ("files of the engine", FILES_MAY_GROW + 1, True),
        ("files of the engine", -10, False),
    ],
)
def test_what_did_not_come_back_is_told(name: str, more: int, told: bool) -> None:
    assert bool(differences({name: 20.0}, {name: 20.0 + more})) == told


@pytest.mark.parametrize(("outcome", "told"), [("200", False), ("left", False), ("500", True), ("broken: x", True)])
async def test_requests_have_to_end_properly(outcome: str, told: bool) -> None:
    async with httpx.AsyncClient() as http:
        run = Soak(http)
        run.outcomes["chat"][outcome] += 1
        assert bool(faults(run)) == told


def test_growth_is_that_of_the_later_half() -> None:
    sizes = [100 * at for at in range(20)] + [2000 + at for at in range(20)]
    looks = [Look(float(at), size, 5, 2) for at, size in enumerate(sizes)]
    assert slope(looks) == pytest.approx(60)
