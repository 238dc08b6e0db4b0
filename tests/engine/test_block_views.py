"""One block, looked at closely."""

from __future__ import annotations

import pytest
from engines import Engine, plain, prompt

from octavo.block_manager.groups import LayerGroups
from octavo.config import TenantConfig
from octavo.engine.block_views import block_view
from octavo.engine.messages import ReadBlock
from octavo.engine.views import BlockOwner, BlockView
from octavo.errors import NotFoundError
from octavo.scheduler.request import SequenceState


def look(engine: Engine, block: int, tier: str = "device") -> BlockView:
    return block_view(engine.scheduler, ReadBlock(tier, block, ticket=4))


def table(engine: Engine, key: int) -> list[int]:
    return engine.scheduler.manager.tables.blocks(engine.sequence(key).row)


def test_who_owns_it_how_full_and_how_old_it_is() -> None:
    engine = Engine(num_blocks=16, tenants=[TenantConfig(name="a")])
    engine.now = 10.0
    engine.add(1, prompt(10), plain(9), tenant="a")
    engine.step()
    engine.now = 12.5
    engine.add(2, prompt(9), plain(9), tenant="a")
    engine.step()
    first, _, last = table(engine, 1)
    shared, tail = look(engine, first), look(engine, last)
    assert (shared.state, shared.filled, shared.size, shared.age, shared.idle, shared.hits) == (
        "used",
        4,
        4,
        2.5,
        None,
        1,
    )
    assert shared.owners == [BlockOwner(1, 0, "a", 0), BlockOwner(2, 0, "a", 0)]
    assert shared.hash is not None
    assert len(shared.hash) == 16
    assert (tail.filled, tail.owners, tail.hash, tail.parent) == (3, [BlockOwner(1, 0, "a", 2)], None, None)
    assert look(engine, table(engine, 1)[1]).parent == first
    assert shared.parent == 0


def test_a_cached_one_is_idle_and_a_free_one_is_nothing() -> None:
    engine = Engine(num_blocks=16)
    engine.add(1, prompt(5), plain(1))
    engine.step()
    engine.now = 3.0
    cached = look(engine, 1)
    assert (cached.state, cached.owners, cached.filled, cached.age, cached.idle) == ("cached", [], 4, 3.0, 3.0)
    free = look(engine, 16)
    assert (free.state, free.filled, free.hash, free.age, free.idle, free.hits) == ("free", 0, None, None, None, 0)


def test_a_pin_is_an_owner() -> None:
    engine = Engine(num_blocks=16, pin_ratio=0.5)
    engine.add(1, prompt(9), plain(1))
    engine.run()
    pin = engine.scheduler.pin(prompt(8), 10.0)
    assert pin is not None
    view = look(engine, pin.blocks[1])
    assert (view.state, view.owners) == ("pinned", [BlockOwner(0, pin.number, "default", 1)])


def test_below_the_device_it_is_who_comes_back_for_it() -> None:
    engine = Engine(num_blocks=8, max_num_seqs=3, host_blocks=8, preemption="swap")
    for key in range(3):
        engine.add(key + 1, prompt(7, start=key * 10), plain(12))
    victim = engine.step_until(SequenceState.SWAPPED, 2)
    assert victim.swapped is not None
    engine.now = 2.0
    for position, place in enumerate(victim.swapped.places):
        assert place is not None
        view = look(engine, place.block, "host")
        assert (view.state, view.owners) == ("used", [BlockOwner(3, 0, "default", position)])
        assert view.filled == min(4, victim.swapped.num_tokens - 4 * position)
        assert (view.hash is not None) == (view.filled == 4)


def test_with_windows_a_block_is_part_of_a_column() -> None:
    engine = Engine(num_blocks=30, groups=LayerGroups(((0,), (1,), (2,)), 1, 6))
    engine.add(1, prompt(10), plain(9))
    engine.step()
    owned = [block for block in range(1, 31) if look(engine, block).owners]
    assert len(owned) == engine.scheduler.manager.pool.counts.used
    assert {look(engine, block).owners[0].key for block in owned} == {1}


@pytest.mark.parametrize(("tier", "block"), [("device", 0), ("device", 17), ("host", 1), ("moon", 1)])
def test_what_there_is_not(tier: str, block: int) -> None:
    with pytest.raises(NotFoundError, match=f"'{tier}'; this engine has device|no block {block}; device has 1 to 16"):
        look(Engine(num_blocks=16), block, tier)
