"""Waiting queues: first come first served, by priority, and tenants in turn; who comes back and who is taken out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from factories import make_request

from octavo.scheduler.queue import FairQueue, OrderedQueue, WaitingQueue, make_queue
from octavo.scheduler.request import Sequence
from octavo.scheduler.tenants import Tenant

POLICIES = ("fcfs", "priority", "fair")


def make_sequence(number: int, index: int = 0, priority: int = 0, tenant: Tenant | None = None) -> Sequence:
    request = make_request(number, priority=priority, tenant=tenant or _DEFAULT)
    return Sequence(request, index, request.prompt)


_DEFAULT = Tenant("default", 0)


def drain(queue: WaitingQueue) -> list[tuple[int, int]]:
    orders = []
    while (sequence := next(queue.in_turn(), None)) is not None:
        queue.remove(sequence)
        orders.append(sequence.order)
    return orders


def turns(queue: WaitingQueue) -> list[int]:
    """The requests' numbers in turn."""
    return [sequence.request.number for sequence in queue.in_turn()]


# ── every queue ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", POLICIES)
def test_equals_are_served_first_come_first_served_siblings_by_index(policy: str) -> None:
    queue = make_queue(policy)
    for number, index in ((1, 0), (0, 1), (2, 0), (0, 0)):
        queue.push(make_sequence(number, index))
    assert len(queue) == 4
    assert drain(queue) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert len(queue) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_queue_has_nobody_in_it(policy: str) -> None:
    assert list(make_queue(policy).in_turn()) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_looking_at_the_head_takes_nobody_out(policy: str) -> None:
    queue = make_queue(policy)
    queue.push(first := make_sequence(0))
    assert next(queue.in_turn()) is next(queue.in_turn()) is first
    assert first in queue


@pytest.mark.parametrize("policy", POLICIES)
def test_one_who_comes_back_gets_the_place_of_their_arrival(policy: str) -> None:
    queue = make_queue(policy)
    first, second, third = (make_sequence(number) for number in range(3))
    for sequence in (first, second, third):
        queue.push(sequence)
    queue.remove(first)
    queue.remove(second)
    queue.push(second)
    queue.push(first)
    assert drain(queue) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_anyone_can_be_taken_out(policy: str, place: int) -> None:
    queue = make_queue(policy)
    sequences = [make_sequence(number) for number in range(3)]
    for sequence in sequences:
        queue.push(sequence)
    queue.remove(sequences[place])
    assert sequences[place] not in queue
    assert drain(queue) == [(number, 0) for number in range(3) if number != place]


@pytest.mark.parametrize("policy", POLICIES)
def test_waiting_twice_is_our_bug(policy: str) -> None:
    queue = make_queue(policy)
    queue.push(sequence := make_sequence(7))
    with pytest.raises(AssertionError, match=r"sequence \(7, 0\) waits already"):
        queue.push(sequence)


def test_an_ordered_queue_does_not_keep_those_who_were_taken_out() -> None:
    queue = OrderedQueue()
    queue.push(make_sequence(0))
    for number in range(1, 1000):
        queue.push(sequence := make_sequence(number))
        queue.remove(sequence)
    assert len(queue._sequences) == len(queue._members) == 1


def test_a_fair_queue_does_not_keep_tenants_who_left() -> None:
    queue = FairQueue()
    for index in range(1000):
        queue.push(sequence := make_sequence(index, tenant=Tenant(str(index), index)))
        queue.remove(sequence)
    assert not queue._lanes


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_it_behaves_like_a_sorted_list(policy: str) -> None:
    rng = random.Random(0)
    sequences = [make_sequence(number, priority=rng.randrange(-2, 3)) for number in range(200)]
    queue, model = make_queue(policy), set[Sequence]()
    key: Callable[[Sequence], tuple[int, ...]] = lambda s: (s.request.priority * (policy == "priority"), *s.order)  # noqa: E731
    for _ in range(5_000):
        sequence = rng.choice(sequences)
        if sequence in model:
            model.remove(sequence)
            queue.remove(sequence)
        else:
            model.add(sequence)
            queue.push(sequence)
        assert len(queue) == len(model)
        assert (sequence in queue) == (sequence in model)
        if rng.random() < 0.1:
            assert next(queue.in_turn(), None) is min(model, key=key, default=None)
    assert list(queue.in_turn()) == sorted(model, key=key)


# ── by priority ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_smaller_priority_number_comes_first() -> None:
    queue = make_queue("priority")
    for number, priority in enumerate((5, 0, -1, 0, 5)):
        queue.push(make_sequence(number, priority=priority))
    assert turns(queue) == [2, 1, 3, 0, 4]


