"""The engine's reasons in plain English.

Each member of the enumerations behind `octavo.engine.views` has its words here, by its value, since the front end
knows no scheduler; `tests/server/test_explain.py` fails where one has none. What an engine says that is not known
here is told as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class WaitWords(NamedTuple):
    """A reason to wait.

    Attributes:
        several: Of any number of requests, as a heading.
        now, then: Of one request that waits, and of one that waited; ``{blocks}`` stands for "4 blocks are", or "were".
    """

    several: str
    now: str
    then: str


WAITS: Final[Mapping[str, WaitWords]] = {
    "new": WaitWords("not looked at yet", "no step has looked at it yet", "no step had looked at it yet"),
    "blocks": WaitWords("too few blocks are available", "{blocks} missing", "{blocks} missing"),
    "tenant_ceiling": WaitWords(
        "their tenant holds as many blocks as it may",
        "its tenant holds as many blocks as it may: {blocks} missing",
        "its tenant held as many blocks as it may: {blocks} missing",
    ),
    "max_num_seqs": WaitWords(
        "as many sequences run as may", "as many sequences run as may at once", "as many sequences ran as may at once"
    ),
    "token_budget": WaitWords(
        "running sequences use a step's tokens up",
        "the running sequences use a step's tokens up",
        "the running sequences used a step's tokens up",
    ),
    "preemption": WaitWords(
        "somebody has just given way",
        "a sequence had to give way in this step, so nobody is let in",
        "a sequence had to give way, so nobody was let in",
    ),
    "guarantee": WaitWords(
        "gave way as often as they may",
        "it gave way as often as it may, so it comes back only when it fits to its very end: {blocks} missing",
        "it had given way as often as it may, so it came back only when it fitted to its very end: {blocks} missing",
    ),
    "behind": WaitWords("others come first", "others come first", "others came first"),
    "isolation": WaitWords(
        "a failed step's sequences run one by one",
        "after a failed step its sequences run one by one",
        "after a failed step its sequences ran one by one",
    ),
}

# What follows "the prefix ended because".
MISSES: Final[Mapping[str, str]] = {
    "shorter_than_a_block": "what is left fills no block, or has to be computed anyway",
    # So it may be told to tenants who are not to know what others ask.
    "never_seen": "the next block was never seen before (from its tenant, with its cache_salt)",
    "evicted": "the next block was evicted{ago}",
    "other_salt": "the next block is cached for another cache_salt or tenant only",
    "cache_off": "the prefix cache is off",
    "not_read": "the cache was not read: all of a prompt is computed for its log-probabilities",
}

# What follows "gave way to … for … blocks".
PREEMPTIONS: Final[Mapping[str, str]] = {
    "growth": "as running sequences needed room to grow",
    "priority": "as a more urgent request waited",
    "isolation": "as a suspect of a failed step had to run alone",
}


class MethodWords(NamedTuple):
    """What becomes of a victim's KV: told, and as the subject of what it would have cost."""

    done: str
    doing: str


METHODS: Final[Mapping[str, MethodWords]] = {
    "swap": MethodWords("swapped out", "swapping"),
    "recompute": MethodWords("to be recomputed", "recomputing"),
}

_ENDS: Final[Mapping[str, str]] = {
    "stop": "the model, or a stop string or token, ended it",
    "length": "it has as many tokens as it may",
    "abort": "it was aborted, or its client left",
    "error": "a step with it failed",
}


def duration(seconds: float) -> str:
    """A time in words, to two or three digits."""
    if seconds < 0.0005:
        return f"{seconds * 1000:.1f} ms" if seconds > 0.00005 else "0 ms"
    if seconds < 0.1:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def count(number: int, noun: str) -> str:
    """ "1 block", "4 blocks", "1,024 blocks"."""
    return f"{number:,} {noun}{'s'[: number != 1]}"


def wait(reason: str, short: int, behind: str | None, *, over: bool) -> str:
    """Why a request waits, or waited.

    Args:
        short: Blocks that are missing. behind: who comes first, in words, if anybody does.
    """
    words = WAITS.get(reason, WaitWords(reason, reason, reason))
    verb = "was" if short == 1 else "were"
    text = (words.then if over else words.now).format(
        blocks=f"{count(short, 'block')} {verb if over else ('is' if short == 1 else 'are')}"
    )
    return f"{text}, behind {behind}" if behind else text


def prefix_end(miss: str, evicted_ago: float | None) -> str:
    """Why a prefix look-up found no more."""
    ago = "" if evicted_ago is None else f" {duration(evicted_ago)} ago"
    return f"the prefix ended because {MISSES.get(miss, miss).format(ago=ago)}"


def admission(data: Mapping[str, Any], *, whole_prompt: bool) -> str:
    """How a sequence was let in.

    Args:
        data: Of an ``admitted`` event. whole_prompt: what it had was its prompt and no more.
    """
    hits: Mapping[str, int] = data["hits"]
    kind = "prompt tokens" if whole_prompt else "tokens"
    tiers = ", ".join(f"{tokens:,} {tier}" for tier, tokens in hits.items() if tokens)
    found = f"{sum(hits.values()):,} of {data['tokens']:,} {kind} from the cache" if tiers else "nothing from the cache"
    of = f" ({tiers})" if tiers else f" for {data['tokens']:,} {kind}"
    return (
        f"let in after {duration(data['waited'])} with {found}{of}, {data['computes']:,} to compute; "
        f"{prefix_end(data['miss'], data['evicted_ago'])}"
    )


def preemption(data: Mapping[str, Any], beneficiary: str | None, *, over: bool) -> str:
    """That a sequence gave way, to whom, and what that cost.

    Args:
        data: Of a ``preempted`` event. beneficiary: who got the blocks, in words, if it was one.
        over: The request has ended.
    """
    method = data["method"]
    words = METHODS.get(method, MethodWords(method, method))
    other = "recompute" if method == "swap" else "swap"
    predicted, alternative = data[f"predicted_{method}"], data[f"predicted_{other}"]
    costs = [f"predicted {duration(predicted)}"] if predicted is not None else ["no prediction"]
    if alternative is not None:
        costs.append(f"{METHODS[other].doing} was predicted at {duration(alternative)}")
    to = f" to {beneficiary}" if beneficiary else ""
    why = PREEMPTIONS.get(data["reason"], data["reason"])
    return (
        f"gave way{to} for {count(data['blocks'], 'block')}, {why}: {words.done} ({'; '.join(costs)}); "
        f"{_return(data, over=over)}"
    )


def _return(data: Mapping[str, Any], *, over: bool) -> str:
    cost = f"{'' if over else ' so far'} {duration(data['actual'])}"
    if data["waited"] is None:
        return f"{'it never ran again' if over else 'not back yet'}, cost{cost}"
    return f"back after {duration(data['waited'])} with {data['kept_tokens']:,} tokens kept, cost{cost}"


def event(kind: str, data: Mapping[str, Any]) -> str:
    """What happened, of all kinds that have no function of their own above."""
    match kind:
        case "queued":
            ahead = f", {count(data['ahead'], 'sequence')} waiting before it" if data.get("ahead") else ""
            return f"arrived with {count(data['prompt_tokens'], 'prompt token')}{ahead}"
        case "prompt_done":
            return f"its prompt was computed, {duration(data['seconds'])} after it was let in"
        case "forked":
            return f"began by sharing all blocks of sequence {data['of']}"
        case "failed":
            return "a step with it failed; it starts over"
        case "finished":
            reason = data["reason"]
            return f"finished with {count(data['output_tokens'], 'token')}: {_ENDS.get(reason, reason)}"
        case _:
            return kind
