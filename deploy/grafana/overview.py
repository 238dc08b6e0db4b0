"""The dashboard ``octavo-overview``: is Octavo serving, how much, how fast, and what is in the way?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import Query, Section, dashboard, light, lines, number, quantiles, words
from promql import mean, quantile, rate, selected, shares, total
from units import COUNT, PER_SECOND, REQUESTS, SECONDS, SHARE, TOKENS


def build() -> Dashboard:
    """Made anew, since Grafana's builders are changed by use."""
    return dashboard(
        "overview",
        "Whether Octavo serves, how much, how fast, and what is in the way.",
        (_serving(), _load(), _speed(), _steps(), _faults()),
    )


def _serving() -> Section:
    return Section(
        "Is it serving?",
        (
            light(
                "Ready",
                "No: requests get a 503. GET /ready says why; then read the server's log from its last start.",
                Query(total("octavo_ready", by="instance"), "{{instance}}"),
            ),
            number(
                "Engine restarts",
                "Since the server's start. Not zero: find the engine's last words in the log before it happens again.",
                COUNT,
                Query(total("octavo_engine_restarts_total"), "restarts"),
                alarm=1,
            ),
            number(
                "Open requests",
                "Near --max-open-requests of a tenant, that tenant gets 429s: see the dashboard of tenants.",
                REQUESTS,
                Query(total("octavo_open_requests"), "open"),
            ),
            number(
                "KV pool in use",
                "Red only matters when requests wait for blocks too; cached blocks are not in use.",
                SHARE,
                Query(mean("octavo_kv_usage_ratio", where='tier="device"'), "in use"),
                alarm=0.95,
            ),
            words(
                "Version",
                "Several versions at once are a roll-out under way; compare before and after in all other panels.",
                Query(selected("octavo_build_info"), "{{version}} on Python {{python}}"),
            ),
            words(
                "KV pool",
                "Check after each change of options that the pool has the size and the type that you meant.",
                Query(
                    selected("octavo_cache_config_info"),
                    "{{num_blocks}} × {{block_size}} tokens, {{dtype}}, {{device}}, {{attention_backend}}",
                ),
            ),
        ),
        width=4,
        height=4,
    )


def _load() -> Section:
    return Section(
        "Load",
        (
            lines(
                "Sequences by state",
                "Waiting that keeps growing is more load than one server takes; the next panel says what it waits for.",
                REQUESTS,
                Query(total("octavo_requests", by="state"), "{{state}}"),
                stacked=True,
            ),
            lines(
                "Waiting sequences by reason",
                "blocks: more KV memory or shorter requests; max_num_seqs: raise it; tenant_ceiling: as configured.",
                REQUESTS,
                Query(total("octavo_requests_waiting", by="reason"), "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Tokens computed",
                "What the machine delivers. Prompt tokens found in the prefix cache are not in it: they cost nothing.",
                PER_SECOND,
                Query(rate("octavo_tokens_total", by="kind"), "{{kind}}"),
            ),
            lines(
                "Preemptions",
                "Steady ones waste work: raise --lookahead or the pool, lower --max-num-seqs; priority ones are meant.",
                PER_SECOND,
                Query(rate("octavo_preemptions_total", by="method, reason"), "{{method}} for {{reason}}"),
            ),
            lines(
                "Finished requests by reason",
                "error is ours to explain (log); disconnected in numbers means that clients lose patience.",
                PER_SECOND,
                Query(rate("octavo_requests_finished_total", by="reason"), "{{reason}}"),
            ),
            lines(
                "Finished sequences by reason",
                "Many at length: clients' max_tokens cut answers short. n > 1 makes several sequences of a request.",
                PER_SECOND,
                Query(rate("octavo_sequences_finished_total", by="reason"), "{{reason}}"),
            ),
        ),
    )


def _speed() -> Section:
    return Section(
        "How fast",
        (
            lines(
                "Time to first token",
                "What users feel first. p99 far above p50: look at queue and prefill on the dashboard of latency.",
                SECONDS,
                Query(quantile(0.5, "octavo_time_to_first_token_seconds"), "p50"),
                Query(quantile(0.99, "octavo_time_to_first_token_seconds"), "p99"),
            ),
            lines(
                "Gap between tokens",
                "What readers of streams feel. Long gaps at p99 come from prompts in the same steps: --max-step-time.",
                SECONDS,
                Query(quantile(0.5, "octavo_inter_token_latency_seconds"), "p50"),
                Query(quantile(0.99, "octavo_inter_token_latency_seconds"), "p99"),
            ),
            lines(
                "HTTP responses by status",
                "429: turned away by a bound; 503: not ready; 499: the client left. 500 is a bug: see the log.",
                PER_SECOND,
                Query(rate("octavo_http_requests_total", by="status"), "{{status}}"),
                stacked=True,
            ),
        ),
    )


def _steps() -> Section:
    return Section(
        "Steps",
        (
            lines(
                "Time of a step by phase",
                "execute is the model and should dominate; much schedule or update is overhead, transfer is swapping.",
                SECONDS,
                Query(
                    shares(rate("octavo_step_phase_seconds_total", by="phase"), rate("octavo_steps_total")),
                    "{{phase}}",
                ),
                stacked=True,
            ),
            quantiles(
                "Step time",
                "A step's time is the least gap between tokens; prompts make its p99, bounded by --max-step-time.",
                SECONDS,
                "octavo_step_seconds",
            ),
            lines(
                "Share of time in steps",
                "Near 1: the engine is saturated. Far below it while requests wait: something else holds them up.",
                SHARE,
                Query(rate("octavo_step_seconds_sum", by="instance"), "{{instance}}"),
            ),
            lines(
                "Steps",
                "None while requests wait means that the engine is stuck; it is replaced after a minute without one.",
                PER_SECOND,
                Query(rate("octavo_steps_total", by="instance"), "{{instance}}"),
            ),
            quantiles(
                "Tokens in a step",
                "p99 at --max-num-batched-tokens: prompts fill steps. Low while requests wait: they wait for blocks.",
                TOKENS,
                "octavo_step_tokens",
            ),
            quantiles(
                "Sequences in a step",
                "The batch's size, and so the throughput. At --max-num-seqs with requests waiting, raise that.",
                REQUESTS,
                "octavo_step_sequences",
            ),
        ),
    )


def _faults() -> Section:
    return Section(
        "What should stay at zero",
        (
            lines(
                "Faults since the start",
                "Lost KV copies cost time only, but suggest a bad disk; exporter errors are bugs: see the log.",
                COUNT,
                Query(total("octavo_kv_copies_lost_total"), "lost KV copies"),
                Query(total("octavo_exporter_errors_total"), "exporter errors"),
            ),
            lines(
                "Aborts of requests that were gone",
                "A few are races of clients that leave as their answer ends; many are worth a bug report.",
                PER_SECOND,
                Query(rate("octavo_unknown_aborts_total"), "unknown aborts"),
            ),
            lines(
                "Request fields that were ignored",
                "Clients send what Octavo does not know; the log names the fields.",
                PER_SECOND,
                Query(rate("octavo_http_ignored_fields_total"), "ignored fields"),
            ),
        ),
    )
