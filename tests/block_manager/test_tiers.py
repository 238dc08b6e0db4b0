"""Tiers: what sinks where, what is held, what is forgotten; and planned copies that are right in their order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from blocks import transfer

from octavo.block_manager.hashing import Content, root_content
from octavo.block_manager.pool import BlockCounts
from octavo.block_manager.tiers import ContentBlocks, Place, Tier, Tiers, Transfer

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK


def chain(length: int, namespace: int = -2, salt: bytes = b"") -> list[Content]:
    """The contents of so many blocks that follow one another."""
    contents = [root_content(namespace)]
    for index in range(length):
        contents.append(contents[-1].followed_by(salt + bytes([index])))
    return contents[1:]


def sink(tiers: Tiers, *contents: Content) -> None:
    """The device gives these up; they lie in its blocks 101, 102, …"""
    for block, content in enumerate(contents, 101):
        tiers.sink(DEVICE, block, content)


A, B, C, D = chain(4)


# ── sinking ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_lower_tiers_nothing_sinks() -> None:
    tiers = Tiers()
    sink(tiers, A)
    assert not tiers
    assert (tiers.existing, tiers.room, tiers.find(A.digest), tiers.take_planned()) == ((), 0, None, ())
    assert tiers.counts(HOST) == BlockCounts(0, 0, 0, 0)


def test_the_tiers_that_exist_are_listed_nearest_first() -> None:
    assert Tiers(1, 1).existing == (HOST, DISK)
    assert Tiers(0, 1).existing == (DISK,)
    assert Tiers(1, 0).existing == (HOST,)


def test_what_the_device_gives_up_sinks_to_the_host() -> None:
    tiers = Tiers(2, 2)
    tiers.sink(DEVICE, 7, A)
    assert tiers.find(A.digest) == Place(HOST, 1)
    assert tiers.take_planned() == (Transfer(DEVICE, 7, HOST, 1),)
    assert tiers.counts(HOST) == BlockCounts(total=2, used=0, cached=1, free=1)
    assert tiers.counts(DISK) == BlockCounts(total=2, used=0, cached=0, free=2)
    assert tiers.check(Counter()) == []


def test_what_the_host_gives_up_sinks_to_the_disk_before_it_is_written_over() -> None:
    tiers = Tiers(1, 1)
    sink(tiers, A, B)
    assert (tiers.find(A.digest), tiers.find(B.digest)) == (Place(DISK, 1), Place(HOST, 1))
    assert tiers.take_planned() == (
        Transfer(DEVICE, 101, HOST, 1),
        Transfer(HOST, 1, DISK, 1),
        Transfer(DEVICE, 102, HOST, 1),
    )


def test_what_the_disk_gives_up_is_gone() -> None:
    tiers = Tiers(1, 1)
    sink(tiers, A, B, C)
    assert [tiers.find(content.digest) for content in (A, B, C)] == [None, Place(DISK, 1), Place(HOST, 1)]
    assert tiers.check(Counter()) == []


def test_without_a_host_tier_content_sinks_to_the_disk() -> None:
    tiers = Tiers(0, 1)
    sink(tiers, A)
    assert tiers.take_planned() == (Transfer(DEVICE, 101, DISK, 1),)


def test_what_lies_below_already_is_touched_and_not_copied_again() -> None:
    tiers = Tiers(2, 0)
    sink(tiers, A, B)
    tiers.take_planned()
    sink(tiers, A)
    assert tiers.take_planned() == ()
    sink(tiers, C)
    assert [tiers.find(content.digest) for content in (A, B, C)] == [Place(HOST, 1), None, Place(HOST, 2)]


def test_sinking_what_is_held_below_copies_nothing() -> None:
    tiers = Tiers(1, 1)
    place = tiers.store(5, A)
    tiers.take_planned()
    sink(tiers, A)
    assert tiers.take_planned() == ()
    assert tiers.check(Counter([place])) == []


def test_content_that_sinks_to_the_host_may_lie_on_the_disk_as_well() -> None:
    tiers = Tiers(1, 2)
    sink(tiers, A, B)
    tiers.take_planned()
    sink(tiers, A)
    assert tiers.find(A.digest) == Place(HOST, 1)
    assert tiers.take_planned() == (Transfer(HOST, 1, DISK, 2), Transfer(DEVICE, 101, HOST, 1))
    sink(tiers, C)
    # On its way down again A meets its own copy.
    assert tiers.take_planned() == (Transfer(DEVICE, 101, HOST, 1),)
    assert tiers.find(A.digest) == Place(DISK, 1)


def test_a_tier_that_is_not_worthwhile_is_passed_over() -> None:
    tiers = Tiers(1, 1)
    tiers.worthwhile = frozenset({DISK})
    sink(tiers, A)
    assert tiers.take_planned() == (Transfer(DEVICE, 101, DISK, 1),)


def test_where_no_tier_is_worthwhile_nothing_sinks() -> None:
    tiers = Tiers(1, 1)
    tiers.worthwhile = frozenset()
    sink(tiers, A)
    assert (tiers.find(A.digest), tiers.take_planned()) == (None, ())


def test_the_host_gives_content_up_if_the_disk_is_not_worthwhile() -> None:
    tiers = Tiers(1, 1)
    tiers.worthwhile = frozenset({HOST})
    sink(tiers, A, B)
    assert (tiers.find(A.digest), tiers.find(B.digest)) == (None, Place(HOST, 1))
    assert tiers.take_planned() == (Transfer(DEVICE, 101, HOST, 1), Transfer(DEVICE, 102, HOST, 1))


def test_all_existing_tiers_are_worthwhile_at_first() -> None:
    assert Tiers(1, 1).worthwhile == {HOST, DISK}
    assert Tiers(0, 1).worthwhile == {DISK}
    assert Tiers().worthwhile == frozenset()


def test_a_host_full_of_held_blocks_is_passed_over() -> None:
    tiers = Tiers(1, 1)
    tiers.store(5, A)
    sink(tiers, B)
    assert tiers.find(B.digest) == Place(DISK, 1)


def test_content_is_lost_where_all_blocks_below_are_held() -> None:
    tiers = Tiers(1, 1)
    held = [tiers.store(5, A), tiers.store(6, B)]
    tiers.take_planned()
    sink(tiers, C)
    assert (tiers.find(C.digest), tiers.take_planned()) == (None, ())
    assert tiers.check(Counter(held)) == []


def test_the_nearest_copy_is_found() -> None:
    tiers = Tiers(1, 1)
    tiers.worthwhile = frozenset({DISK})
    sink(tiers, A)
    assert tiers.find(A.digest) == Place(DISK, 1)
    tiers.worthwhile = frozenset({HOST, DISK})
    sink(tiers, A)
    assert tiers.find(A.digest) == Place(HOST, 1)


# ── what swapped-out sequences hold ─────────────────────────────────────────────────────────────────────────


def test_a_stored_block_is_held() -> None:
    tiers = Tiers(2, 0)
    place = tiers.store(5, A)
    assert place == Place(HOST, 1)
    assert tiers.take_planned() == (Transfer(DEVICE, 5, HOST, 1),)
    assert tiers.counts(HOST) == BlockCounts(total=2, used=1, cached=0, free=1)
    assert tiers.find(A.digest) == place
    assert not tiers.is_idle(place)


def test_a_block_without_a_content_name_is_held_and_not_found() -> None:
    tiers = Tiers(2, 0)
    place = tiers.store(5, None)
    assert tiers.counts(HOST) == BlockCounts(total=2, used=1, cached=0, free=1)
    assert not any(tiers.find(content.digest) for content in (A, B, C, D))
    assert tiers.check(Counter([place])) == []


def test_storing_fills_the_host_and_then_the_disk() -> None:
    tiers = Tiers(1, 2)
    assert tiers.room == 3
    assert [tiers.store(block, None) for block in (5, 6, 7)] == [Place(HOST, 1), Place(DISK, 1), Place(DISK, 2)]
    assert tiers.room == 0


def test_cached_content_is_room_and_makes_place_by_sinking() -> None:
    tiers = Tiers(1, 1)
    sink(tiers, A)
    tiers.take_planned()
    assert tiers.room == 2
    assert tiers.store(5, B) == Place(HOST, 1)
    assert tiers.take_planned() == (Transfer(HOST, 1, DISK, 1), Transfer(DEVICE, 5, HOST, 1))
    assert tiers.find(A.digest) == Place(DISK, 1)
    assert tiers.room == 1


def test_held_blocks_are_never_given_up() -> None:
    tiers = Tiers(2, 0)
    place = tiers.store(5, A)
    for number in range(10):
        sink(tiers, *chain(3, salt=bytes([number])))
    assert tiers.find(A.digest) == place
    assert tiers.check(Counter([place])) == []


def test_holding_cached_content_uses_up_room() -> None:
    tiers = Tiers(2, 0)
    sink(tiers, A)
    place = tiers.find(A.digest)
    assert place is not None
    assert tiers.is_idle(place)
    tiers.hold(place)
    assert not tiers.is_idle(place)
    assert tiers.room == 1
    assert tiers.check(Counter([place])) == []


def test_what_is_held_twice_is_held_until_it_is_dropped_twice() -> None:
    tiers = Tiers(1, 0)
    place = tiers.store(5, A)
    tiers.hold(place)
    tiers.drop([place])
    assert tiers.room == 0
    assert tiers.check(Counter([place])) == []
    tiers.drop([place])
    assert tiers.room == 1
    assert tiers.check(Counter()) == []


def test_dropped_content_with_a_name_stays_cached_and_the_rest_is_free() -> None:
    tiers = Tiers(2, 0)
    tiers.drop([tiers.store(5, A), tiers.store(6, None)])
    assert tiers.counts(HOST) == BlockCounts(total=2, used=0, cached=1, free=1)
    assert tiers.find(A.digest) == Place(HOST, 1)


def test_what_is_dropped_first_is_given_up_first() -> None:
    tiers = Tiers(2, 0)
    head, tail = tiers.store(5, A), tiers.store(6, B)
    tiers.drop([tail, head])
    sink(tiers, C)
    assert [tiers.find(content.digest) for content in (A, B, C)] == [head, None, tail]


def test_fetching_plans_a_copy_to_the_device() -> None:
    tiers = Tiers(0, 2)
    place = tiers.store(5, A)
    tiers.take_planned()
    tiers.fetch(place, 9)
    assert tiers.take_planned() == (Transfer(DISK, 1, DEVICE, 9),)


def test_what_was_planned_is_taken_once_and_counted_for_ever() -> None:
    tiers = Tiers(1, 1)
    sink(tiers, A, B)
    assert len(tiers.take_planned()) == 3
    assert tiers.take_planned() == ()
    assert tiers.copied == {(DEVICE, HOST): 2, (HOST, DISK): 1}


# ── forgetting ──────────────────────────────────────────────────────────────────────────────────────────────


def test_forgotten_content_is_not_found_and_its_block_is_free() -> None:
    tiers = Tiers(2, 0)
    sink(tiers, A)
    tiers.forget(Place(HOST, 1))
    assert tiers.find(A.digest) is None
    assert tiers.counts(HOST).free == 2


def test_a_held_block_whose_content_is_forgotten_stays_held() -> None:
    tiers = Tiers(1, 0)
    place = tiers.store(5, A)
    tiers.forget(place)
    assert (tiers.find(A.digest), tiers.room) == (None, 0)
    assert tiers.check(Counter([place])) == []
    tiers.drop([place])
    assert tiers.counts(HOST).free == 1


def test_forgetting_what_has_no_name_changes_nothing() -> None:
    tiers = Tiers(2, 0)
    place = tiers.store(5, None)
    tiers.forget(place)
    tiers.forget(Place(HOST, 2))
    assert tiers.check(Counter([place])) == []


def test_a_namespace_is_forgotten_in_every_tier_and_others_stay() -> None:
    tiers = Tiers(2, 4)
    mine, others = chain(3), chain(3, namespace=-3)
    sink(tiers, *mine, *others)
    assert tiers.forget_namespaces([-2]) == 3
    assert not any(tiers.find(content.digest) for content in mine)
    assert all(tiers.find(content.digest) for content in others)
    assert tiers.check(Counter()) == []


def test_what_follows_some_content_is_forgotten_with_it() -> None:
    tiers = Tiers(3, 3)
    before, first, second, third = chain(4)
    beside = before.followed_by(b"beside")
    sink(tiers, third, second, first, before, beside)
    assert tiers.forget_after(first) == 3
    assert [bool(tiers.find(content.digest)) for content in (before, first, second, third, beside)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert tiers.check(Counter()) == []


def test_every_copy_is_forgotten() -> None:
    tiers = Tiers(1, 2)
    sink(tiers, A, B)
    sink(tiers, A)
    assert tiers.forget_after(A) == 3
    assert tiers.find(A.digest) is None


def test_what_follows_is_forgotten_over_a_gap_that_the_device_fills() -> None:
    tiers = Tiers(2, 0)
    (first, second, third), (*others, last) = chain(3), chain(4, salt=b"x")
    sink(tiers, third, last)
    assert tiers.forget_after(first, on_device=[first, second, *others]) == 1
    assert tiers.find(third.digest) is None
    assert tiers.find(last.digest) is not None


def test_what_follows_something_unknown_may_follow_the_forgotten_and_is_dropped_as_well() -> None:
    tiers = Tiers(4, 0)
    (_, _, orphan), (*_, stays), other = chain(3), chain(1, salt=b"x"), chain(2, namespace=-3)[1]
    sink(tiers, orphan, stays, other)
    assert tiers.forget_after(A) == 1
    assert tiers.find(orphan.digest) is None
    assert tiers.find(stays.digest) is not None
    assert tiers.find(other.digest) is not None


# ── the index of a tier ─────────────────────────────────────────────────────────────────────────────────────


def test_two_blocks_with_the_same_content_are_our_bug() -> None:
    index = ContentBlocks(8)
    index.insert(1, A)
    with pytest.raises(AssertionError, match="block 2 holds what block 1 holds"):
        index.insert(2, A)


def test_the_index_tells_what_a_block_holds() -> None:
    index = ContentBlocks(8)
    index.insert(1, A)
    index.insert(2, B)
    assert (index.content_of(1), index.find(B.digest), index.find(C.digest)) == (A, 2, 0)
    index.remove((1,))
    assert (1 in index, 2 in index, index.find(A.digest)) == (False, True, 0)
    assert index.check() == []


def test_the_index_grows_with_what_it_holds() -> None:
    index = ContentBlocks(8)
    assert index.nbytes == 0
    index.insert(1, A)
    assert index.nbytes > 0


# ── check sees what is wrong ────────────────────────────────────────────────────────────────────────────────


def test_check_names_a_held_block_that_no_sequence_holds() -> None:
    tiers = Tiers(1, 1)
    tiers.store(5, None)
    assert tiers.check(Counter()) == ["host block 1 has 1 owners, and 0 swapped-out sequences hold it"]


def test_check_names_a_block_that_a_sequence_believes_to_hold() -> None:
    assert Tiers(1, 1).check(Counter([Place(DISK, 1)])) == [
        "disk block 1 has 0 owners, and 1 swapped-out sequences hold it"
    ]


def test_check_passes_on_what_is_wrong_with_an_index() -> None:
    tiers = Tiers(1, 0)
    sink(tiers, A)
    tiers._levels[HOST].cache._blocks[B.digest] = 1
    assert tiers.check(Counter()) == ["host: digests and blocks disagree"]


def test_check_passes_on_what_is_wrong_with_a_pool() -> None:
    tiers = Tiers(0, 1)
    tiers._levels[DISK]._references = 1
    assert tiers.check(Counter()) == ["disk: counts 1 references, finds 0"]


# ── random work on a model ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class Held:
    """What must lie in a block that is held: a digest, or a number that stands for a half-filled block."""

    content: bytes | int
    named: bool
    holders: int = 1


class NaiveTier:
    """What a tier should hold: lists instead of links."""

    def __init__(self, size: int, below: list[NaiveTier]) -> None:
        self.size = size
        self.below = below  # nearest first
        self.worthwhile = True
        self.cached: list[bytes] = []  # least recently used first
        self.held: dict[int, Held] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self.cached or any(held.content == digest and held.named for held in self.held.values())

    @property
    def room(self) -> int:
        return self.size - len(self.held)

    def make_place(self) -> None:
        if len(self.cached) == self.room:
            sink_naively(self.below, self.cached.pop(0))

    def hold(self, block: int, digest: bytes) -> None:
        if digest in self.cached:
            self.cached.remove(digest)
            self.held[block] = Held(digest, named=True)
        else:
            self.held[block].holders += 1

    def drop(self, block: int) -> None:
        held = self.held[block]
        held.holders -= 1
        if not held.holders:
            del self.held[block]
            if held.named and isinstance(held.content, bytes):
                self.cached.append(held.content)

    def forget(self, digest: bytes) -> None:
        self.cached = [other for other in self.cached if other != digest]
        for held in self.held.values():
            held.named &= held.content != digest


def sink_naively(levels: Iterable[NaiveTier], digest: bytes) -> None:
    for level in levels:
        if not level.worthwhile or not (digest in level or level.room):
            continue
        if digest in level.cached:
            level.cached.remove(digest)
        elif digest in level:
            return
        else:
            level.make_place()
        level.cached.append(digest)
        return


class Work:
    """Tiers under random work, beside naive ones, and beside what lies in each block of each tier.

    A step makes plans and then executes them in order. A device block is given up at most once in a step, is then
    perhaps the target of a copy, and is written to after the transfers.
    """

    NUM_DEVICE_BLOCKS = 8

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        sizes = {HOST: rng.choice([0, 1, 2, 5]), DISK: rng.choice([0, 1, 3, 8])}
        self.tiers = Tiers(sizes[HOST], sizes[DISK])
        disk = NaiveTier(sizes[DISK], [])
        host = NaiveTier(sizes[HOST], [disk] if disk.size else [])
        self.naive = {tier: level for tier, level in ((HOST, host), (DISK, disk)) if level.size}
        self.names = [content for salt in (b"a", b"b") for content in chain(6, salt=salt)] + chain(4, namespace=-3)
        self.by_digest = {content.digest: content for content in self.names}
        self.lying = dict[tuple[Tier, int], bytes | int]()
        self.held: list[Place] = []  # once for each holder
        self.seen = Counter[str]()

    def step(self) -> None:
        tiers, rng, fetched = self.tiers, self.rng, dict[int, bytes | int]()
        for block in range(1, self.NUM_DEVICE_BLOCKS + 1):
            self.lying[DEVICE, block] = rng.choice(self.names).digest
        for block in rng.sample(range(1, self.NUM_DEVICE_BLOCKS + 1), rng.randint(0, self.NUM_DEVICE_BLOCKS)):
            self.give_up(block)
            if self.held and rng.random() < 0.4:
                place = rng.choice(self.held)
                tiers.fetch(place, block)
                fetched[block] = self.naive[place.tier].held[place.block].content
        for action in rng.sample([self.hold, self.drop, self.forget, self.judge], 2):
            action()
        transfer(self.lying, tiers.take_planned())
        assert tiers.check(Counter(self.held)) == []
        assert {block: self.lying[DEVICE, block] for block in fetched} == fetched
        self.compare()

    def give_up(self, block: int) -> None:
        """Sinks or stores what lies in a device block, under its name or without."""
        digest = self.lying[DEVICE, block]
        assert isinstance(digest, bytes)
        known = self.tiers.find(digest)
        if known is not None or not self.tiers.room or self.rng.random() < 0.5:
            self.seen["known below"] += known is not None
            self.seen["no room"] += not self.tiers.room
            self.tiers.sink(DEVICE, block, self.by_digest[digest])
            sink_naively(self.naive.values(), digest)
            return
        named = self.rng.random() < 0.7
        self.seen["named" if named else "nameless"] += 1
        if not named:
            self.lying[DEVICE, block] = self.seen["nameless"]
        place = self.tiers.store(block, self.by_digest[digest] if named else None)
        level = next(level for level in self.naive.values() if level.room)
        assert self.naive[place.tier] is level
        level.make_place()
        level.held[place.block] = Held(self.lying[DEVICE, block], named)
        self.held.append(place)

    def hold(self) -> None:
        """One more sequence comes back for what lies below."""
        digest = self.rng.choice(self.names).digest
        if place := self.tiers.find(digest):
            assert self.tiers.is_idle(place) == (digest in self.naive[place.tier].cached)
            self.tiers.hold(place)
            self.naive[place.tier].hold(place.block, digest)
            self.held.append(place)
            self.seen["hold"] += 1

    def drop(self) -> None:
        """Some sequences end."""
        self.rng.shuffle(self.held)
        for _ in range(self.rng.randint(0, len(self.held))):
            place = self.held.pop()
            self.tiers.drop([place])
            self.naive[place.tier].drop(place.block)

    def forget(self) -> None:
        """Something is made invalid."""
        namespace = self.rng.random() < 0.3
        doomed = self.rng.choice(self.names)
        names = [name for name in self.names if name.namespace == doomed.namespace] if namespace else [doomed]
        there = [(tier, name) for tier in self.naive for name in names if name.digest in self.naive[tier]]
        if namespace:
            assert self.tiers.forget_namespaces([doomed.namespace]) == len(there)
        for tier, name in there:
            if not namespace:
                self.tiers.forget(Place(tier, self.tiers._levels[tier].cache.find(name.digest)))
            self.seen["held content forgotten"] += name.digest not in self.naive[tier].cached
            self.naive[tier].forget(name.digest)

    def judge(self) -> None:
        """Other tiers are worth it now."""
        for level in self.naive.values():
            level.worthwhile = self.rng.random() < 0.8
        self.tiers.worthwhile = frozenset(tier for tier, level in self.naive.items() if level.worthwhile)

    def compare(self) -> None:
        for tier, level in self.naive.items():
            assert self.tiers.counts(tier)[1:3] == (len(level.held), len(level.cached)), tier.name
            for name in self.names:
                block = self.tiers._levels[tier].cache.find(name.digest)
                assert bool(block) == (name.digest in level), f"{tier.name} {name}"
                assert not block or self.lying[tier, block] == name.digest, f"{tier.name} block {block} holds another"
            for block, held in level.held.items():
                assert self.lying[tier, block] == held.content, f"{tier.name} block {block} is held and was given up"
        assert self.tiers.room == sum(level.room for level in self.naive.values())


def test_random_work_agrees_with_naive_tiers() -> None:
    seen = Counter[str]()
    for seed in range(60):
        work = Work(seed)
        try:
            for _ in range(40):
                work.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        seen += work.seen
    assert set(seen) == {"known below", "no room", "named", "nameless", "hold", "held content forgotten"}
