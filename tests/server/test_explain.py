"""Stories as data and sentences, and answers that tell their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from tiny_tokenizer import EOS_ID

from octavo.block_manager.misses import MissReason
from octavo.engine.views import Story, StoryEvent, WaitingView
from octavo.errors import EngineDeadError, EngineUnavailableError
from octavo.scheduler.decisions import Method, PreemptionReason, WaitReason
from octavo.scheduler.history import EventKind
from octavo.scheduler.request import FinishReason
from octavo.server import sentences
from octavo.server.explain import Party, account, explanation
from octavo.server.limits import MAX_EXPLAINED

EventsOf = Callable[[str], list[Any]]

PREEMPTED: dict[str, Any] = {
    "reason": "growth",
    "method": "swap",
    "beneficiary": 7,
    "blocks": 12,
    "tokens": 190,
    "predicted_swap": 0.008,
    "predicted_recompute": 0.045,
    "waited": 0.4,
    "kept_tokens": 190,
    "recomputed_tokens": 0,
    "actual": 0.009,
}
ADMITTED: dict[str, Any] = {
    "waited": 0.32,
    "tokens": 640,
    "hits": {"device": 480, "host": 32},
    "computes": 128,
    "miss": "evicted",
    "evicted_ago": 12.3,
}


class Reader:
    """Is told stories; request 7 is his own, 8 is another tenant's, and 9 is forgotten."""

    def __init__(self, *, sees_all: bool = True) -> None:
        self.sees_all = sees_all

    def party(self, key: int) -> Party | None:
        return Party("chatcmpl-7" if key == 7 else None) if key else None

    def words(self, key: int) -> str | None:
        return {0: None, 7: "request chatcmpl-7", 8: "another tenant's request"}.get(key, "a request that is forgotten")


def event(at: float, kind: str, index: int = 0, **data: Any) -> StoryEvent:
    return StoryEvent(at, kind, index, data)


def story(*events: StoryEvent, **values: Any) -> Story:
    given = {"state": "running", "tenant": "ada", "seconds": 2.0, "prompt_tokens": 640, "cached_tokens": 512}
    return Story(0, known=True, events=list(events), **given | values)


FULL = story(
    event(0.0, "queued", prompt_tokens=640, ahead=2),
    event(0.001, "waiting", reason="new", short=0, behind=0),
    event(0.01, "waiting", reason="blocks", short=4, behind=0),
    event(0.33, "admitted", **ADMITTED),
    event(0.45, "prompt_done", seconds=0.12),
    event(0.6, "preempted", **PREEMPTED),
    event(0.61, "waiting", reason="behind", short=0, behind=8),
    event(1.0, "admitted", **ADMITTED | {"waited": 0.4, "tokens": 655, "miss": "shorter_than_a_block"}),
    event(2.0, "finished", reason="length", output_tokens=24),
    state="finished",
)


def texts(told: Story, **reader: bool) -> list[str]:
    return [moment.text for moment in account(told, Reader(**reader)).timeline]


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (sentences.WAITS, WaitReason),
        (sentences.MISSES, MissReason),
        (sentences.PREEMPTIONS, PreemptionReason),
        (sentences.METHODS, Method),
        (sentences._ENDS, FinishReason),
    ],
)
def test_every_reason_has_its_words_and_no_other_has(words: dict[str, Any], reasons: Any) -> None:
    assert words.keys() == {str(reason) for reason in reasons}


def test_every_kind_of_event_has_a_sentence() -> None:
    data = {"of": 0, "seconds": 0.1, **ADMITTED, **PREEMPTED, "short": 1, "behind": 0, "prompt_tokens": 1,
            "output_tokens": 1}  # fmt: skip
    for kind in EventKind:
        (text,) = texts(story(event(0.5, str(kind), **data)))
        assert len(text.split()) > 3


def test_a_story_in_sentences() -> None:
    assert texts(FULL) == [
        "arrived with 640 prompt tokens, 2 sequences waiting before it",
        "waited 9 ms: no step had looked at it yet",
        "waited 0.32 s: 4 blocks were missing",
        "let in after 0.32 s with 512 of 640 prompt tokens from the cache (480 device, 32 host), 128 to compute; "
        "the prefix ended because the next block was evicted 12 s ago",
        "its prompt was computed, 0.12 s after it was let in",
        "gave way to request chatcmpl-7 for 12 blocks, as running sequences needed room to grow: swapped out "
        "(predicted 8 ms; recomputing was predicted at 45 ms); back after 0.40 s with 190 tokens kept, cost 9 ms",
        "waited 0.39 s: others came first, behind another tenant's request",
        "let in after 0.40 s with 512 of 655 tokens from the cache (480 device, 32 host), 128 to compute; "
        "the prefix ended because what is left fills no block, or has to be computed anyway",
        "finished with 24 tokens: it has as many tokens as it may",
    ]
    assert account(FULL, Reader()).summary == (
        "finished after 2.00 s: let in after 0.33 s; 512 of 640 prompt tokens from the cache; gave way once, which "
        "cost 9 ms; finished with 24 tokens: it has as many tokens as it may"
    )


