"""Dashboards, rules and the table of metrics beside a real server under load, as a real Prometheus sees it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable

import httpx
import pytest
from api_keys import ADMIN, bearer
from monitoring import (
    Expression,
    documented_metrics,
    exported_metrics,
    panel_expressions,
    rule_expressions,
    rules,
    variables,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import Prometheus
from serving import Server

# Far more than it takes; only a test that fails waits for so long.
PATIENCE = 45.0
SCRAPES = 100

# What the load is to bring about, since zeros would make poor examples.
EVENTS = (
    'octavo_preemptions_total{method="swap"}',
    'octavo_preemptions_total{method="recompute"}',
    "octavo_swap_full_total",
    "octavo_swapped_tokens_total",
    "octavo_recomputed_tokens_total",
    "octavo_kv_evictions_total",
    'octavo_kv_copies_total{kind="copy_on_write"}',
    'octavo_kv_copies_total{kind="device_to_host"}',
    'octavo_kv_copies_total{kind="host_to_device"}',
    'octavo_kv_copies_total{kind=~".*disk"}',
    "octavo_kv_deduplications_total",
    'octavo_kv_pins_ended_total{reason="expired"}',
    "octavo_forks_total",
    'octavo_prefix_cache_tokens_total{result="hit_device"}',
    'octavo_prefix_cache_tokens_total{result="hit_host"}',
    'octavo_prefix_cache_tokens_total{result="hit_disk"}',
    'octavo_prefix_cache_misses_total{reason="evicted"}',
    'octavo_prefix_cache_misses_total{reason="never_seen"}',
    'octavo_sequences_finished_total{reason="abort"}',
    "octavo_http_ignored_fields_total",
    'octavo_http_requests_total{status="400"}',
    'octavo_http_requests_total{status="404"}',
)


def without_values(watched: Prometheus, expressions: Iterable[Expression]) -> dict[str, str]:
    """Those expressions that get no value however long one waits, by their places."""
    missing = {expression.place: expression.at_test_speed() for expression in expressions}
    deadline = time.monotonic() + PATIENCE
    while missing and time.monotonic() < deadline:
        missing = {place: text for place, text in missing.items() if not watched.has_values(text)}
        time.sleep(0.2)
    return missing


@pytest.fixture(scope="module")
def empty(watched: Prometheus) -> dict[str, str]:
    events = [Expression(f"event {event}", f"sum ({event}) > 0") for event in EVENTS]
    return without_values(watched, [*panel_expressions(), *rule_expressions(), *events])


def test_the_load_brings_about_what_there_is_to_see(empty: dict[str, str]) -> None:
    assert [place for place in empty if place.startswith("event ")] == []


def test_every_panel_has_values_under_load(empty: dict[str, str]) -> None:
    assert {place: text for place, text in empty.items() if " / " in place} == {}


def test_every_rule_reads_something(empty: dict[str, str]) -> None:
    assert {place: text for place, text in empty.items() if not place.startswith("event ") and " / " not in place} == {}


def test_prometheus_itself_evaluates_every_rule(watched: Prometheus, empty: dict[str, str]) -> None:
    groups = watched.ask("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == {rule.get("alert") or rule["record"]: "ok" for rule in rules()}
    recorded = [Expression(rule["record"], rule["record"]) for rule in rules() if "record" in rule]
    assert [one.place for one in recorded if one.place not in empty and not watched.has_values(one.text)] == []


def test_the_table_of_metrics_is_what_the_server_exports(server: Server, watched: Prometheus) -> None:
    exposition = httpx.get(f"{server.url}/metrics", headers=bearer(ADMIN), timeout=30).text
    exported, documented = exported_metrics(exposition), documented_metrics()
    assert sorted(exported.keys() - documented.keys()) == [], "the table lacks them"
    assert sorted(documented.keys() - exported.keys()) == [], "the server does not export them"
    assert exported == documented, "they have other labels"


def test_at_every_scrape_the_blocks_of_a_tier_add_up_to_it(server: Server, watched: Prometheus) -> None:
    sizes, states = defaultdict(set), Counter[str]()
    with httpx.Client(base_url=server.url, headers=bearer(ADMIN), timeout=30) as http:
        for _ in range(SCRAPES):
            blocks: defaultdict[str, float] = defaultdict(float)
            for family in text_string_to_metric_families(http.get("/metrics").text):
                for sample in family.samples if family.name == "octavo_kv_blocks" else ():
                    blocks[sample.labels["tier"]] += sample.value
                    states[sample.labels["state"]] += sample.value > 0
            for tier, total in blocks.items():
                sizes[tier].add(total)
            time.sleep(0.02)
    assert sizes.keys() == {"device", "host", "disk"}
    assert sizes["device"] == {56}
    assert all(len(sums) == 1 for sums in sizes.values()), sizes
    assert states["used"], "nothing was in use"
    assert states["cached"], "nothing was cached"


@pytest.mark.parametrize(("metric", "label"), sorted(variables()))
def test_the_choices_of_a_dashboards_variable_are_found(
    watched: Prometheus, empty: dict[str, str], metric: str, label: str
) -> None:
    assert watched.ask(f"label/{label}/values", **{"match[]": metric})
