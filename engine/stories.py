"""What has happened to one request, as it is told to the outside."""

from __future__ import annotations

from typing import Any

from octavo.engine.live import preemption_view, waiting_view
from octavo.engine.messages import ReadStory
from octavo.engine.views import Story, StoryEvent
from octavo.scheduler.decisions import LookUp, PreemptionRecord, Wait
from octavo.scheduler.history import Event
from octavo.scheduler.request import SequenceState
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import split_stream

# From the one furthest behind.
_STATES = (SequenceState.WAITING, SequenceState.SWAPPED, SequenceState.PREEMPTED, SequenceState.RUNNING)

# Of a preemption, what a story's event tells.
_TOLD = (
    "reason",
    "method",
    "beneficiary",
    "blocks",
    "tokens",
    "predicted_swap",
    "predicted_recompute",
    "waited",
    "kept_tokens",
    "recomputed_tokens",
    "actual",
)


def story(scheduler: Scheduler, question: ReadStory) -> Story:
    """A request's story, as far as it has got."""
    history = scheduler.state.histories.of(question.key)
    if history is None:
        return Story(question.ticket, known=False)
    now = scheduler.state.clock()
    request = scheduler.state.requests.get(question.key)
    states = {sequence.state for sequence in request.sequences} if request is not None else set()
    waits = [
        waiting_view(sequence, wait, now)
        for sequence, wait in (scheduler.explained_waits() if states - {SequenceState.RUNNING} else ())
        if sequence.request is request
    ]
    return Story(
        ticket=question.ticket,
        known=True,
        state=next((state.value for state in _STATES if state in states), SequenceState.FINISHED.value),
        tenant=history.tenant,
        seconds=(now if history.ended is None else history.ended) - history.arrival,
        prompt_tokens=history.num_prompt,
        cached_tokens=history.cached_tokens or 0,
        wait=waits[0] if waits else None,
        events=[
            StoryEvent(event.time - history.arrival, str(event.kind), event.sequence, _data(event, now))
            for event in history.events
        ],
        left_out=history.left_out,
    )


def _data(event: Event, now: float) -> dict[str, Any]:
    match event.data:
        case PreemptionRecord() as record:
            view = preemption_view(0, record, now)
            return {name: getattr(view, name) for name in _TOLD}
        case LookUp() as look_up:
            return {
                "waited": look_up.waited,
                "tokens": look_up.tokens,
                "hits": {tier.name.lower(): tokens for tier, tokens in look_up.hits.items() if tokens},
                "computes": look_up.tokens - look_up.found,
                "miss": str(look_up.miss.reason),
                "evicted_ago": look_up.miss.seconds_ago,
            }
        case Wait(reason, short, behind):
            return {
                "reason": str(reason),
                "short": short,
                "behind": 0 if behind is None else split_stream(behind)[0],
            }
        case data:
            return dict(data)
