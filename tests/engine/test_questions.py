"""What the front end asks between two steps is answered under the question's own ticket."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from engines import Engine, plain, prompt

from octavo.config import TenantConfig
from octavo.engine.messages import (
    AddPin,
    CheckIntegrity,
    DropPin,
    IntegrityReport,
    ListPins,
    PinInfo,
    PinReport,
    packed,
)
from octavo.engine.questions import answer
from octavo.errors import InvalidRequestError


@pytest.fixture
def engine() -> Engine:
    """Two full blocks of four tokens are cached, of tenant a and with salt s."""
    engine = Engine(num_blocks=16, pin_ratio=0.5, tenants=[TenantConfig(name="a")])
    engine.add(0, prompt(9), plain(1), "s", tenant="a")
    engine.run()
    return engine


@pytest.fixture
def core(engine: Engine) -> Any:
    scheduler = engine.scheduler
    return SimpleNamespace(scheduler=scheduler, check_integrity=scheduler.check_integrity, pin=_pin(engine))


def _pin(engine: Engine) -> Any:
    def pin(tokens: list[int], ttl: float, *, tenant: str, cache_salt: str) -> Any:
        return engine.scheduler.pin(tokens, ttl, tenant=tenant, salt=cache_salt)

    return pin


def test_pins_are_made_listed_and_dropped(engine: Engine, core: Any) -> None:
    engine.now = 5.0
    made = answer(core, AddPin(packed(prompt(9)), 10.0, "s", "a", ticket=3))
    assert made == PinReport(3, [PinInfo(1, "a", 8, 2, 10.0)])
    engine.now = 9.0
    assert answer(core, ListPins(4)) == PinReport(4, [PinInfo(1, "a", 8, 2, 6.0)])
    assert answer(core, DropPin(1, 5)) == PinReport(5, [PinInfo(1, "a", 8, 2, 6.0)])
    for question in (DropPin(1, 6), ListPins(6)):
        assert answer(core, question) == PinReport(6, [])


def test_what_is_not_cached_is_not_pinned(core: Any) -> None:
    for whose in ({"cache_salt": "s"}, {"tenant": "a"}, {}):
        assert answer(core, AddPin(packed(prompt(9)), 10.0, **whose, ticket=1)) == PinReport(1, [])


def test_what_cannot_be_pinned_is_an_error(core: Any) -> None:
    with pytest.raises(InvalidRequestError, match="fill no block"):
        answer(core, AddPin(packed(prompt(3)), 10.0))


def test_the_pools_state_is_told(engine: Engine, core: Any) -> None:
    assert answer(core, CheckIntegrity(7)) == IntegrityReport(7, [])
    engine.scheduler.manager.tables.lengths[2] = 1
    assert answer(core, CheckIntegrity(7)).problems  # type: ignore[union-attr]
