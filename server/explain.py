"""What happened to a request, and why: an engine's `Story` as data and as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from octavo.engine.views import Story, StoryEvent, WaitingView
from octavo.server import sentences

# Behind the point, in seconds: more is noise.
_DIGITS = 6


class Party(msgspec.Struct, frozen=True):
    """Another request that had a part in it; its ``id`` is None where it is not told, or not known any more."""

    id: str | None


class Audience(Protocol):
    """Who is told a story, and what of others may be told to him."""

    @property
    def sees_all(self) -> bool:
        """Whether he may know of all tenants, or there is only one."""

    def party(self, key: int) -> Party | None:
        """The request that has a key in the engine's views; None for key 0, which is nobody's."""

    def words(self, key: int) -> str | None:
        """The same, in words."""


class Moment(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
        at: Seconds since the request arrived at the engine. sequence: which of the request's.
        kind: As in `octavo.engine.views.StoryEvent`. text: a sentence. data: what is known of it.
    """

    at: float
    sequence: int
    kind: str
    text: str
    data: dict[str, Any]


class Wait(msgspec.Struct, frozen=True):
    """Why a sequence waits, or waited.

    Attributes:
        at: When it began to, for this reason; None where that is not known. seconds: for how long, so far.
        reason: One of `octavo.server.sentences.WAITS`. short: blocks that are missing. behind: who comes first.
    """

    reason: str
    text: str
    short: int
    behind: Party | None
    sequence: int
    at: float | None
    seconds: float | None


class Preemption(msgspec.Struct, frozen=True):
    """That a sequence gave way.

    Attributes:
        predicted: Seconds that ``method`` was predicted to cost; None if that was not known.
        actual: Seconds that it has cost so far. waited: seconds until the sequence ran again; None before.
    """

    at: float
    sequence: int
    reason: str
    method: str
    predicted: float | None
    predicted_swap: float | None
    predicted_recompute: float | None
    actual: float
    waited: float | None
    blocks: int
    tokens: int
    kept_tokens: int
    recomputed_tokens: int
    beneficiary: Party | None
    text: str


class PrefixEnd(msgspec.Struct, frozen=True):
    """Why a look-up in the prefix cache found no more: one of `octavo.server.sentences.MISSES`."""

    reason: str
    text: str
    evicted_ago: float | None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt's story as ``GET /v1/requests/{id}`` tells it.

    Attributes:
        summary: The story in one sentence. wait: why it waits now, if it does.
        left_out: Moments that were not kept.
    """

    state: str
    summary: str
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    wait: Wait | None
    timeline: list[Moment]
    left_out: int


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt's story as an answer tells it whose request has asked for it.

    Attributes:
        prefix_ended: Why its first look-up in the prefix cache found no more; None if there was none.
        queue_seconds: Until it was let in. prefill_seconds: from then until its prompt was computed.
        timeline: A sentence for each moment.
        further: Of the request's other prompts.
    """

    summary: str
    cached_tokens: int
    prefix_ended: PrefixEnd | None
    waits: list[Wait]
    preemptions: list[Preemption]
    queue_seconds: float | None
    prefill_seconds: float | None
    timeline: list[str]
    further: list[Explanation | Unexplained] | UnsetType = UNSET


class Unexplained(msgspec.Struct, frozen=True):
    """Why there is no explanation where one was asked for."""

    unavailable: str
    further: list[Explanation | Unexplained] | UnsetType = UNSET


def account(story: Story, audience: Audience) -> Account:
    """A story with all its moments."""
    told = _Telling(story, audience)
    return Account(
        state=story.state,
        summary=told.summary(),
        seconds=_rounded(story.seconds),
        prompt_tokens=story.prompt_tokens,
        cached_tokens=story.cached_tokens,
        wait=told.wait_now(),
        timeline=list(told.moments()),
        left_out=story.left_out,
    )


def explanation(story: Story, audience: Audience) -> Explanation:
    """A story as its own answer tells it."""
    told, first = _Telling(story, audience), _first(story.events, "admitted")
    prompt_done = _first(story.events, "prompt_done")
    return Explanation(
        summary=told.summary(),
        cached_tokens=story.cached_tokens,
        prefix_ended=told.prefix_end(first) if first is not None else None,
        waits=list(told.waits()),
        preemptions=list(told.preemptions()),
        queue_seconds=_rounded(first.at) if first is not None else None,
        prefill_seconds=_rounded(prompt_done.data["seconds"]) if prompt_done is not None else None,
        timeline=list(told.lines()),
    )


