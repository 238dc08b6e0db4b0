"""WaitingQueue: order of arrival, whoever comes back and whoever is taken out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from octavo.scheduler.queue import WaitingQueue
from octavo.scheduler.request import Request, Sequence
from octavo.scheduler.sampling import SamplingParams


def make_sequence(number: int, index: int = 0) -> Sequence:
    prompt = np.array([1], dtype=np.int32)
    return Sequence(Request(number, number, prompt, SamplingParams(), 10, 0, "", 0), index, prompt)


def drain(queue: WaitingQueue) -> list[tuple[int, int]]:
    orders = []
    while (sequence := queue.peek()) is not None:
        queue.remove(sequence)
        orders.append(sequence.order)
    return orders


def test_first_come_first_served_siblings_by_index() -> None:
    queue = WaitingQueue()
    for number, index in ((1, 0), (0, 1), (2, 0), (0, 0)):
        queue.push(make_sequence(number, index))
    assert len(queue) == 4
    assert drain(queue) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert len(queue) == 0


def test_an_empty_queue_has_nobody_at_its_head() -> None:
    assert WaitingQueue().peek() is None


def test_looking_at_the_head_takes_nobody_out() -> None:
    queue = WaitingQueue()
    queue.push(first := make_sequence(0))
    assert queue.peek() is queue.peek() is first
    assert first in queue


def test_one_who_comes_back_gets_the_place_of_their_arrival() -> None:
    queue = WaitingQueue()
    first, second, third = (make_sequence(number) for number in range(3))
    for sequence in (first, second, third):
        queue.push(sequence)
    queue.remove(first)
    queue.remove(second)
    queue.push(second)
    queue.push(first)
    assert drain(queue) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_anyone_can_be_taken_out(place: int) -> None:
    queue = WaitingQueue()
    sequences = [make_sequence(number) for number in range(3)]
    for sequence in sequences:
        queue.push(sequence)
    queue.remove(sequences[place])
    assert sequences[place] not in queue
    assert drain(queue) == [(number, 0) for number in range(3) if number != place]


def test_waiting_twice_is_our_bug() -> None:
    queue = WaitingQueue()
    queue.push(sequence := make_sequence(7))
    with pytest.raises(AssertionError, match=r"sequence \(7, 0\) waits already"):
        queue.push(sequence)


def test_the_heap_does_not_keep_those_who_were_taken_out() -> None:
    queue = WaitingQueue()
    queue.push(make_sequence(0))
    for number in range(1, 1000):
        queue.push(sequence := make_sequence(number))
        queue.remove(sequence)
    assert len(queue._heap) <= 2 * len(queue) + 64


def test_it_behaves_like_a_sorted_list() -> None:
    rng = random.Random(0)
    sequences = [make_sequence(number) for number in range(200)]
    queue, model = WaitingQueue(), set[Sequence]()
    for _ in range(5_000):
        sequence = rng.choice(sequences)
        if sequence in model:
            model.remove(sequence)
            queue.remove(sequence)
        else:
            model.add(sequence)
            queue.push(sequence)
        assert len(queue) == len(model)
        if rng.random() < 0.1:
            assert queue.peek() is min(model, key=lambda s: s.order, default=None)
    assert drain(queue) == sorted(sequence.order for sequence in model)
