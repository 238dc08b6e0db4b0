"""Every refusal: its status, its envelope, its headers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from octavo import errors
from octavo.server.errors import error_response
from octavo.server.limits import MAX_JSON_DEPTH
from octavo.server.protocol import INERT_VALUES

JSON = {"content-type": "application/json"}

# Capacity errors that are a 429: the request may succeed later, on this very server.
BUSY = {errors.QueueFullError, errors.TooManyRequestsError, errors.PinBudgetError}


def check_envelope(response: httpx.Response, status: int, **expected: Any) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert {name: error[name] for name in expected} == expected
    assert error["message"]
    return str(error["message"])


async def complete(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={"prompt": "x", **body})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt": "x",}', b'{"prompt": "x", "temperature": NaN}', b'{"prompt": "x", "top_p": Infinity}',
     b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b'{"prompt": "x", "temperature": 1e999}', b"\x00"],
)  # fmt: skip
async def test_malformed_json(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post("/v1/completions", content=body, headers=JSON)
    assert "not valid JSON" in check_envelope(response, 400, type="invalid_request_error")


@pytest.mark.parametrize("outside", [-1, 2**31, 2**63, -(2**40)])
async def test_token_ids_outside_the_vocabulary(http: httpx.AsyncClient, outside: int) -> None:
    check_envelope(await complete(http, prompt=[1, outside]), 400, type="invalid_request_error", param="prompt")


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null", b"true"])
async def test_json_that_is_no_object(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post("/v1/completions", content=body, headers=JSON)
    check_envelope(response, 400, type="invalid_request_error")


@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH + 1, 900, 20_000])
async def test_json_that_is_too_deep(http: httpx.AsyncClient, levels: int) -> None:
    body = b'{"prompt": "x", "metadata": ' + b"[" * levels + b"]" * levels + b"}"
    response = await http.post("/v1/completions", content=body, headers=JSON)
    assert "levels deep" in check_envelope(response, 400)


async def test_many_brackets_are_not_depth(http: httpx.AsyncClient) -> None:
    assert (await complete(http, prompt=[[5]] * 50, max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", True), ("n", "2"), ("n", 1.0), ("n", 0), ("n", 129), ("max_tokens", 0), ("max_tokens", -1),
        ("max_tokens", 1.5), ("min_tokens", -1), ("temperature", "hot"), ("temperature", -0.1), ("temperature", 2.1),
        ("temperature", True), ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("min_p", 2), ("seed", 2**70),
        ("stream", "yes"), ("stream", 1), ("stop", 5), ("stop", ["a", 5]), ("stop", ["a"] * 5), ("stop", ""),
        ("stop", ["x" * 2000]), ("stop_token_ids", [True]), ("stop_token_ids", [-1]), ("stop_token_ids", [512]),
        ("stop_token_ids", 5), ("stop_token_ids", [1] * 1000), ("ignore_eos", 1), ("skip_special_tokens", None),
        ("cache_salt", 5), ("cache_salt", "x" * 300), ("model", 5), ("stream_options", {"include_usage": True}),
        ("prompt", []), ("prompt", ""), ("prompt", None), ("prompt", 5), ("prompt", [[]]), ("prompt", [True]),
        ("prompt", ["a", 5]), ("prompt", [-1]), ("prompt", [512]), ("prompt", [1.0]),
        ("prompt", [[5], [2**64]]), ("best_of", 0), ("best_of", 129), ("logprobs", -1), ("logprobs", 6),
        ("logprobs", True), ("prompt_logprobs", 21), ("prompt_logprobs", -1), ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1), ("repetition_penalty", 0), ("logit_bias", {"x": 1}), ("logit_bias", {"5": 101}),
        ("logit_bias", {"512": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"5": "1"}), ("logit_bias", [5]),
        ("logit_bias", {str(i): 1 for i in range(301)}), ("allowed_token_ids", [512]), ("allowed_token_ids", "5"),
        ("allowed_token_ids", [5] * 5000), ("bad_words", "x"), ("bad_words", [""]), ("bad_words", ["x"] * 65),
        ("bad_words", ["x" * 300]), ("truncate_prompt_tokens", 0), ("length_penalty", 11), ("response_format", "json"),
        ("response_format", {"type": "xml"}), ("response_format", {}), ("response_format", {"type": "json_schema"}),
        ("structured_outputs", {}), ("structured_outputs", {"regex": "a", "json": {}}), ("guided_choice", ["x", ""]),
    ],
)  # fmt: skip
async def test_values_of_the_wrong_type_or_range(http: httpx.AsyncClient, field: str, value: Any) -> None:
    check_envelope(await complete(http, **{field: value}), 400, type="invalid_request_error", param=field)


async def test_a_prompt_is_required(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"model": "tiny"})
    assert check_envelope(response, 400, param="prompt") == "prompt is required"


UNSUPPORTED = {
    "suffix": ["end"],
    "audio": [{"voice": "a"}],
    "modalities": [["audio"]],
    "prediction": [{"type": "content"}],
}


@pytest.mark.parametrize("field", UNSUPPORTED)
async def test_what_cannot_be_honoured_is_refused_by_name(http: httpx.AsyncClient, field: str) -> None:
    for value in UNSUPPORTED[field]:
        message = check_envelope(await complete(http, **{field: value}), 400, param=field, code="unsupported_parameter")
        assert field in message


async def test_values_that_ask_for_nothing_pass(http: httpx.AsyncClient) -> None:
    for field, values in INERT_VALUES.items():
        for value in values:
            assert (await complete(http, **{field: value}, max_tokens=1)).status_code == 200, field
    assert (await complete(http, n=2, best_of=2, max_tokens=1)).status_code == 200


async def test_unknown_fields_are_ignored_and_counted(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await complete(http, colour="red", user="me", max_tokens=1)).status_code == 200
    assert "'colour'" in caplog.text
    assert "octavo_http_ignored_fields_total 1.0" in (await http.get("/metrics")).text


async def test_a_prompt_longer_than_the_window_names_both_numbers(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    window = engine.info.max_model_len
    for length in (window, window + 44):
        message = check_envelope(
            await complete(http, prompt=[5] * length), 400, code="context_length_exceeded", param="prompt"
        )
        assert str(window) in message
        assert str(length) in message


async def test_a_hopelessly_long_text_is_refused_before_tokenizing(http: httpx.AsyncClient) -> None:
    response = await complete(http, prompt="x" * 60_000)
    assert "at least" in check_envelope(response, 400, code="context_length_exceeded")


async def test_prompt_and_output_longer_than_the_window(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await complete(http, prompt=[5] * 200, max_tokens=100)
    message = check_envelope(response, 400, code="context_length_exceeded", param="max_tokens")
    assert all(number in message for number in ("256", "200", "100", "300"))
    assert not engine.seen


async def test_too_many_sequences(http: httpx.AsyncClient) -> None:
    check_envelope(await complete(http, prompt=[[5]] * 100, n=11), 400, param="prompt")


async def test_another_model(http: httpx.AsyncClient) -> None:
    response = await complete(http, model="huge")
    message = check_envelope(response, 404, code="model_not_found", param="model")
    assert "'huge'" in message
    assert "'tiny'" in message


async def test_no_such_route(http: httpx.AsyncClient) -> None:
    message = check_envelope(await http.get("/v1/nothing"), 404, code="not_found")
    assert "GET /v1/nothing" in message


async def test_wrong_method(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/completions")
    check_envelope(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_a_body_that_is_too_large(http: httpx.AsyncClient) -> None:
    response = await complete(http, prompt="x" * 70_000)
    check_envelope(response, 413, code="request_too_large")

    async def parts() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    check_envelope(await http.post("/v1/completions", content=parts(), headers=JSON), 413)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_that_is_not_declared_as_json(http: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = await http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    check_envelope(response, 415, code="unsupported_media_type")


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (errors.QueueFullError("full", retry_after=2.5), 429, ("retry-after", "3")),
        (errors.EngineUnavailableError("restarting"), 503, ("retry-after", "1")),
        (errors.EngineDeadError("died"), 503, ("retry-after", "5")),
        (errors.RequestFailedError("this one failed"), 500, ("x-should-retry", "false")),
        (errors.NeverFitsError("too long for 7 blocks", largest=112), 400, None),
        (ZeroDivisionError("secret"), 500, ("x-should-retry", "false")),
    ],
)
async def test_what_the_engine_refuses(
    http: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, header: Any
) -> None:
    engine.refusal = error
    for stream in (False, True):
        response = await complete(http, stream=stream)
        assert "secret" not in check_envelope(response, status)
        if header is not None:
            assert response.headers[header[0]] == header[1]
    assert (await http.get("/health")).status_code == 200


async def test_a_failed_step_fails_its_request(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.error = "the step failed"
    assert check_envelope(await complete(http), 500, code="request_failed") == "the step failed"
    engine.error, engine.failure = None, errors.EngineDeadError("the engine ended")
    check_envelope(await complete(http), 503, code="engine_died")


async def test_one_refusal_among_several_prompts_ends_them_all(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = errors.RequestFailedError("no")
    check_envelope(await complete(http, prompt=["a", "b", "c"]), 500)
    assert not engine.open
    assert len(engine.closed) == 3


async def test_while_the_engine_loads(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.status = "loading"
    response = await complete(http)
    assert "loading" in check_envelope(response, 503)
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("given", ["abc-1.2_X", "x" * 128])
async def test_the_clients_request_id_comes_back(http: httpx.AsyncClient, given: str) -> None:
    for path in ("/health", "/nothing"):
        assert (await http.get(path, headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä".encode(), "a\tb", "<script>"])
async def test_a_malformed_request_id_is_replaced(http: httpx.AsyncClient, given: Any) -> None:
    returned = (await http.get("/health", headers={"x-request-id": given})).headers["x-request-id"]
    assert len(returned) == 32


async def test_internal_ids_are_never_the_clients(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "mine"})
    assert engine.seen[0].request_id != "mine"


def test_every_error_has_a_face() -> None:
    def descendants(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(descendants(child) for child in kind.__subclasses__()))

    for kind in descendants(errors.OctavoError):
        error = kind("x", largest=1) if kind is errors.NeverFitsError else kind("x")  # type: ignore[call-arg]
        status = error_response(error, {"path": "/"}).status_code
        assert (400 <= status < 500) == (issubclass(kind, errors.ClientError) or kind in BUSY), kind
