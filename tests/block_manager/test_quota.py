"""Quota: floors are kept free until they are used, ceilings are never passed, and who has to give way helps."""

from __future__ import annotations

import random

import pytest

from octavo.block_manager.quota import Quota, Shortage
from octavo.errors import ConfigError


def used(quota: Quota, *blocks: int) -> Quota:
    """The quota, after each tenant has taken so many blocks."""
    for tenant, count in enumerate(blocks):
        quota.charge(tenant, count)
    return quota


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────


def test_floors_may_add_up_to_the_whole_pool_and_to_no_more() -> None:
    Quota(10, [4, 6], [None, None])
    with pytest.raises(ConfigError, match=r"^the tenants' floors add up to 11 blocks, and the pool has 10$"):
        Quota(10, [4, 7], [None, None])


def test_a_floor_may_reach_its_ceiling_and_no_further() -> None:
    Quota(10, [0, 4], [None, 4])
    with pytest.raises(ConfigError, match=r"^tenant 1 has a floor of 5 blocks above its ceiling of 4$"):
        Quota(10, [0, 5], [None, 4])


def test_a_ceiling_above_the_pool_is_the_pool() -> None:
    quota = Quota(10, [0], [99])
    assert quota.ceilings == (10,)
    assert not quota.limited


@pytest.mark.parametrize(
    ("floors", "ceilings", "limited"),
    [([0, 0], [None, None], False), ([0, 1], [None, None], True), ([0, 0], [9, None], True), ([0, 0], [10, 10], False)],
)
def test_a_quota_without_floors_and_ceilings_limits_nobody(
    floors: list[int], ceilings: list[int | None], limited: bool
) -> None:
    assert Quota(10, floors, ceilings).limited == limited


# ── room ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_limits_everybody_has_room_for_all_that_is_available() -> None:
    quota = used(Quota(10, [0, 0], [None, None]), 3, 2)
    assert [quota.room(tenant, 5) for tenant in (0, 1)] == [5, 5]


def test_a_tenant_has_room_up_to_its_ceiling() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 0, 3)
    assert [quota.room(tenant, 7) for tenant in (0, 1)] == [7, 1]


def test_what_others_have_not_used_of_their_floors_is_no_room() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 0, 1)
    assert [quota.room(tenant, 9) for tenant in (0, 1)] == [6, 9]


def test_a_tenant_above_its_floor_keeps_nothing_from_others() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 0, 6)
    assert quota.room(0, 4) == 4


def test_room_is_never_negative() -> None:
    quota = Quota(10, [0, 4], [None, None])
    assert quota.room(0, 3) == 0
    assert quota.room(0, -5) == 0


def test_what_is_missing_counts_from_below_zero() -> None:
    limited, plain = Quota(10, [0, 4], [None, None]), Quota(10, [0, 0], [None, None])
    assert [limited.missing(0, needed, 9) for needed in (5, 6)] == [0, 1]
    assert limited.missing(0, 1, 2) == 3
    assert limited.missing(0, 1, -2) == 7
    assert [plain.missing(0, 1, available) for available in (1, 0, -2)] == [0, 1, 3]


def test_what_others_give_back_first_is_not_missing_unless_it_is_their_floor() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 3, 6)
    assert quota.missing(0, 4, 1) == 3
    assert quota.missing(0, 4, 1, {1: 2}) == 1
    assert quota.missing(0, 4, 1, {1: 4}) == 1
    assert quota.missing(0, 4, 1, {0: 3}) == 0


def test_what_a_tenant_gives_back_first_counts_against_its_ceiling() -> None:
    quota = used(Quota(10, [0, 0], [4, None]), 3, 2)
    assert quota.missing(0, 3, 5) == 2
    assert quota.missing(0, 3, 5, {0: 1}) == 1
    assert quota.missing(0, 3, 5, {1: 2}) == 2


# ── capacity ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("floors", "ceilings", "capacities"),
    [
        ([0, 0], [None, None], [10, 10]),
        ([0, 4], [None, None], [6, 10]),
        ([3, 4], [None, None], [6, 7]),
        ([3, 4], [5, 4], [5, 4]),
    ],
)
def test_the_most_that_a_tenant_can_ever_hold_leaves_others_their_floors(
    floors: list[int], ceilings: list[int | None], capacities: list[int]
) -> None:
    quota = Quota(10, floors, ceilings)
    assert [quota.capacity(tenant) for tenant in (0, 1)] == capacities
    used(quota, 2, 1)
    assert [quota.capacity(tenant) for tenant in (0, 1)] == capacities


