"""``/v1/embeddings``: every form of input and output, what is refused, and what the engine is asked for."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest
from fake_engine import FakeEngine

from octavo.engine.messages import AddRequest, unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import QueueFullError
from octavo.server.limits import MAX_INPUTS


async def embed(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"input": "The quick brown fox", **body})


def normalized(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = vector / np.linalg.norm(vector)
    return result


@pytest.mark.parametrize(
    ("input", "texts"),
    [
        ("The fox", ["The fox"]),
        (["The fox", "jumps over", "The fox"], ["The fox", "jumps over", "The fox"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
    ],
)
async def test_forms_of_input(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, input: Any, texts: list[Any]
) -> None:
    answer = (await embed(http, input=input, model="tiny", user="me")).json()
    prompts = [tokenizer.encode(text) if isinstance(text, str) else text for text in texts]
    assert sorted(unpacked(request.prompt) for request in engine.seen) == sorted(prompts)
    assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [
        ("embedding", index) for index in range(len(texts))
    ]
    for entry, prompt in zip(answer["data"], prompts, strict=True):
        np.testing.assert_allclose(entry["embedding"], normalized(engine.embed(prompt)), rtol=1e-6)
    count = sum(map(len, prompts))
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


async def test_base64_holds_the_same_numbers(http: httpx.AsyncClient) -> None:
    answers = [(await embed(http, encoding_format=form)).json()["data"][0] for form in ("float", "base64")]
    decoded = np.frombuffer(base64.b64decode(answers[1]["embedding"]), dtype="<f4")
    assert decoded.tolist() == answers[0]["embedding"]


@pytest.mark.parametrize("dimensions", [1, 3, 8])
async def test_dimensions_and_length(http: httpx.AsyncClient, engine: FakeEngine, dimensions: int) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    cut = engine.embed(prompt)[:dimensions]
    for normalize, expected in ((True, normalized(cut)), (False, cut)):
        answer = await embed(http, input=prompt, dimensions=dimensions, normalize=normalize)
        np.testing.assert_allclose(answer.json()["data"][0]["embedding"], expected, rtol=1e-6)


async def test_a_vector_without_a_direction_stays_as_it_is(http: httpx.AsyncClient) -> None:
    assert (await embed(http, input=[0, 0])).json()["data"][0]["embedding"] == [0.0] * 8


async def test_what_the_engine_is_asked_for(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await embed(http, input=[1, 2, 3, 4], truncate_prompt_tokens=2, cache_salt="s", priority=3)
    await embed(http, input=[1, 2, 3, 4], pooling="mean")
    truncated, mean = engine.seen
    assert (unpacked(truncated.prompt), truncated.cache_salt, truncated.priority) == ([3, 4], "s", 3)
    assert (truncated.sampling.pooling, mean.sampling.pooling) == ("last", "mean")
    assert (mean.sampling.max_tokens, mean.pin_ttl) == (1, None)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("input", [], "must not be empty"), ("input", "", "empty text"), ("input", ["x", ""], "empty text"),
        ("input", [[5], []], "none may be empty"), ("input", None, "must be a text"), ("input", [True], "must be"),
        ("input", ["x"] * (MAX_INPUTS + 1), f"at most {MAX_INPUTS} inputs"), ("input", [512], "not between 0 and 511"),
        ("encoding_format", "hex", "'float' or 'base64'"), ("dimensions", 0, "greater than"),
        ("dimensions", 9, "at most 8, this model's hidden size"), ("dimensions", True, "valid integer"),
        ("pooling", "cls", "'last' or 'mean'"), ("pooling", None, "'last' or 'mean'"),
        ("normalize", 1, "valid boolean"),
        ("truncate_prompt_tokens", 0, "greater than"), ("model", "other", "does not exist"),
    ],
)  # fmt: skip
async def test_what_is_refused(http: httpx.AsyncClient, engine: FakeEngine, field: str, value: Any, words: str) -> None:
    response = await embed(http, **{field: value})
    assert response.status_code == (404 if field == "model" else 400)
    error = response.json()["error"]
    assert error["param"] == field
    assert words in error["message"]
    assert engine.seen == []


@pytest.mark.parametrize("input", [[5] * 256, "x " * 9000, [[5], [5] * 300]])
async def test_too_long_an_input_never_fits(http: httpx.AsyncClient, input: Any) -> None:
    response = await embed(http, input=input)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert "256 tokens" in error["message"]


async def test_many_inputs_do_not_fill_the_queue(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.delay, most = 0.001, 0
    generate = engine.generate

    def watched(request: AddRequest) -> Any:
        nonlocal most
        most = max(most, len(engine.open) + 1)
        return generate(request)

    engine.generate = watched  # type: ignore[method-assign]
    answer = await embed(http, input=[[token] for token in range(1, 101)])
    assert [entry["embedding"][0] for entry in answer.json()["data"]] == pytest.approx([8**-0.5] * 100)
    assert most == engine.info.max_num_seqs


@pytest.mark.parametrize(
    ("refusal", "status", "code"), [(QueueFullError("full"), 429, "queue_full"), (None, 500, "request_failed")]
)
async def test_one_failure_is_the_whole_requests(
    http: httpx.AsyncClient, engine: FakeEngine, refusal: Exception | None, status: int, code: str
) -> None:
    engine.refusal = refusal
    engine.error, engine.fail_after = "boom", 0
    response = await embed(http, input=["a", "b", "c"])
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert engine.open == set()


async def test_unknown_fields_are_counted(http: httpx.AsyncClient) -> None:
    await embed(http, user="me", strange=1)
    assert "octavo_http_ignored_fields_total 1.0" in (await http.get("/metrics")).text


def test_the_official_client(url: str, engine: FakeEngine) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        answer = client.embeddings.create(model="tiny", input=[[1, 2], [3]])  # asks for base64 on its own
    np.testing.assert_allclose(answer.data[0].embedding, normalized(engine.embed([1, 2])), rtol=1e-6)
    assert answer.usage.total_tokens == 3
