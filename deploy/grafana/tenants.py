"""The dashboard ``octavo-tenants``: who uses what."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import Query, Section, dashboard, lines
from promql import fraction, rate, shares, total
from units import BLOCKS, PER_SECOND, REQUESTS, SHARE


def build() -> Dashboard:
    """Made anew, since Grafana's builders are changed by use."""
    return dashboard(
        "tenants", "Which tenant holds, uses and waits for what.", (_held(), _used(), _ends()), tenants=True
    )


TENANT = 'tenant=~"$tenant"'
UNSERVED = 'reason=~"error|aborted|disconnected"'


def _held() -> Section:
    return Section(
        "What each holds now",
        (
            lines(
                "KV blocks",
                "A tenant at its ceiling waits while others run; one that never nears its floor could do with less.",
                BLOCKS,
                Query(total("octavo_kv_tenant_blocks", by="tenant", where=TENANT), "{{tenant}}"),
                stacked=True,
            ),
            lines(
                "Share of the blocks in use",
                "Compare with the weights of --tenants: under --policy fair, busy tenants come near them.",
                SHARE,
                Query(
                    shares(
                        total("octavo_kv_tenant_blocks", by="tenant", where=TENANT),
                        f"({total('octavo_kv_tenant_blocks')} > 0)",
                    ),
                    "{{tenant}}",
                ),
            ),
            lines(
                "Open requests",
                "At --max-open-requests the tenant gets 429s: raise it, or have the client send fewer at once.",
                REQUESTS,
                Query(total("octavo_open_requests", by="tenant", where=TENANT), "{{tenant}}"),
            ),
        ),
    )


def _used() -> Section:
    return Section(
        "What each uses",
        (
            lines(
                "Prompt tokens",
                "Of finished requests, cached ones included: what the tenant sends.",
                PER_SECOND,
                Query(_tokens("prompt"), "{{tenant}}"),
                stacked=True,
            ),
            lines(
                "Generated tokens",
                "What the tenant gets, and most of what it costs.",
                PER_SECOND,
                Query(_tokens("generated"), "{{tenant}}"),
                stacked=True,
            ),
            lines(
                "Cached share of prompt tokens",
                "Low where prompts begin alike: tenants share nothing with each other, and cache_salt divides further.",
                SHARE,
                Query(
                    fraction(_tokens("cached"), _tokens("prompt")),
                    "{{tenant}}",
                ),
            ),
        ),
    )


def _ends() -> Section:
    return Section(
        "How their requests end",
        (
            lines(
                "Finished requests by reason",
                "length in numbers: max_tokens is small for what is asked; tool_calls: an agent at work.",
                PER_SECOND,
                Query(
                    rate("octavo_requests_finished_total", by="tenant, reason", where=TENANT),
                    "{{tenant}} {{reason}}",
                ),
            ),
            lines(
                "Share of requests that nobody got",
                "error, aborted or disconnected. If clients leave, see whether their timeouts are below p99.",
                SHARE,
                Query(
                    fraction(_finished(UNSERVED), _finished()),
                    "{{tenant}}",
                ),
            ),
        ),
        width=12,
    )


def _tokens(kind: str) -> str:
    return rate("octavo_request_tokens_total", by="tenant", where=f'kind="{kind}", {TENANT}')


def _finished(reason: str = "") -> str:
    return rate("octavo_requests_finished_total", by="tenant", where=", ".join(filter(None, (reason, TENANT))))