def test_without_that_policy_a_priority_changes_nothing() -> None:
    for policy in ("fcfs", "fair"):
        queue = make_queue(policy)
        for number, priority in enumerate((5, 0, -1)):
            queue.push(make_sequence(number, priority=priority))
        assert turns(queue) == [0, 1, 2]


def test_running_sequences_are_kept_in_the_order_of_the_policy() -> None:
    early, urgent = make_sequence(0, priority=5), make_sequence(1, priority=0)
    assert sorted((urgent, early), key=make_queue("fcfs").order) == [early, urgent]
    assert sorted((early, urgent), key=make_queue("priority").order) == [urgent, early]
    assert sorted((urgent, early), key=make_queue("fair").order) == [early, urgent]


def test_rank_is_what_the_policy_forbids_to_reorder() -> None:
    tenants = Tenant("a", 0), Tenant("b", 1)
    here, later = make_sequence(0, priority=1, tenant=tenants[0]), make_sequence(5, priority=1, tenant=tenants[1])
    urgent = make_sequence(2, priority=0, tenant=tenants[0])
    fcfs, priority, fair = map(make_queue, POLICIES)
    assert fcfs.rank(here) == fcfs.rank(later) == fcfs.rank(urgent)
    assert priority.rank(here) == priority.rank(later) != priority.rank(urgent)
    assert fair.rank(here) == fair.rank(urgent) != fair.rank(later)


# ── tenants in turn ─────────────────────────────────────────────────────────────────────────────────────────


def fair_queue(*virtual: float) -> tuple[FairQueue, list[Tenant]]:
    """Tenants with this much service so far, each with three sequences: tenant t's are 10·t, 10·t + 1, 10·t + 2."""
    queue, tenants = FairQueue(), [Tenant(str(index), index) for index in range(len(virtual))]
    for number in range(3):
        for tenant in tenants:
            queue.push(make_sequence(10 * tenant.index + number, tenant=tenant))
    for tenant, service in zip(tenants, virtual, strict=True):
        tenant.virtual = service
    return queue, tenants


def test_whoever_had_least_service_comes_first_and_then_everybody_in_turn() -> None:
    queue, _ = fair_queue(5.0, 1.0, 3.0)
    assert turns(queue) == [10, 20, 0, 11, 21, 1, 12, 22, 2]


def test_of_tenants_with_equal_service_the_first_one_named_comes_first() -> None:
    queue, _ = fair_queue(2.0, 1.0, 1.0)
    assert turns(queue)[:3] == [10, 20, 0]


def test_tenants_with_fewer_waiting_drop_out_of_the_rounds() -> None:
    queue, tenants = fair_queue(0.0, 1.0)
    for sequence in [s for s in queue.in_turn() if s.request.tenant is tenants[0]][1:]:
        queue.remove(sequence)
    assert turns(queue) == [0, 10, 11, 12]


def test_one_who_comes_back_after_a_pause_is_lifted_to_the_least_served_of_those_who_waited() -> None:
    queue, _ = fair_queue(70.0, 50.0)
    late = Tenant("late", 2, virtual=3.0)
    queue.push(make_sequence(90, tenant=late))
    assert late.virtual == 50.0


def test_one_who_has_had_more_than_those_who_waited_is_not_let_off() -> None:
    queue, _ = fair_queue(70.0, 50.0)
    late = Tenant("late", 2, virtual=60.0)
    queue.push(make_sequence(90, tenant=late))
    assert late.virtual == 60.0


def test_a_tenant_that_waits_is_not_lifted_by_another_request() -> None:
    queue, tenants = fair_queue(70.0, 5.0)
    queue.push(make_sequence(90, tenant=tenants[1]))
    assert tenants[1].virtual == 5.0


def test_when_nobody_waits_one_is_lifted_to_who_left_the_queue_last() -> None:
    queue, tenants = fair_queue(70.0, 50.0)
    for tenant in tenants:  # the second one leaves last
        for sequence in [s for s in queue.in_turn() if s.request.tenant is tenant]:
            queue.remove(sequence)
    late = Tenant("late", 2, virtual=3.0)
    queue.push(make_sequence(90, tenant=late))
    assert late.virtual == 50.0


def test_who_left_last_counts_with_the_service_it_has_had_since() -> None:
    queue, (tenant,) = fair_queue(50.0)
    for sequence in list(queue.in_turn()):
        queue.remove(sequence)
    tenant.virtual = 80.0  # its requests run
    late = Tenant("late", 1, virtual=3.0)
    queue.push(make_sequence(90, tenant=late))
    assert late.virtual == 80.0


def test_the_first_one_ever_starts_at_nothing() -> None:
    queue = FairQueue()
    queue.push(make_sequence(0, tenant=(tenant := Tenant("a", 0))))
    assert tenant.virtual == 0.0
