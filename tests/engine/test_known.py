"""Requests' keys and ids, while they are open and for a while after that."""

from __future__ import annotations

from octavo.engine.known import KnownRequests


def test_a_request_is_found_both_ways_until_enough_others_have_ended() -> None:
    known = KnownRequests(most_ended=2)
    for key in range(1, 5):
        known.begin(f"r{key}", key)
    for ended in ("r2", "r3", "r4"):
        known.end(ended)
    assert [known.key_of(f"r{key}") for key in range(1, 5)] == [1, None, 3, 4]
    assert [known.request_of(key) for key in range(1, 5)] == ["r1", None, "r3", "r4"]


def test_what_is_open_is_never_forgotten() -> None:
    known = KnownRequests(most_ended=1)
    known.begin("open", 1)
    for key in range(2, 50):
        known.begin(f"r{key}", key)
        known.end(f"r{key}")
    assert known.key_of("open") == 1