# ── at the ceiling ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_tenant_is_at_its_ceiling_when_the_next_block_would_pass_it() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 8, 3)
    assert [quota.at_ceiling(1, needed) for needed in (1, 2)] == [False, True]


def test_the_end_of_the_pool_is_no_ceiling() -> None:
    quota = used(Quota(10, [0, 1], [None, None]), 9, 1)
    assert not quota.at_ceiling(0, 5)
    assert not used(Quota(10), 10).at_ceiling(0, 1)


# ── shortage ────────────────────────────────────────────────────────────────────────────────────────────────


def test_needs_that_fit_are_no_shortage() -> None:
    quota = used(Quota(10, [0, 4], [None, 5]), 3, 3)
    assert quota.shortage({}, 4) is None
    assert quota.shortage({0: 3}, 4) is None
    assert quota.shortage({0: 2, 1: 2}, 4) is None


def test_a_shortage_tells_by_how_many_blocks_a_ceiling_is_passed() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 0, 3)
    assert quota.shortage({1: 3}, 7) == Shortage(tenant=1, blocks=2, yields=[False, True])


def test_a_shortage_tells_by_how_many_blocks_the_pool_is_too_small() -> None:
    quota = used(Quota(10, [0, 0], [None, 9]), 4, 4)
    assert quota.shortage({0: 2, 1: 3}, 2) == Shortage(tenant=0, blocks=3, yields=[True, True])


def test_what_others_were_promised_is_short_too() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 5, 1)
    assert quota.shortage({0: 1}, 4) is None
    assert quota.shortage({0: 2}, 4) == Shortage(tenant=0, blocks=1, yields=[True, False])


def test_growing_within_a_floor_is_never_what_a_shortage_is_blamed_on() -> None:
    quota = used(Quota(10, [4, 0], [None, None]), 2, 6)
    assert quota.shortage({0: 2}, 2) is None
    assert quota.shortage({0: 2, 1: 1}, 2) == Shortage(tenant=1, blocks=1, yields=[False, True])


# ── who gives way ───────────────────────────────────────────────────────────────────────────────────────────


def test_below_its_floor_nobodys_giving_way_helps_another() -> None:
    quota = used(Quota(10, [0, 4, 2], [None, None, None]), 1, 4, 3)
    assert quota.yields_to(0) == [True, False, True]
    assert quota.yields_to(1) == [True, True, True]


def test_somebody_about_to_grow_above_its_floor_helps() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 5, 4)
    assert quota.yields_to(0) == [True, False]
    assert quota.yields_to(0, {0: 1, 1: 1}) == [True, True]


def test_at_its_own_ceiling_only_the_tenant_itself_helps() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 6, 4)
    assert quota.yields_to(1) == [False, True]
    assert quota.yields_to(0) == [True, True]


def test_whether_a_tenant_is_at_its_ceiling_depends_on_what_it_needs() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 6, 2)
    assert quota.yields_to(1, {1: 2}) == [True, True]
    assert quota.yields_to(1, {1: 3}) == [False, True]


# ── the rules hold ──────────────────────────────────────────────────────────────────────────────────────────


def excess(quota: Quota, total: int, used: list[int]) -> int:
    """By how many blocks the pool is too small for what is used and what is promised."""
    return sum(used) + sum(max(0, floor - count) for floor, count in zip(quota.floors, used, strict=True)) - total


def broken(quota: Quota, total: int, used: list[int]) -> bool:
    """Whether any of the rules in the module's docstring is broken."""
    passed = any(count > ceiling for count, ceiling in zip(used, quota.ceilings, strict=True))
    return passed or excess(quota, total, used) > 0


