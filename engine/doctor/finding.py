"""What a look at something found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from octavo.errors import SetupError

State = Literal["ok", "note", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        topic: What was looked at, in a word. text: what was found.
        state: ``problem`` if a server would not start, ``note`` if something is worth knowing or changing.
        advice: What to do about it, if anything. values: the same as ``text``, for machines.
    """

    topic: str
    text: str
    state: State = "ok"
    advice: str = ""
    values: dict[str, Any] = {}


def look(topic: str, probe: Callable[[], Finding]) -> Finding:
    """What a probe finds; one that fails is a finding as well."""
    try:
        return probe()
    except SetupError as error:
        return Finding(topic, str(error), "problem")
    except Exception as error:  # whatever is odd about this machine, the other lines are wanted
        return Finding(topic, f"could not be looked at: {type(error).__name__}: {error}", "note")
