"""The HTTP surface under requests made from its own OpenAPI document, by schemathesis: right ones and wrong ones.

Routes are found in the document, so a new one is covered by itself. Requests go through a real socket; the engine
behind it answers all prompts alike, so that a request's parameters are what is tested.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from fake_engine import FakeEngine
from schemathesis import Case, Config, GenerationMode, HookContext, Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from tiny_tokenizer import EOS_ID

from octavo.config import ServerConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.scheduler.sampling import MAX_WHOLE
from octavo.server.structured import FIELDS as GRAMMARS

NIGHTLY = "OCTAVO_NIGHTLY" in os.environ
RANDOM_CASES = 2000 if NIGHTLY else 10  # of each operation, beside those at the bounds of each of its fields
CANARY_EVERY = 50
CANARY = "The fox"


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    """Its vocabulary and window are as large as the document can say, which knows no model."""
    engine = FakeEngine(vocab_size=MAX_WHOLE + 1, max_model_len=MAX_WHOLE, eos=EOS_ID)
    engine.script = tokenizer.encode(CANARY)
    return engine


@pytest.fixture
def config() -> ServerConfig:
    """As it is by default: lists as long as they may be do not fit into the small bodies of the other tests."""
    return ServerConfig(port=0)


class Observer:
    """Looks at every answer as it comes, and sends a request with a known answer now and then.

    Attributes:
        faults: What was wrong, by operation. statuses: answers by mode of the request and status.
        canaries: Known answers that came.
    """

    def __init__(self, http: httpx.Client) -> None:
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[tuple[GenerationMode, int]] = Counter()
        self.canaries = 0
        self._http = http

    def look(self, case: Case, response: Response) -> None:
        self.statuses[case.meta.generation.mode, response.status_code] += 1
        for fault in faults_of(case, response):
            self.faults[f"{case.operation.label}: {fault}"] += 1
        if self.statuses.total() % CANARY_EVERY == 0:
            answer = self._http.post("/v1/completions", json={"prompt": "x"})
            assert answer.json()["choices"][0]["text"] == CANARY
            self.canaries += 1


def faults_of(case: Case, response: Response) -> Iterator[str]:
    if "x-request-id" not in response.headers:
        yield "no x-request-id"
    if response.status_code >= 400 and not is_envelope(response, case.operation.path):
        yield f"{response.status_code} without an error object: {response.text[:200]}"


def is_envelope(response: Response, path: str) -> bool:
    body = response.json()
    if path.startswith("/v1/messages"):
        return body.keys() == {"type", "error", "request_id"} and body["error"].keys() == {"type", "message"}
    return (
        body.keys() == {"error"}
        and body["error"].keys() == {"message", "type", "param", "code"}
        and bool(body["error"]["message"])
    )


class HealthPoll(threading.Thread):
    """Asks /health all the time."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answers: Counter[int] = Counter()
        self.stopping = threading.Event()
        self._url = url

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self.stopping.wait(0.05):
                self.answers[http.get("/health").status_code] += 1


@contextmanager
def polling(url: str) -> Iterator[HealthPoll]:
    poll = HealthPoll(url)
    poll.start()
    try:
        yield poll
    finally:
        poll.stopping.set()
        poll.join()


def settled(case: Case) -> Case:
    """Takes out of right requests what contradicts the rest, which no schema tells: it would hide all other fields."""
    if case.meta.generation.mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
        for name in contradictions(case.body):
            case.body.pop(name, None)
        for message in case.body.get("messages") or ():
            if isinstance(message, dict) and "role" in message:
                settle_message(message)
    return case


def settle_message(message: dict[str, Any]) -> None:
    """Makes it one that may stand anywhere: results need a call before them, and the template begins with no answer."""
    message.setdefault("content", "x")
    message.pop("tool_calls", None)
    if message["role"] in ("tool", "assistant"):
        message["role"] = "user"


def contradictions(body: dict[str, Any]) -> Iterator[str]:
    yield "model"  # any other name is a 404
    yield from [name for name in GRAMMARS if body.get(name) is not None][1:]
    yield from ("best_of", "use_beam_search", "min_tokens", "ignore_eos")
    yield "tool_choice"
    if not body.get("stream"):
        yield "stream_options"
    if not body.get("logprobs"):
        yield "top_logprobs"
    if "max_completion_tokens" in body:
        yield "max_tokens"


CONFIG = {
    "seed": 1,
    "continue-on-failure": True,
    # Of a path that takes any text there are few wrong ones, and schemathesis throws away what would be another path.
    "suppress-health-check": ["filter_too_much"],
    "generation": {"max-examples": RANDOM_CASES, "no-shrink": True, "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
        # No schema tells in full what is accepted, and for what is not there is test_errors.py.
        "positive_data_acceptance": {"enabled": False},
        "negative_data_rejection": {"enabled": False},
    },
}


def faults_of_scenario(recorder: ScenarioRecorder) -> list[tuple[str, str, str]]:
    """What schemathesis itself found: operation, check and what was wrong."""
    return [
        (recorder.label, check.name, str(check.failure_info and check.failure_info.failure)[:400])
        for checks in recorder.checks.values()
        for check in checks
        if check.status != Status.SUCCESS
    ]


def test_nothing_that_the_document_allows_or_forbids_breaks_the_server(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=Config.from_dict(CONFIG))
    found = []

    @schema.hook
    def after_call(context: HookContext, case: Case, response: Response) -> None:
        observer.look(case, response)

    @schema.hook
    def map_case(context: HookContext, case: Case) -> Case:
        return settled(case)

    with polling(url) as poll, httpx.Client(base_url=url, timeout=30) as http:
        observer = Observer(http)
        for event in from_schema(schema).execute():
            assert not isinstance(event, events.NonFatalError | events.FatalError), event
            if isinstance(event, events.ScenarioFinished):
                found += faults_of_scenario(event.recorder)
    print(observer.statuses, poll.answers)
    assert found == []
    assert observer.faults == {}
    assert observer.statuses.total() >= 2000
    assert observer.canaries == observer.statuses.total() // CANARY_EVERY
    assert poll.answers.keys() == {200}
    assert [record.message for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []
    right = {status: count for (mode, status), count in observer.statuses.items() if mode is GenerationMode.POSITIVE}
    assert right[200] > right[400]
