"""What Prometheus is told: names, labels, values, and what is counted of requests."""

from __future__ import annotations

import shutil
import subprocess

import httpx
import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families

from octavo.config import ServerConfig
from octavo.engine.messages import EngineStats, HistogramCounts, TierBlocks
from octavo.errors import EngineDeadError, NeverFitsError
from octavo.server.engine_metrics import ENGINE_HISTOGRAMS, ENGINE_METRICS

COMPLETIONS = "/v1/completions"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names → value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(http: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    return samples((await http.get("/metrics")).text)


async def test_a_tiers_blocks_add_up_to_it(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(blocks={"device": TierBlocks(64, 10, 20, 34, 4), "host": TierBlocks(8, 1, 2, 5)})
    found = await scrape(http)
    states = ("used", "pinned", "cached", "free")
    assert [found["octavo_kv_blocks", state, "device"] for state in states] == [6, 4, 20, 34]
    assert sum(found["octavo_kv_blocks", state, "host"] for state in states) == 8
    assert found["octavo_kv_usage_ratio", "host"] == 1 / 8


async def test_a_distribution_is_a_histogram(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(histograms={"step_tokens": HistogramCounts([1, 8], [3, 2, 1], 40.0)})
    found = await scrape(http)
    assert [found["octavo_step_tokens_bucket", bound] for bound in ("1.0", "8.0", "+Inf")] == [3, 5, 6]
    assert (found["octavo_step_tokens_count",], found["octavo_step_tokens_sum",]) == (6, 40)
    assert found["octavo_step_seconds_count",] == 0


async def test_the_share_of_filled_slots(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(slots_used=64, slots_filled=48)
    assert (await scrape(http))["octavo_kv_slot_fill_ratio",] == 0.75
    engine.stats = EngineStats()
    assert (await scrape(http))["octavo_kv_slot_fill_ratio",] == 0


async def test_every_row_of_the_tables_is_there(http: httpx.AsyncClient) -> None:
    text = (await http.get("/metrics")).text
    for metric in (*ENGINE_METRICS, *ENGINE_HISTOGRAMS):
        assert f"# TYPE {metric.name}" in text, metric.name
    assert 'octavo_cache_config_info{attention_backend="fake"' in text
    assert 'octavo_build_info{python="' in text


async def test_tokens_and_ends_are_counted_by_tenant(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 2
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "n": 2}
    assert (await http.post(COMPLETIONS, json=body)).status_code == 200
    found = await scrape(http)
    kinds = ("prompt", "cached", "generated")
    assert [found["octavo_request_tokens_total", kind, "default"] for kind in kinds] == [3, 2, 8]
    assert found["octavo_requests_finished_total", "length", "default"] == 1
    assert found["octavo_time_to_first_token_seconds_count",] == found["octavo_request_seconds_count",] == 1
    assert found["octavo_request_queue_seconds_count",] == found["octavo_request_prefill_seconds_count",] == 1
    assert found["octavo_time_per_output_token_seconds_count",] == 2
    assert found["octavo_inter_token_latency_seconds_count",] == 6
    assert found["octavo_open_requests", "default"] == 0


@pytest.mark.parametrize(
    ("refusal", "failure", "error", "reason"),
    [
        (NeverFitsError("too long", largest=3), None, None, "refused"),
        (None, EngineDeadError("gone"), None, "error"),
        (None, None, "a step failed", "error"),
    ],
)
async def test_how_requests_end(
    refusal: Exception | None,
    failure: Exception | None,
    error: str | None,
    reason: str,
    http: httpx.AsyncClient,
    engine: FakeEngine,
) -> None:
    engine.refusal, engine.failure, engine.error = refusal, failure, error
    await http.post(COMPLETIONS, json={"prompt": [5, 6, 7], "max_tokens": 9})
    found = await scrape(http)
    assert [key[1] for key in found if key[0] == "octavo_requests_finished_total"] == [reason]
    counted = ("octavo_request_tokens_total", "prompt", "default") in found
    assert counted == (reason != "refused")


class TestCompatible:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(port=0, allowed_hosts=("octavo",), metrics_compat="vllm")

    async def test_the_names_that_gateways_know(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.stats = EngineStats(
            running=3, waiting=2, blocks={"device": TierBlocks(64, 16, 4, 44)}, finished={"stop": 7}
        )
        await http.post(COMPLETIONS, json={"prompt": [5, 6, 7], "max_tokens": 4})
        found = await scrape(http)
        assert found["vllm:num_requests_running", "0", "tiny"] == 3
        assert found["vllm:num_requests_waiting", "0", "tiny"] == 2
        assert found["vllm:kv_cache_usage_perc", "0", "tiny"] == 0.25
        assert found["vllm:request_success_total", "0", "stop", "tiny"] == 7
        assert found["vllm:cache_config_info", "16", "0", "64"] == 1
        assert found["vllm:time_to_first_token_seconds_count", "0", "tiny"] == 1
        assert ("vllm:time_to_first_token_seconds_bucket", "0", "+Inf", "tiny") in found


async def test_what_has_not_happened_yet_is_0(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(blocks_by_tenant={"ada": 3})
    found = await scrape(http)
    assert found["octavo_open_requests", "ada"] == 0
    assert found["octavo_request_tokens_total", "cached", "ada"] == 0
    assert found["octavo_requests_finished_total", "refused", "ada"] == 0


async def test_they_are_not_there_unless_asked_for(http: httpx.AsyncClient) -> None:
    assert "vllm:" not in (await http.get("/metrics")).text


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


async def test_names_pass_promtool(http: httpx.AsyncClient, promtool: str) -> None:
    await http.post(COMPLETIONS, json={"prompt": [5, 6, 7], "max_tokens": 4})
    text = (await http.get("/metrics")).content
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
