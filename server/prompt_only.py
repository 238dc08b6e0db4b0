"""Requests of which only the prompt matters: the token that the engine samples in the end is not given out."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from octavo.engine.messages import AddRequest, SequenceDelta
from octavo.errors import RequestFailedError
from octavo.scheduler.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


def prompt_only(pooling: str | None = None) -> SamplingParams:
    """The parameters of such a request."""
    return SamplingParams(max_tokens=1, temperature=0.0, pooling=pooling)


async def compute_prompt(client: EngineClient, request: AddRequest) -> SequenceDelta:
    """Has a prompt computed; returns what is known when it is complete.

    Raises:
        OctavoError: As for `EngineClient.generate`.
        RequestFailedError: A step failed.
    """
    async with aclosing(client.generate(request)) as deltas:
        delta = await anext(deltas)
    if delta.finish_reason == "error":
        raise RequestFailedError(delta.error or "a step failed")
    return delta