def test_what_is_not_over_is_told_as_it_stands() -> None:
    waiting = WaitingView(3, 0, "ada", "waiting", "blocks", 1, 7, 640, 0.5)
    told = account(
        story(
            event(0.0, "queued", prompt_tokens=1, ahead=0),
            event(0.2, "waiting", reason="blocks", short=4, behind=0),
            state="waiting",
            seconds=0.5,
            wait=waiting,
        ),
        Reader(),
    )
    assert [moment.text for moment in told.timeline] == [
        "arrived with 1 prompt token",
        "has waited 0.30 s: 4 blocks are missing",
    ]
    assert told.wait is not None
    assert (told.wait.text, told.wait.at, told.wait.seconds) == (
        "waits: 1 block is missing, behind request chatcmpl-7",
        0.2,
        0.3,
    )
    assert told.summary == "waiting for 0.50 s: 1 block is missing, behind request chatcmpl-7"
    unheard = account(story(state="waiting", wait=waiting), Reader()).wait
    assert unheard is not None
    assert (unheard.at, unheard.seconds) == (None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waited": None}, "not back yet, cost so far 9 ms"),
        ({"beneficiary": 0}, "gave way for 12 blocks"),
        ({"beneficiary": 8}, "gave way to another tenant's request for 12 blocks"),
        ({"predicted_recompute": None}, "swapped out (predicted 8 ms);"),
        ({"method": "recompute"}, "to be recomputed (predicted 45 ms; swapping was predicted at 8 ms)"),
        ({"predicted_swap": None, "predicted_recompute": None}, "swapped out (no prediction);"),
    ],
)
def test_a_preemption_says_what_is_known_of_it(changes: dict[str, Any], words: str) -> None:
    (text,) = texts(story(event(0.6, "preempted", **PREEMPTED | changes)))
    assert words in text


def test_nothing_found_in_the_cache_and_a_sequence_of_its_own() -> None:
    first = ADMITTED | {"hits": {}, "computes": 640, "miss": "never_seen", "evicted_ago": None}
    told = explanation(
        story(event(0.0, "admitted", **first), event(0.1, "forked", 1, of=0), event(0.1, "failed", 1)), Reader()
    )
    assert "with nothing from the cache for 640 prompt tokens, 640 to compute" in told.timeline[0]
    assert told.timeline[0].startswith("0.000 s, sequence 0: ")
    assert told.timeline[1] == "0.100 s, sequence 1: began by sharing all blocks of sequence 0"
    assert told.prefix_ended is not None
    assert (told.prefix_ended.reason, told.prefix_ended.evicted_ago) == ("never_seen", None)


def test_others_are_not_given_away_to_a_tenant_among_several() -> None:
    # The cache's look-ups search other tenants' blocks for the reason why they found none.
    told = story(
        event(0.0, "queued", prompt_tokens=640, ahead=2), event(0.1, "admitted", **ADMITTED | {"miss": "other_salt"})
    )
    assert "other tenant" not in str(account(told, Reader(sees_all=False)))
    timeline = account(told, Reader(sees_all=False)).timeline
    assert "ahead" not in timeline[0].data
    assert timeline[0].text == "arrived with 640 prompt tokens"
    assert (timeline[1].data["miss"], "never seen" in timeline[1].text) == ("never_seen", True)
    ended = explanation(told, Reader(sees_all=False)).prefix_ended
    assert ended is not None
    assert ended.reason == "never_seen"
    assert account(told, Reader()).timeline[1].data["miss"] == "other_salt"


def test_no_key_of_the_engines_is_told() -> None:
    timeline = account(FULL, Reader()).timeline
    assert timeline[5].data["beneficiary"] == Party("chatcmpl-7")
    assert timeline[6].data["behind"] == Party(None)
    assert timeline[1].data["behind"] is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 ms"), (0.0003, "0.3 ms"), (0.00789, "7.89 ms"), (0.0456, "46 ms"), (0.321, "0.32 s"), (12.4, "12 s"),
     (119, "119 s"), (600, "10 min")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert sentences.duration(seconds) == words


# ── over HTTP ─────────────────────────────────────────────────────────────────────────────────────────────

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 4},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4},
    "/v1/responses": {"input": "x", "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4},
}


class Teller(FakeEngine):
    """Knows one story, which is everybody's.

    Attributes:
        story_asked: Whose story was asked for. told: the story. lost: raised instead.
    """

    def __init__(self) -> None:
        super().__init__(eos=EOS_ID, max_model_len=4096)
        self.story_asked: list[str] = []
        self.told: Story | None = FULL
        self.lost: Exception | None = None

    async def story(self, request_id: str) -> Story | None:
        self.story_asked.append(request_id)
        if self.lost is not None:
            raise self.lost
        return self.told


@pytest.fixture
def engine() -> Teller:
    return Teller()


