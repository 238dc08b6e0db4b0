"""The dashboard ``octavo-latency``: where a request's time goes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import Query, Section, dashboard, heat, lines, quantiles
from promql import average, rate
from units import PER_SECOND, SECONDS


def build() -> Dashboard:
    """Made anew, since Grafana's builders are changed by use."""
    return dashboard(
        "latency",
        "Where a request's time goes, from the front end's event loop to its last token.",
        (_felt(), _parts(), _front_end()),
    )


def _felt() -> Section:
    return Section(
        "What clients feel",
        (
            quantiles(
                "Time to first token",
                "Arrival to first token. If it grows, look below: queue means load, prefill means long prompts.",
                SECONDS,
                "octavo_time_to_first_token_seconds",
            ),
            quantiles(
                "Gap between tokens (ITL)",
                "Each single gap. Spikes at p99 only: prompts between decodes; lower --max-step-time for smaller ones.",
                SECONDS,
                "octavo_inter_token_latency_seconds",
            ),
            quantiles(
                "Time per output token (TPOT)",
                "A sequence's mean gap. Its median grows with the batch: fewer --max-num-seqs make each stream faster.",
                SECONDS,
                "octavo_time_per_output_token_seconds",
            ),
            quantiles(
                "Whole requests",
                "Arrival to last token. Grows with answers' lengths: compare with tokens before calling it slow.",
                SECONDS,
                "octavo_request_seconds",
            ),
            heat(
                "Time to first token, distribution",
                "Two bands are two kinds of request, such as cached and new prompts: averages would hide them.",
                SECONDS,
                "octavo_time_to_first_token_seconds",
            ),
            heat(
                "Gap between tokens, distribution",
                "A second band far above the first one is steps with prompts in them, or preemptions.",
                SECONDS,
                "octavo_inter_token_latency_seconds",
            ),
        ),
        width=8,
    )


def _parts() -> Section:
    return Section(
        "Where the time goes",
        (
            quantiles(
                "In the queue",
                "Arrival at the engine until let in. Large: too much load; the overview says what is waited for.",
                SECONDS,
                "octavo_request_queue_seconds",
            ),
            quantiles(
                "In prefill",
                "Let in until the prompt was computed. Large: long or uncached prompts, or many decodes beside them.",
                SECONDS,
                "octavo_request_prefill_seconds",
            ),
            quantiles(
                "In decode",
                "First token to last. Time spent preempted is in it: compare with preemptions.",
                SECONDS,
                "octavo_request_decode_seconds",
            ),
            lines(
                "Mean request by part",
                "Stacked: queue, prefill and decode of the mean request. Work on the largest one first.",
                SECONDS,
                Query(average("octavo_request_queue_seconds"), "queue"),
                Query(average("octavo_request_prefill_seconds"), "prefill"),
                Query(average("octavo_request_decode_seconds"), "decode"),
                stacked=True,
            ),
        ),
        width=6,
    )


def _front_end() -> Section:
    return Section(
        "Front end",
        (
            quantiles(
                "Event-loop lag",
                "How late the front end's timers are; answers are as late. Above 0.1 s: it lacks CPU.",
                SECONDS,
                "octavo_event_loop_lag_seconds",
            ),
            lines(
                "HTTP responses by status",
                "5xx: the log has each with its request id. 429: a bound was met; tenants' open requests say whose.",
                PER_SECOND,
                Query(rate("octavo_http_requests_total", by="status"), "{{status}}"),
            ),
            lines(
                "HTTP responses by route",
                "Who asks for what; a flood of one route shows here.",
                PER_SECOND,
                Query(rate("octavo_http_requests_total", by="method, route"), "{{method}} {{route}}"),
            ),
        ),
    )
