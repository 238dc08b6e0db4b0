"""Parts: one at a time, in the order in which they were written."""

from __future__ import annotations

from octavo.server.parts import Change, Grown, Parts
from octavo.server.tools.events import ArgumentsDelta, CallStart, Content, Event

EVENTS: list[Event] = [
    Content("a"), Content(""), Content("b"), CallStart(0, "x", "f"), ArgumentsDelta(0, "{"), ArgumentsDelta(0, "}"),
    CallStart(1, "y", "g"), Content("c"),
]  # fmt: skip


def shown(change: Change) -> str:
    return f"{type(change).__name__} {change.part.index}" + (f" {change.text}" if isinstance(change, Grown) else "")


def test_parts_open_grow_and_close() -> None:
    parts = Parts()
    changes = [shown(change) for event in EVENTS for change in parts.take([event])]
    changes += [shown(change) for _ in range(2) for change in parts.close()]
    assert changes == [
        "Opened 0", "Grown 0 a", "Grown 0 b", "Closed 0", "Opened 1", "Grown 1 {", "Grown 1 }", "Closed 1",
        "Opened 2", "Closed 2", "Opened 3", "Grown 3 c", "Closed 3",
    ]  # fmt: skip
    assert [(part.text, part.call and part.call.name) for part in parts.all] == [
        ("ab", None), ("{}", "f"), ("", "g"), ("c", None),
    ]  # fmt: skip
