"""Whether a client was told the truth, the whole truth unless there is a reason, and nothing after its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.server.limits import SLOW_READER_SECONDS
from simulation.answers import Answer
from simulation.client import Fate
from simulation.sometimes import Sometimes
from simulation.workload import Choice, Demand

if TYPE_CHECKING:
    from simulation.world import World

# A sequence that was in so many failed steps is taken for their cause; see `octavo.scheduler.faults`.
_MAX_FAILURES = 3

# After trouble, until the front end knows that it is over.
_GRACE = 2.0


def judge(world: World, number: int, demand: Demand, answer: Answer) -> None:
    """Checks an answer that has come to its end.

    Raises:
        AssertionError: It is wrong; says how.
    """
    fate, choices = world.fates[number], world.workload.choices(demand)
    assert answer.how in ("complete", "left", "cut")
    if answer.how == "cut":
        stalled = fate.stalled + world.disasters.paused_since(fate.sent)
        assert stalled >= SLOW_READER_SECONDS, f"cut off, and had stalled for only {stalled:.1f} s"
    if answer.finished:
        refusal = world.workload.refusal(demand)
        assert refusal is None, f"answered, and is too long for the {refusal}"
        assert not fate.aborted, "answered, and was aborted"
        assert not fate.poisoned, "answered, and every step with it in it has failed"
        _check_whole(demand, answer, choices)
    else:
        _check_part(answer, choices)
    if answer.error is not None:
        _check_error(world, fate, demand, answer)
    _observe(world.seen, demand, answer, fate, world.workload.refusal(demand))


def _check_whole(demand: Demand, answer: Answer, choices: list[Choice]) -> None:
    assert answer.status == 200, answer.status
    assert answer.reasons.keys() == set(range(len(choices))), f"choices that ended: {sorted(answer.reasons)}"
    for index, choice in enumerate(choices):
        assert answer.texts[index] == choice.text, f"choice {index} reads {answer.texts[index]!r}, not {choice.text!r}"
        assert answer.reasons[index] == choice.reason, f"choice {index} ended by {answer.reasons[index]}"
        if demand.body.get("return_token_ids"):
            assert answer.tokens[index] == choice.tokens, f"choice {index} has tokens {answer.tokens[index]}"
    if answer.usage is not None:
        told = answer.usage["prompt_tokens"], answer.usage["completion_tokens"]
        assert told == (sum(map(len, demand.prompts)), sum(len(choice.tokens) for choice in choices)), told
    assert answer.usage is not None or demand.stream
    assert answer.usage is not None or "stream_options" not in demand.body


def _check_part(answer: Answer, choices: list[Choice]) -> None:
    for index, text in answer.texts.items():
        choice = choices[index]
        assert choice.text.startswith(text), f"choice {index} reads {text!r}, and would be {choice.text!r}"
        if index in answer.reasons:
            assert (text, answer.reasons[index]) == (choice.text, choice.reason), f"choice {index} ended too early"
        assert answer.tokens[index] == choice.tokens[: len(answer.tokens[index])]


def _check_error(world: World, fate: Fate, demand: Demand, answer: Answer) -> None:
    assert answer.error is not None
    code, message = answer.error["code"], answer.error["message"]
    trouble, over = world.disasters.had_trouble, world.loop.time()
    reasons: dict[str, Callable[[], bool]] = {
        "queue_full": lambda: fate.queue_full,
        "context_length_exceeded": lambda: world.workload.refusal(demand) is not None,
        "request_failed": lambda: (
            "Boom" in message and (fate.poisoned or fate.failed_alone or fate.failed_steps >= _MAX_FAILURES)
        ),
        "aborted": lambda: fate.abort_asked,
        "engine_died": lambda: trouble(fate.sent, over),
        "engine_unavailable": lambda: trouble(fate.sent - _GRACE, over),
    }
    assert code in reasons, f"an error that nothing accounts for: {answer.error}"
    assert reasons[code](), f"an error without its reason: {answer.error}"
    statuses = {
        "queue_full": 429,
        "context_length_exceeded": 400,
        "request_failed": 500,
        "aborted": 499,
        "engine_died": 503,
        "engine_unavailable": 503,
    }
    assert answer.status in (statuses[code], 200), answer.status
    assert answer.status != 200 or demand.stream, "an error came as a success"


def _observe(seen: Sometimes, demand: Demand, answer: Answer, fate: Fate, refusal: str | None) -> None:
    code = answer.error["code"] if answer.error else None
    status, finished, begun = answer.status, answer.finished, answer.events > 0
    refused = code == "context_length_exceeded"
    paths = {
        "stop string": finished and "stop" in demand.body and "stop" in answer.reasons.values(),
        "stop token": finished and "stop" not in demand.body and "stop" in answer.reasons.values(),
        "length": finished and "length" in answer.reasons.values(),
        "one of several stopped by its text": finished
        and "stop" in demand.body
        and set(answer.reasons.values()) == {"stop", "length"},
        "refused: too long for the window": refused and refusal == "window",
        "refused: too long for the pool": refused and refusal == "pool",
        "refused: the queue is full": code == "queue_full",
        "refused: the engine is away": code == "engine_unavailable" and status == 503,
        "refused inside the stream": code in ("queue_full", "context_length_exceeded") and status == 200,
        "engine died before the first token": code == "engine_died" and not begun,
        "engine died in mid-stream": code == "engine_died" and begun,
        "failed before the first token": code == "request_failed" and not begun,
        "failed in mid-stream": code == "request_failed" and begun,
        "failed step survived": finished and fate.failed_steps > 0,
        "culprit found": fate.poisoned and code == "request_failed",
        "left before the first token": answer.how == "left" and demand.stream and not begun,
        "left in mid-stream": answer.how == "left" and begun,
        "left while waiting for the whole": answer.how == "left" and not demand.stream,
        "aborted before the first token": code == "aborted" and demand.stream and not begun,
        "aborted in mid-stream": code == "aborted" and begun,
        "aborted while its client waits for the whole": code == "aborted" and not demand.stream,
        "slow reader finished": finished and fate.stalled > 0,
        "slow reader given up": answer.how == "cut",
        "several tokens in one event": demand.stream and any(size > 1 for size in answer.sizes),
        "heartbeat in a stream": answer.beats > 0,
        "body parsed off the loop": finished and "metadata" in demand.body,
    }
    for path, taken in paths.items():
        seen.note(path, taken)