def last_data(path: str, events: list[Any]) -> Any:
    """Where a stream tells it."""
    if path in ("/v1/completions", "/v1/chat/completions"):
        assert events[-1] == "[DONE]"
        return events[-2]
    if path == "/v1/responses":
        return events[-1]["response"]
    return next(event for event in events if event["type"] == "message_delta")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_tells_its_story(
    http: httpx.AsyncClient, engine: Teller, events_of: EventsOf, path: str, stream: bool
) -> None:
    response = await http.post(path, json={**BODIES[path], "stream": stream, "octavo": {"explain": True}})
    assert response.status_code == 200, response.text
    answer = last_data(path, sse(response, events_of)) if stream else response.json()
    told = answer["octavo"]
    assert (told["cached_tokens"], told["queue_seconds"], told["prefill_seconds"]) == (512, 0.33, 0.12)
    assert told["prefix_ended"] == {
        "reason": "evicted",
        "text": "the prefix ended because the next block was evicted 12 s ago",
        "evicted_ago": 12.3,
    }
    assert [(wait["reason"], wait["seconds"], wait["short"]) for wait in told["waits"]] == [
        ("new", 0.009, 0),
        ("blocks", 0.32, 4),
        ("behind", 0.39, 0),
    ]
    (gave_way,) = told["preemptions"]
    assert (gave_way["method"], gave_way["predicted"], gave_way["actual"], gave_way["waited"]) == (
        "swap",
        0.008,
        0.009,
        0.4,
    )
    assert gave_way["beneficiary"] == {"id": None}
    assert told["timeline"][2] == "0.010 s: waited 0.32 s: 4 blocks were missing"
    assert "further" not in told
    assert engine.story_asked == [engine.seen[0].request_id]


def sse(response: httpx.Response, events_of: EventsOf) -> list[Any]:
    """Events with or without a name."""
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    return events_of("\n\n".join([*lines, ""]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("octavo", [{}, {"octavo": None}, {"octavo": {}}, {"octavo": {"explain": False}}])
async def test_who_does_not_ask_gets_what_he_always_got(
    http: httpx.AsyncClient, engine: Teller, path: str, stream: bool, octavo: dict[str, Any]
) -> None:
    response = await http.post(path, json={**BODIES[path], "stream": stream, **octavo})
    assert response.status_code == 200
    assert "octavo" not in response.text
    assert '"choices":[]' not in response.text
    assert engine.story_asked == []


async def test_it_shares_the_last_chunk_with_the_usage(http: httpx.AsyncClient, events_of: EventsOf) -> None:
    body = BODIES["/v1/completions"] | {"stream": True, "octavo": {"explain": True}}
    *_, bare, _ = events_of((await http.post("/v1/completions", json=body)).text)
    assert (bare["choices"], "usage" in bare) == ([], False)
    body["stream_options"] = {"include_usage": True}
    *_, before, both, _ = events_of((await http.post("/v1/completions", json=body)).text)
    assert before["choices"] != []
    assert (both["choices"], both["usage"]["completion_tokens"], "summary" in both["octavo"]) == ([], 4, True)


@pytest.mark.parametrize(
    ("octavo", "param", "words"),
    [
        ({"explian": True}, "octavo", "there is no 'explian' in it; accepted is explain"),
        ({"explain": True, "b": 1, "a": 1}, "octavo", "there is no 'a', 'b' in it"),
        ({"explain": 1}, "octavo.explain", "octavo.explain: "),
        ({"explain": "yes"}, "octavo.explain", "octavo.explain: "),
        (True, "octavo", "octavo: "),
    ],
)
@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_known_is_refused_by_name(
    http: httpx.AsyncClient, path: str, octavo: Any, param: str, words: str
) -> None:
    response = await http.post(path, json={**BODIES[path], "octavo": octavo})
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert error.get("param", param) == param  # Anthropic's has none


async def test_the_document_describes_it(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for name in ("CompletionRequest", "ChatCompletionRequest", "ResponsesRequest", "MessagesRequest"):
        assert "octavo" in schemas[name]["properties"]
    options = schemas["OctavoOptions"]
    assert (options["additionalProperties"], list(options["properties"])) == (False, ["explain"])


@pytest.mark.parametrize("lost", [None, EngineUnavailableError("it restarts"), EngineDeadError("it died")])
@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_does_not_fail_for_a_story_that_is_lost(
    http: httpx.AsyncClient, engine: Teller, path: str, lost: Exception | None
) -> None:
    engine.told, engine.lost = None, lost
    response = await http.post(path, json={**BODIES[path], "octavo": {"explain": True}})
    assert response.status_code == 200
    words = "the engine knows no story of it" if lost is None else str(lost)
    assert words in response.json()["octavo"]["unavailable"]


async def test_several_prompts_are_told_up_to_a_bound(http: httpx.AsyncClient, engine: Teller) -> None:
    body = {"prompt": ["a", "b", "c"], "max_tokens": 1, "octavo": {"explain": True}}
    told = (await http.post("/v1/completions", json=body)).json()["octavo"]
    assert [one["cached_tokens"] for one in (told, *told["further"])] == [512] * 3
    for count, further in ((MAX_EXPLAINED, MAX_EXPLAINED - 1), (MAX_EXPLAINED + 1, MAX_EXPLAINED - 1)):
        told = (await http.post("/v1/completions", json=body | {"prompt": ["a"] * count})).json()["octavo"]
        assert len(told["further"]) == further
