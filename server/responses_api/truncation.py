"""``truncation: "auto"``: of a conversation that is too long, the oldest turns are left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from octavo.errors import NeverFitsError

T = TypeVar("T")
Message = dict[str, Any]


async def longest_that_fits(begin: Callable[[Sequence[Message]], Awaitable[T]], messages: Sequence[Message]) -> T:
    """Begins with as much of a conversation as fits: its first instructions, and the turns from some user's on.

    Args:
        begin: Raises `NeverFitsError` for what is too long.

    Raises:
        NeverFitsError: Not even the last turn fits.
    """
    kept = list(takewhile(lambda message: message["role"] in ("system", "developer"), messages))
    starts = [place for place, message in enumerate(messages) if message["role"] == "user"][1:]
    try:
        return await begin(messages)
    except NeverFitsError:
        if not starts:
            raise
    low, high = 0, len(starts) - 1
    begun = await begin([*kept, *messages[starts[high] :]])
    while low < high:
        middle = (low + high) // 2
        try:
            begun = await begin([*kept, *messages[starts[middle] :]])
            high = middle
        except NeverFitsError:
            low = middle + 1
    return begun
