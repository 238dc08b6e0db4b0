"""One frame of `octavo top`: the pool, who runs, who waits and why, who gave way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.server.chat.screen import harmless
from octavo.server.sentences import METHODS, WAITS, duration
from octavo.server.top.client import Card, Snapshot, StoryTold
from octavo.server.top.readings import Readings

MOST_STORIES: Final = 20
MOST_PREEMPTIONS: Final = 6

_MISSING: Final = "–"
_TIERS: Final = ("device", "host", "disk")
_BAR: Final = 48
_ID_CHARS: Final = 24

# State → how its share of a bar is drawn, in characters of all terminals and of those that know more, and its colour.
_STATES: Final = {
    "used": ("#", "█", "green"),
    "pinned": ("@", "▓", "magenta"),
    "cached": ("=", "▒", "cyan"),
    "free": (".", "░", "bright_black"),
}


def frame(now: Snapshot, before: Snapshot | None, url: str, *, plain: bool = False) -> RenderableType:
    """What is shown.

    Args:
        before: The snapshot before this one, which speeds are measured from.
        plain: Draw with ASCII.
    """
    return Group(*_lines(now, before, url, plain))


def _lines(now: Snapshot, before: Snapshot | None, url: str, plain: bool) -> Iterator[RenderableType]:
    metrics = now.metrics or Readings({})
    yield _header(metrics, url)
    for note in now.notes:
        yield Text(f"note: {harmless(note)}", "yellow")
    yield Text()
    yield from _pool(metrics, plain)
    yield Text()
    yield from _sequences(metrics)
    yield _speed(now, before)
    yield Text()
    yield from _requests(now)
    yield from _preemptions(now)


def _header(metrics: Readings, url: str) -> Text:
    ready = {1.0: ("ready", "bold green"), 0.0: ("not ready", "bold red")}
    state, style = ready.get(metrics.value("octavo_ready") or 0.0, ("ready", "green"))
    if metrics.value("octavo_ready") is None:
        state, style = _MISSING, ""
    version = metrics.label("octavo_build_info", "version") or _MISSING
    return Text.assemble(("octavo top", "bold"), f"  {harmless(url)}  version {harmless(version)}  ", (state, style))


# ── the pool ──────────────────────────────────────────────────────────────────────────────────────────────


def _pool(metrics: Readings, plain: bool) -> Iterator[Text]:
    told = metrics.by("octavo_kv_blocks", "tier")
    tiers = [*(tier for tier in _TIERS if tier in told), *(tier for tier in told if tier not in _TIERS)]
    if not tiers:
        yield Text(f"blocks    {_MISSING}")
    for tier in tiers:
        yield _tier(tier, metrics.by("octavo_kv_blocks", "state", tier=tier), plain)


def _tier(tier: str, states: Mapping[str, float], plain: bool) -> Text:
    total = sum(states.values())
    line = Text(f"{harmless(tier):<8}  ")
    for state, width in _shares(states, total).items():
        ascii_, unicode_, colour = _STATES[state]
        line.append((ascii_ if plain else unicode_) * width, colour)
    numbers = "  ".join(f"{state} {_number(states.get(state))}" for state in _STATES)
    return line.append(f"  {numbers}  of {total:,.0f} blocks")


def _shares(states: Mapping[str, float], total: float) -> dict[str, int]:
    """Widths of a bar's parts: who has any gets at least one character, and all together fill it."""
    if total <= 0:
        return {}
    widths = {state: max(1, int(_BAR * states[state] / total)) for state in _STATES if states.get(state)}
    largest = max(widths, key=lambda state: states[state])
    widths[largest] += _BAR - sum(widths.values())
    return widths


# ── sequences ─────────────────────────────────────────────────────────────────────────────────────────────


def _sequences(metrics: Readings) -> Iterator[Text]:
    states = ("running", "waiting", "swapped")
    counts = "   ".join(f"{state} {_number(metrics.value('octavo_requests', state=state))}" for state in states)
    yield Text(f"sequences {counts}")
    for reason, count in metrics.by("octavo_requests_waiting", "reason").items():
        if count:
            words = WAITS[reason].several if reason in WAITS else harmless(reason)
            yield Text(f"          {count:,.0f} wait: {words}", "yellow")


def _speed(now: Snapshot, before: Snapshot | None) -> Text:
    generated, prompt = (_rate(now, before, kind) for kind in ("generated", "prompt"))
    return Text(
        f"tokens/s  generated {generated}   prompts {prompt}   of prompts found in the cache {_cached(now.metrics)}\n"
        f"gave way  {_gave_way(now.metrics)}"
    )


def _rate(now: Snapshot, before: Snapshot | None, kind: str) -> str:
    if before is None or now.metrics is None or before.metrics is None or now.at <= before.at:
        return _MISSING
    tokens, earlier = (metrics.value("octavo_tokens_total", kind=kind) for metrics in (now.metrics, before.metrics))
    if tokens is None or earlier is None or tokens < earlier:  # another engine counts from 0
        return _MISSING
    return f"{(tokens - earlier) / (now.at - before.at):,.1f}"


def _cached(metrics: Readings | None) -> str:
    results = {} if metrics is None else metrics.by("octavo_prefix_cache_tokens_total", "result")
    total = sum(results.values())
    return f"{1 - results.get('miss', 0.0) / total:.0%}" if total else _MISSING


def _gave_way(metrics: Readings | None) -> str:
    methods = {} if metrics is None else metrics.by("octavo_preemptions_total", "method")
    if metrics is None or not ("octavo_preemptions_total" in metrics.samples or "octavo_requests" in metrics.samples):
        return _MISSING
    told = (f"{count:,.0f} {METHODS[m].done if m in METHODS else harmless(m)}" for m, count in methods.items() if count)
    return ", ".join(told) or "nobody yet"


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────


def _requests(now: Snapshot) -> Iterator[RenderableType]:
    if not now.cards:
        yield Text("no open requests")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    with_tenants = any(card.tenant is not None for card in now.cards)
    for name in ("request", *(["tenant"] if with_tenants else []), "state", "age", "prompt", "cached", "why"):
        right = name in ("age", "prompt", "cached")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "why", overflow="ellipsis")
    shown = now.cards[:MOST_STORIES]
    for card in shown:
        tenant = [Text(harmless(card.tenant or _MISSING))] if with_tenants else []
        id, *rest = _row(card, now.stories.get(card.id))
        table.add_row(id, *tenant, *rest)
    yield table
    if now.total > len(shown):
        yield Text(f"… and {now.total - len(shown):,} more")


def _row(card: Card, story: StoryTold | None) -> Iterator[Text]:
    id = harmless(card.id)
    yield Text(id if len(id) <= _ID_CHARS else f"{id[: _ID_CHARS - 1]}…")
    state = _MISSING if story is None else harmless(story.state)
    yield Text(state, "" if state in (_MISSING, "running") else "yellow")
    yield Text(duration(card.age))
    yield Text(_MISSING if story is None else f"{story.prompt_tokens:,}")
    yield Text(_MISSING if story is None else f"{story.cached_tokens:,}")
    yield Text(_MISSING if story is None else harmless(story.now))


def _preemptions(now: Snapshot) -> Iterator[Text]:
    latest = sorted(
        (ago, id, text) for id, story in now.stories.items() for ago, text in story.preemptions
    )[:MOST_PREEMPTIONS]  # fmt: skip
    if latest:
        yield Text("\nof these, the latest to give way", "bold")
    for ago, id, text in latest:
        yield Text(f"{duration(ago)} ago  {harmless(id)[:_ID_CHARS]} {harmless(text)}")


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:,.0f}"