class _Telling:
    """One story, told to somebody."""

    def __init__(self, story: Story, audience: Audience) -> None:
        self._story = story
        self._audience = audience
        self._over = story.state == "finished"

    def moments(self) -> Iterator[Moment]:
        for position, event in enumerate(self._story.events):
            yield Moment(_rounded(event.at), event.index, event.kind, self._text(position), self._data(event))

    def lines(self) -> Iterator[str]:
        several = any(event.index for event in self._story.events)
        for position, event in enumerate(self._story.events):
            who = f", sequence {event.index}" if several else ""
            yield f"{event.at:.3f} s{who}: {self._text(position)}"

    def waits(self) -> Iterator[Wait]:
        for position, event in enumerate(self._story.events):
            if event.kind == "waiting":
                data, end = event.data, self._end_of_wait(position)
                seconds = (self._story.seconds if end is None else end) - event.at
                yield Wait(
                    reason=data["reason"],
                    text=self._text(position),
                    short=data["short"],
                    behind=self._audience.party(data["behind"]),
                    sequence=event.index,
                    at=_rounded(event.at),
                    seconds=_rounded(seconds),
                )

    def wait_now(self) -> Wait | None:
        view = self._story.wait
        if view is None:
            return None
        last = [wait for wait in self.waits() if wait.sequence == view.index][-1:]
        # The last one told of may be another's reason: no more are kept than so many.
        since = last[0].at if last and last[0].reason == view.reason else None
        return Wait(
            reason=view.reason,
            text=f"waits: {self._why_now(view)}",
            short=view.short,
            behind=self._audience.party(view.behind),
            sequence=view.index,
            at=since,
            seconds=None if since is None else _rounded(self._story.seconds - since),
        )

    def preemptions(self) -> Iterator[Preemption]:
        for position, event in enumerate(self._story.events):
            if event.kind == "preempted":
                data = self._data(event)
                data |= {"text": self._text(position), "at": _rounded(event.at), "sequence": event.index}
                data["predicted"] = data.get(f"predicted_{data['method']}")
                yield Preemption(**{name: data[name] for name in Preemption.__struct_fields__})

    def prefix_end(self, admitted: StoryEvent) -> PrefixEnd:
        data = self._data(admitted)
        return PrefixEnd(data["miss"], sentences.prefix_end(data["miss"], data["evicted_ago"]), data["evicted_ago"])

    def summary(self) -> str:
        story, parts = self._story, []
        if story.wait is not None:
            parts.append(self._why_now(story.wait))
        first = _first(story.events, "admitted")
        if first is not None:
            parts.append(f"let in after {sentences.duration(first.at)}")
            parts.append(f"{story.cached_tokens:,} of {story.prompt_tokens:,} prompt tokens from the cache")
        records = list(self.preemptions())
        if records:
            times = {1: "once", 2: "twice"}.get(len(records), f"{len(records)} times")
            so_far = "" if self._over else " so far"
            cost = sentences.duration(sum(record.actual for record in records))
            parts.append(f"gave way {times}, which cost {cost}{so_far}")
        end = [event for event in story.events if event.kind == "finished"][-1:]
        if self._over and end:
            parts.append(sentences.event("finished", end[0].data))
        state = f"{story.state} {'after' if self._over else 'for'} {sentences.duration(story.seconds)}"
        return f"{state}: {'; '.join(parts)}" if parts else state

    def _why_now(self, view: WaitingView) -> str:
        return sentences.wait(view.reason, view.short, self._audience.words(view.behind), over=False)

    def _text(self, position: int) -> str:
        event = self._story.events[position]
        match event.kind:
            case "waiting":
                return self._waiting(position)
            case "admitted":
                whole = event.data["tokens"] == self._story.prompt_tokens
                return sentences.admission(self._data(event), whole_prompt=whole)
            case "preempted":
                beneficiary = self._audience.words(event.data["beneficiary"])
                return sentences.preemption(event.data, beneficiary, over=self._over)
            case _:
                return sentences.event(event.kind, self._data(event))

    def _waiting(self, position: int) -> str:
        event, end = self._story.events[position], self._end_of_wait(position)
        reason, short = event.data["reason"], event.data["short"]
        why = sentences.wait(reason, short, self._audience.words(event.data["behind"]), over=end is not None)
        if end is None:
            return f"has waited {sentences.duration(self._story.seconds - event.at)}: {why}"
        return f"waited {sentences.duration(end - event.at)}: {why}"

    def _end_of_wait(self, position: int) -> float | None:
        """When something else happened to the sequence that waited; None if nothing has yet."""
        events = self._story.events
        own = (event.at for event in events[position + 1 :] if event.index == events[position].index)
        return next(own, self._story.seconds if self._over else None)

    def _data(self, event: StoryEvent) -> dict[str, Any]:
        data: dict[str, Any] = {
            name: _rounded(value) if isinstance(value, float) else value for name, value in event.data.items()
        }
        for name in ("behind", "beneficiary"):
            if name in data:
                data[name] = self._audience.party(data[name])
        if not self._audience.sees_all:
            # Both tell of other tenants: how many wait, and that one has asked the same.
            data.pop("ahead", None)
            if data.get("miss") == "other_salt":
                data["miss"] = "never_seen"
        return data


def _first(events: Sequence[StoryEvent], kind: str) -> StoryEvent | None:
    return next((event for event in events if event.kind == kind), None)


def _rounded(seconds: float) -> float:
    return round(seconds, _DIGITS)
