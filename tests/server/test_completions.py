"""/v1/completions: prompts in every form, sequences, stops, usage, streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer

EventsOf = Callable[[str], list[Any]]


async def complete(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json={"model": "tiny", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(http: httpx.AsyncClient, events_of: EventsOf, **body: Any) -> list[Any]:
    response = await http.post("/v1/completions", json={"model": "tiny", "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


async def test_a_completion(http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.script = tokenizer.encode("a lazy dog")
    answer = await complete(http, prompt="The fox", max_tokens=64)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": "a lazy dog", "finish_reason": "stop", "stop_reason": None, "logprobs": None}
    ]
    prompt, completion = len(tokenizer.encode("The fox")), len(engine.script) + 1
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
async def test_every_form_of_prompt(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, as_ids: bool, as_list: bool
) -> None:
    texts = ["The fox", "It runs"] if as_list else ["The fox"]
    forms = [tokenizer.encode(text) if as_ids else text for text in texts]
    answer = await complete(http, prompt=forms if as_list else forms[0], n=2, max_tokens=3)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(texts)))
    for number, text in enumerate(texts):
        expected = tokenizer.decode((tokenizer.encode(text) * 3)[:3])
        assert [choice["text"] for choice in answer["choices"][2 * number : 2 * number + 2]] == [expected] * 2
    assert [unpacked(request.prompt) for request in engine.seen] == [tokenizer.encode(text) for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(len(tokenizer.encode(text)) for text in texts)
    assert answer["usage"]["completion_tokens"] == 6 * len(texts)


async def test_the_default_limit_is_sixteen_tokens_or_what_the_window_leaves(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    assert (await complete(http, prompt=[5] * 10))["usage"]["completion_tokens"] == 16
    answer = await complete(http, prompt=[5] * (engine.info.max_model_len - 3))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")


async def test_echo_puts_the_prompt_first(http: httpx.AsyncClient, tokenizer: Tokenizer, events_of: EventsOf) -> None:
    ids = tokenizer.encode("The fox")
    text = "The fox" + tokenizer.decode((ids * 4)[:4])
    for prompt in ("The fox", ids):
        assert (await complete(http, prompt=prompt, echo=True, max_tokens=4))["choices"][0]["text"] == text
        events = await stream(http, events_of, prompt=prompt, echo=True, max_tokens=4)
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text


async def test_sampling_parameters_reach_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    given = {
        "n": 2,
        "max_tokens": 5,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 11,
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
    }
    await complete(http, prompt="x", cache_salt="tenant", **given)
    request = engine.seen[0]
    assert {name: getattr(request.sampling, name) for name in given} == given | {"stop_token_ids": (3, 4)}
    assert request.cache_salt == "tenant"
    assert request.arrival > 0


async def test_nulls_mean_the_defaults(http: httpx.AsyncClient) -> None:
    names = ["n", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "logprobs", "logit_bias", "suffix"]
    await complete(http, prompt="x", **dict.fromkeys(names))


@pytest.mark.parametrize("per_delta", [1, 3, 100])
@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_over_token_boundaries(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, per_delta: int, include: bool
) -> None:
    engine.script, engine.per_delta, engine.delay = tokenizer.encode("one STOP two" + " more" * 20), per_delta, 0.001
    answer = await complete(
        http, prompt="x", max_tokens=200, stop=["never", "STOP"], include_stop_str_in_output=include
    )
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one STOP" if include else "one ", "stop")
    assert choice["stop_reason"] == "STOP"
    assert answer["usage"]["completion_tokens"] == len(tokenizer.encode("one STOP"))
    assert not engine.open


async def test_a_stop_string_in_one_sequence_leaves_the_others(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    answer = await complete(http, prompt=["aXb", "abc"], max_tokens=6, stop="X")
    assert [choice["text"] for choice in answer["choices"]] == ["a", "abcabc"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_token_shows_only_if_asked_for(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, include: bool
) -> None:
    (newline,) = tokenizer.encode("\n")
    engine.script, engine.eos = tokenizer.encode("line"), newline
    answer = await complete(
        http, prompt="x", max_tokens=50, stop_token_ids=[newline], include_stop_str_in_output=include
    )
    choice = answer["choices"][0]
    assert choice["text"] == ("line\n" if include else "line")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", newline)
    assert answer["usage"]["completion_tokens"] == len(engine.script) + 1


async def test_special_tokens_are_shown_on_request(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_start|>b")
    assert (await complete(http, prompt=ids, max_tokens=3))["choices"][0]["text"] == "ab"
    shown = await complete(http, prompt=ids, max_tokens=3, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "a<|im_start|>b"


async def test_token_ids_are_returned_on_request(http: httpx.AsyncClient, events_of: EventsOf) -> None:
    choice = (await complete(http, prompt=[5, 6], max_tokens=3, return_token_ids=True))["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([5, 6], [5, 6, 5])
    events = await stream(http, events_of, prompt=[5, 6], max_tokens=3, return_token_ids=True)
    assert events[0]["choices"][0]["prompt_token_ids"] == [5, 6]
    assert [id for event in events[1:-1] for id in event["choices"][0]["token_ids"]] == [5, 6, 5]


async def test_cached_tokens_are_reported(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 7
    usage = (await complete(http, prompt=["abcdefgh", "abcdefgi"], n=2))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 14}


async def test_a_stream_equals_the_whole(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, events_of: EventsOf
) -> None:
    engine.script = tokenizer.encode("Größe 🙂 你好 STO")
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 100, "stop": "STOP"}
    whole = await complete(http, **body)
    events = await stream(http, events_of, **body)
    assert events[-1] == "[DONE]"
    assert len({event["id"] for event in events[:-1]}) == 1
    for choice in whole["choices"]:
        parts = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"] == "Größe 🙂 你好 STO"
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert all("usage" not in event for event in events[:-1])


async def test_usage_ends_a_stream_on_request(http: httpx.AsyncClient, events_of: EventsOf) -> None:
    events = await stream(http, events_of, prompt=[5, 6], max_tokens=3, stream_options={"include_usage": True})
    *chunks, last, done = events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (2, 3)


async def test_usage_can_come_with_every_chunk(http: httpx.AsyncClient, events_of: EventsOf) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await stream(http, events_of, prompt=[5, 6], max_tokens=3, stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [1, 2, 3, 3]
