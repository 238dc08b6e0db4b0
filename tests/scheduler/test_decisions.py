"""Decisions: what is noted of look-ups and preemptions, and that it does not fill the memory."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from engines import Engine, check_siblings, crowded, plain, prompt

from octavo.block_manager.misses import Miss, MissReason
from octavo.block_manager.tiers import Tier
from octavo.scheduler.decisions import (
    Decisions,
    LookUp,
    Method,
    PreemptionReason,
    PreemptionRecord,
    Wait,
    WaitReason,
)
from octavo.scheduler.streams import stream_of


def record(
    step: int, method: Method = Method.SWAP, reason: PreemptionReason = PreemptionReason.GROWTH
) -> PreemptionRecord:
    return PreemptionRecord(step, 0.0, reason, method, 1, None, 2, 8, None, None)


def last_look_up(engine: Engine) -> LookUp:
    return engine.scheduler.state.decisions.look_ups[-1]


def run(engine: Engine, key: int, tokens: list[int], salt: str = "") -> LookUp:
    """Runs a request for one token and returns what its look-up found."""
    engine.add(key, tokens, plain(1), salt)
    engine.run()
    return last_look_up(engine)


# ── preemptions ─────────────────────────────────────────────────────────────────────────────────────────────


def test_preemptions_are_kept_in_order_and_counted_by_kind() -> None:
    decisions = Decisions()
    for step, (method, reason) in enumerate(
        (
            (Method.SWAP, PreemptionReason.GROWTH),
            (Method.SWAP, PreemptionReason.PRIORITY),
            (Method.SWAP, PreemptionReason.GROWTH),
        )
    ):
        decisions.add_preemption(record(step, method, reason))
    assert [kept.step for kept in decisions.preemptions] == [0, 1, 2]
    assert decisions.preemptions_by == {
        (Method.SWAP, PreemptionReason.GROWTH): 2,
        (Method.SWAP, PreemptionReason.PRIORITY): 1,
    }


def test_only_the_latest_records_are_kept_and_all_are_counted() -> None:
    decisions = Decisions()
    for step in range(5_000):
        decisions.add_preemption(record(step))
        decisions.add_look_up(LookUp(step, 1, 8, 0, {}, Miss(MissReason.NEVER_SEEN), 0.0))
    for kept in (decisions.preemptions, decisions.look_ups):
        assert [entry.step for entry in kept] == list(range(5_000 - 1_024, 5_000))
    assert decisions.preemptions_by.total() == decisions.misses.total() == 5_000


def test_who_makes_room_for_a_suspect_is_told_for_whom_and_it_is_not_held_against_it() -> None:
    engine = Engine(num_blocks=7, caching=False)
    engine.add(0, prompt(12), plain(6, n=2))
    engine.step()  # the siblings share three blocks; on their own each of them needs four
    engine.step_poisoned({0})
    engine.step()
    victim = engine.sequence(0, 0)
    engine.step()
    (isolation,) = engine.records()
    assert isolation.reason is PreemptionReason.ISOLATION
    assert (isolation.victim, isolation.beneficiary) == (stream_of(0, 0), stream_of(0, 1))
    assert victim.preemptions == 0
    engine.run()
    check_siblings(engine, 0, prompt(12), plain(6, n=2))


# ── look-ups ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_look_up_notes_who_asked_when_and_for_how_much() -> None:
    engine = Engine()
    run(engine, 7, prompt(9))
    look_up = run(engine, 8, prompt(9))
    assert (look_up.step, look_up.stream, look_up.tokens) == (1, stream_of(8, 0), 9)
    assert look_up.hits == {Tier.DEVICE: 8}


def test_hits_are_told_apart_by_tier() -> None:
    engine = Engine(num_blocks=4, max_num_batched_tokens=64, host_blocks=4, disk_blocks=8)
    for key in range(3):
        run(engine, key, prompt(13, start=key * 13))
    look_up = run(engine, 9, prompt(13))
    assert sum(look_up.hits.values()) == 12
    assert set(look_up.hits) == {Tier.DEVICE, Tier.HOST, Tier.DISK}
    assert look_up.hits[Tier.DISK] > 0


def test_nothing_was_missed_if_only_less_than_a_block_is_left() -> None:
    engine = Engine()
    assert run(engine, 0, prompt(3)).miss == Miss(MissReason.SHORTER_THAN_A_BLOCK)
    run(engine, 1, prompt(9))
    assert run(engine, 2, prompt(11)).miss == Miss(MissReason.SHORTER_THAN_A_BLOCK)
    assert run(engine, 3, prompt(8)).miss == Miss(MissReason.SHORTER_THAN_A_BLOCK)  # the last token must be computed


def test_what_was_never_seen_is_told_so() -> None:
    engine = Engine()
    assert run(engine, 0, prompt(9)).miss == Miss(MissReason.NEVER_SEEN)
    assert run(engine, 1, [*prompt(4), *prompt(5, start=30)]).miss == Miss(MissReason.NEVER_SEEN)


def test_what_was_evicted_is_told_so_and_how_long_ago() -> None:
    engine = Engine(num_blocks=4, max_num_batched_tokens=64)
    run(engine, 0, prompt(9))
    engine.now = 10.0
    run(engine, 1, prompt(15, start=30))
    engine.now = 17.5
    assert run(engine, 2, prompt(9)).miss == Miss(MissReason.EVICTED, 7.5)


def test_what_another_salt_has_cached_is_told_so() -> None:
    engine = Engine()
    run(engine, 0, prompt(9), salt="a")
    assert run(engine, 1, prompt(9), salt="b").miss == Miss(MissReason.OTHER_SALT)


def test_without_prefix_caching_every_look_up_is_told_so() -> None:
    engine = Engine(caching=False)
    look_up = run(engine, 0, prompt(9))
    assert look_up.miss == Miss(MissReason.CACHE_OFF)
    assert look_up.hits == {Tier.DEVICE: 0}


def test_misses_are_counted_by_reason() -> None:
    engine = Engine()
    for key in range(3):
        run(engine, key, prompt(9))
    assert engine.scheduler.state.decisions.misses == {
        MissReason.NEVER_SEEN: 1,
        MissReason.SHORTER_THAN_A_BLOCK: 2,
    }


def test_who_comes_back_looks_up_again() -> None:
    engine = crowded()
    engine.run()
    streams = [look_up.stream for look_up in engine.scheduler.state.decisions.look_ups]
    assert len(streams) == 3 + engine.scheduler.counters.preemptions > 3


# ── waits ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Wait(WaitReason.NEW).short = 1  # type: ignore[misc]
