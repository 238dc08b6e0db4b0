"""A request's story, told while it goes on and after it has ended."""

from __future__ import annotations

from typing import Any

from engines import Engine, Pace, plain, prompt

from octavo.engine.messages import ReadStory
from octavo.engine.stories import story
from octavo.engine.views import Story
from octavo.scheduler.decisions import Wait, WaitReason
from octavo.scheduler.history import MOST_ENDED, MOST_WAITS, EventKind, Histories, History
from octavo.scheduler.request import SequenceState


def tell(engine: Engine, key: int) -> Story:
    found = story(engine.scheduler, ReadStory(key, ticket=9))
    assert found.ticket == 9
    return found


def events(found: Story, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in found.events if event.kind == kind]


def test_from_arrival_to_end() -> None:
    engine = Engine(pace=Pace(step=1.0))
    engine.add(1, prompt(9), plain(3))
    assert (tell(engine, 1).state, tell(engine, 1).wait is not None) == ("waiting", True)
    engine.step()
    assert (tell(engine, 1).state, tell(engine, 1).wait) == ("running", None)
    engine.run()
    engine.now = 50.0
    found = tell(engine, 1)
    assert (found.known, found.state, found.seconds, found.prompt_tokens) == (True, "finished", 3.0, 9)
    assert [(event.at, event.kind) for event in found.events] == [
        (0.0, "queued"),
        (0.0, "admitted"),
        (1.0, "prompt_done"),
        (3.0, "finished"),
    ]
    assert events(found, "finished") == [{"reason": "length", "output_tokens": 3}]
    assert events(found, "prompt_done") == [{"seconds": 1.0}]


def test_what_is_unknown_says_so() -> None:
    assert not tell(Engine(), 4).known


def test_how_much_was_cached_and_why_it_ended() -> None:
    engine = Engine(num_blocks=16)
    engine.add(1, prompt(9), plain(1))
    engine.run()
    engine.add(2, prompt(13), plain(1))
    engine.step()
    (admitted,) = events(tell(engine, 2), "admitted")
    assert (admitted["hits"], admitted["computes"], admitted["miss"]) == ({"device": 8}, 5, "never_seen")
    assert tell(engine, 2).cached_tokens == 8


def test_why_it_waited_is_told_once_for_each_reason() -> None:
    engine = Engine(num_blocks=4, pace=Pace(step=1.0))
    engine.add(1, prompt(10), plain(5))
    engine.step()
    engine.add(2, prompt(9, start=20), plain(1))
    engine.step()
    engine.step()
    assert events(tell(engine, 2), "waiting") == [{"reason": "blocks", "short": 3, "behind": 0}]
    assert tell(engine, 2).wait is not None
    engine.run()
    (admitted,) = events(tell(engine, 2), "admitted")
    assert admitted["waited"] == 4.0


def test_a_preemption_and_what_it_cost() -> None:
    engine = Engine(
        num_blocks=6, max_num_seqs=3, caching=False, pace=Pace(step=1e-3, prefill=1e-3), watermark_ratio=0.0
    )
    for key in (1, 2, 3):
        engine.add(key, prompt(7, start=key * 10), plain(12))
    engine.step_until(SequenceState.PREEMPTED, 2)
    found = tell(engine, 3)
    (preempted, *_) = events(found, "preempted")
    assert (found.state, preempted["method"], preempted["reason"], preempted["beneficiary"]) == (
        *("preempted", "recompute", "growth"),
        1,
    )
    assert preempted["waited"] is None
    engine.run()
    (preempted, *_) = events(tell(engine, 3), "preempted")
    assert preempted["waited"] > 0
    assert preempted["recomputed_tokens"] == preempted["tokens"]
    assert len(events(tell(engine, 3), "admitted")) == 1 + len(events(tell(engine, 3), "preempted"))


def test_the_same_reason_is_told_again_after_a_preemption() -> None:
    history = History(1, "default", 3, arrival=0.0)
    for at in (1.0, 2.0):
        history.wait(at, 0, Wait(WaitReason.BLOCKS))
    history.add(3.0, EventKind.PREEMPTED, 0)
    history.wait(4.0, 0, Wait(WaitReason.BLOCKS))
    assert [(event.time, str(event.kind)) for event in history.events] == [
        *((1.0, "waiting"), (3.0, "preempted"), (4.0, "waiting")),
    ]


def test_siblings_are_told_apart() -> None:
    engine = Engine(num_blocks=16)
    engine.add(1, prompt(5), plain(2, n=3))
    engine.run()
    found = tell(engine, 1)
    assert sorted(event.index for event in found.events if event.kind == "finished") == [0, 1, 2]
    assert [(event.index, event.data["of"]) for event in found.events if event.kind == "forked"] == [(1, 0), (2, 0)]


def test_a_failed_step_is_told() -> None:
    engine = Engine()
    engine.add(1, prompt(5), plain(2))
    engine.add(2, prompt(5, start=20), plain(2))
    engine.step_poisoned({2})
    engine.step_poisoned({2})
    engine.step_poisoned({2})
    engine.run()
    assert events(tell(engine, 1), "failed") == [{}]
    assert events(tell(engine, 2), "finished") == [{"reason": "error", "output_tokens": 0}]


def test_a_search_ends_once_for_each_output() -> None:
    engine = Engine(num_blocks=32, max_num_seqs=4)
    engine.add(1, prompt(5), plain(3, n=2, beam_width=2))
    engine.run()
    assert [event.index for event in tell(engine, 1).events if event.kind == "finished"] == [0, 1]
    assert tell(engine, 1).state == "finished"


def test_reasons_that_alternate_for_ever_take_no_more_room() -> None:
    history = History(1, "default", 3, arrival=0.0)
    for turn in range(3 * MOST_WAITS):
        history.wait(float(turn), 0, Wait(WaitReason.BLOCKS if turn % 2 else WaitReason.PREEMPTION))
    assert (len(history.events), history.left_out) == (MOST_WAITS, 2 * MOST_WAITS)
    history.add(99.0, EventKind.FINISHED, 0)
    assert history.events[-1].kind is EventKind.FINISHED


def test_the_latest_that_ended_are_remembered() -> None:
    histories = Histories()
    for key in range(MOST_ENDED + 1):
        histories.begin(History(key, "default", 1, arrival=0.0))
    for key in range(MOST_ENDED + 1):
        history = histories.of(key)
        assert history is not None
        histories.end(history, 1.0)
    assert histories.of(0) is None
    assert histories.of(1) is not None
