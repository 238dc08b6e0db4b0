"""Sequences: their legal moves, their order, their stream numbers."""

from __future__ import annotations

from itertools import product

import pytest
from factories import make_request

from octavo.scheduler.request import Sequence, SequenceState
from octavo.scheduler.sampling import MAX_N
from octavo.scheduler.streams import split_stream, stream_of

WAITING, RUNNING, PREEMPTED, SWAPPED, FINISHED = SequenceState
LEGAL = {
    (WAITING, RUNNING),
    (WAITING, FINISHED),
    (RUNNING, PREEMPTED),
    (RUNNING, SWAPPED),
    (RUNNING, FINISHED),
    (PREEMPTED, RUNNING),
    (PREEMPTED, FINISHED),
    (SWAPPED, RUNNING),
    (SWAPPED, PREEMPTED),
    (SWAPPED, FINISHED),
}
WAY_TO = {
    WAITING: [],
    RUNNING: [RUNNING],
    PREEMPTED: [RUNNING, PREEMPTED],
    SWAPPED: [RUNNING, SWAPPED],
    FINISHED: [FINISHED],
}


def make_sequence(number: int = 0, index: int = 0, key: int = 0) -> Sequence:
    request = make_request(number, key=key)
    return Sequence(request, index, request.prompt)


def sequence_in(state: SequenceState) -> Sequence:
    sequence = make_sequence()
    for step in WAY_TO[state]:
        sequence.become(step)
    return sequence


@pytest.mark.parametrize(("before", "after"), sorted(LEGAL, key=str))
def test_legal_moves(before: SequenceState, after: SequenceState) -> None:
    sequence = sequence_in(before)
    sequence.become(after)
    assert sequence.state is after


@pytest.mark.parametrize(("before", "after"), sorted(set(product(SequenceState, repeat=2)) - LEGAL, key=str))
def test_any_other_move_is_our_bug(before: SequenceState, after: SequenceState) -> None:
    sequence = sequence_in(before)
    with pytest.raises(AssertionError, match=f"illegal move {before.name} -> {after.name}"):
        sequence.become(after)
    assert sequence.state is before


@pytest.mark.parametrize("key", [0, 1, 2**48])
@pytest.mark.parametrize("index", [0, 1, MAX_N - 1])
def test_a_stream_number_tells_request_and_index(key: int, index: int) -> None:
    assert split_stream(stream_of(key, index)) == (key, index)
    assert make_sequence(key=key, index=index).stream == stream_of(key, index)
    assert stream_of(key, index) < 2**63


def test_order_is_arrival_then_index() -> None:
    sequences = [make_sequence(number, index) for number, index in ((1, 0), (0, 2), (0, 1), (2, 0))]
    assert [s.order for s in sorted(sequences, key=lambda s: s.order)] == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_sequences_are_equal_only_to_themselves() -> None:
    assert make_sequence() != make_sequence()
