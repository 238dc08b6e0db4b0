"""Requests of other APIs as chats."""

from __future__ import annotations

import pytest

from octavo.errors import InvalidRequestError
from octavo.server.limits import MAX_MESSAGES
from octavo.server.turn import chat_request

SAID = {"role": "user", "content": "x"}


@pytest.mark.parametrize("count", [0, MAX_MESSAGES + 1])
def test_a_chat_has_some_messages_but_not_any_number(count: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"input: takes from 1 to {MAX_MESSAGES} messages, not {count}") as no:
        chat_request([SAID] * count, param="input")
    assert no.value.param == "input"
    assert len(chat_request([SAID] * MAX_MESSAGES, param="input", max_tokens=3).messages) == MAX_MESSAGES