def random_quota(rng: random.Random) -> tuple[Quota, int]:
    total, tenants = rng.randint(1, 14), rng.randint(1, 4)
    ceilings = [rng.choice([None, rng.randint(0, total + 2)]) for _ in range(tenants)]
    left, floors = total, []
    for ceiling in ceilings:
        floors.append(rng.choice([0, rng.randint(0, min(left, total if ceiling is None else ceiling))]))
        left -= floors[-1]
    return Quota(total, floors, ceilings), total


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_hold_whatever_tenants_take_within_their_room(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        quota, total = random_quota(rng)
        for _ in range(30):
            tenant, available = rng.randrange(len(quota.used)), total - sum(quota.used)
            room = quota.room(tenant, available)
            for more in range(available + 2):
                after = [count + more * (other == tenant) for other, count in enumerate(quota.used)]
                assert (more <= room) == (not broken(quota, total, after))
                assert quota.missing(tenant, more, available) == max(0, more - room)
            check_freed(rng, quota, tenant, available)
            quota.charge(tenant, rng.choice([rng.randint(0, room), -rng.randint(0, quota.used[tenant])]))
            assert quota.check(total - sum(quota.used)) == []


def check_freed(rng: random.Random, quota: Quota, tenant: int, available: int) -> None:
    """What is missing if some tenants give blocks back is what is missing when they have."""
    freed = {other: rng.randint(0, count) for other, count in enumerate(quota.used) if rng.random() < 0.5}
    needed = rng.randint(0, available + 3)
    before = quota.missing(tenant, needed, available, freed)
    for other, blocks in freed.items():
        quota.charge(other, -blocks)
    assert before == quota.missing(tenant, needed, available + sum(freed.values()))
    for other, blocks in freed.items():
        quota.charge(other, blocks)


@pytest.mark.parametrize("seed", range(20))
def test_there_is_a_shortage_only_if_a_rule_would_break_and_who_yields_ends_it(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        quota, total = random_quota(rng)
        tenants = range(len(quota.used))
        for tenant in tenants:
            quota.charge(tenant, rng.randint(0, quota.room(tenant, total - sum(quota.used))))
        needs = {tenant: rng.randint(0, 4) for tenant in tenants if rng.random() < 0.6}
        while (shortage := quota.shortage(needs, total - sum(quota.used))) is not None:
            check_shortage(quota, total, needs, shortage)
            givers = [tenant for tenant in tenants if shortage.yields[tenant] and quota.used[tenant]]
            if not givers:
                assert broken(quota, total, [needs.get(tenant, 0) for tenant in tenants]), "others could have yielded"
                break
            quota.charge(rng.choice(givers), -1)
        else:
            assert not broken(quota, total, [count + needs.get(tenant, 0) for tenant, count in enumerate(quota.used)])


def check_shortage(quota: Quota, total: int, needs: dict[int, int], shortage: Shortage) -> None:
    """It has the right size, and exactly those yield whose every block makes it smaller."""
    after = [count + needs.get(tenant, 0) for tenant, count in enumerate(quota.used)]
    ceiling = quota.ceilings[shortage.tenant]
    if after[shortage.tenant] > ceiling:
        assert shortage.blocks == after[shortage.tenant] - ceiling
    else:
        assert shortage.blocks == excess(quota, total, after)
        assert after[shortage.tenant] > quota.floors[shortage.tenant]
    for tenant in range(len(after)):
        less = [count - (other == tenant) for other, count in enumerate(after)]
        if after[shortage.tenant] > ceiling and ceiling < total:
            helps = tenant == shortage.tenant
        else:
            helps = excess(quota, total, less) < excess(quota, total, after)
        assert shortage.yields[tenant] == helps or not quota.used[tenant]


# ── check sees what is wrong ────────────────────────────────────────────────────────────────────────────────


def test_check_names_a_tenant_above_its_ceiling() -> None:
    quota = used(Quota(10, [0, 0], [None, 4]), 0, 5)
    assert quota.check(5) == ["tenant 1 uses 5 blocks of at most 4"]


def test_check_names_a_tenant_that_gave_back_what_it_never_had() -> None:
    quota = used(Quota(10), -1)
    assert quota.check(11) == ["tenant 0 uses -1 blocks of at most 10"]


def test_check_names_floors_that_are_not_kept_free() -> None:
    quota = used(Quota(10, [0, 4], [None, None]), 7, 0)
    assert quota.check(3) == ["3 blocks are available and 4 are promised as floors"]


def test_check_compares_what_tenants_use_with_what_the_pool_gave_out() -> None:
    quota = used(Quota(10), 3)
    assert quota.check(6) == ["tenants use 3 blocks and the pool 4"]
