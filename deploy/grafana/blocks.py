"""The dashboard ``octavo-blocks``: where every KV block is, and what becomes of blocks."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import Query, Section, dashboard, heat, lines
from promql import mean, quantile, rate, shares, total
from units import BLOCKS, BYTES_PER_SECOND, COUNT, PER_SECOND, SECONDS, SHARE


def build() -> Dashboard:
    """Made anew, since Grafana's builders are changed by use."""
    return dashboard(
        "blocks",
        "Where every KV block is, what is found in the prefix cache, and what gives way.",
        (_places(), _prefix_cache(), _lives(), _copies()),
    )


def _places() -> Section:
    return Section(
        "Where the blocks are",
        (
            lines(
                "Device blocks by state",
                "Stacked to the pool. Cached ones have no owner and can be reused: a pool full of them is healthy.",
                BLOCKS,
                Query(total("octavo_kv_blocks", by="state", where='tier="device"'), "{{state}}"),
                stacked=True,
            ),
            lines(
                "Blocks by tier and state",
                "All tiers stacked. used in host or disk belongs to swapped-out sequences; if full, victims recompute.",
                BLOCKS,
                Query(total("octavo_kv_blocks", by="tier, state"), "{{tier}} {{state}}"),
                stacked=True,
            ),
            lines(
                "Blocks in use by tier",
                "device at 1 with requests waiting for blocks: more memory, int8 KV, or shorter requests.",
                SHARE,
                Query(mean("octavo_kv_usage_ratio", by="tier"), "{{tier}}"),
            ),
            lines(
                "Filled slots of used blocks",
                "What is not filled is lost to rounding: low with short requests, where a smaller --block-size pays.",
                SHARE,
                Query(mean("octavo_kv_slot_fill_ratio"), "filled"),
            ),
            lines(
                "Sharing",
                "Blocks saved is memory that you would need without sharing; zero with equal prompts: see the misses.",
                BLOCKS,
                Query(total("octavo_kv_shared_blocks"), "shared"),
                Query(total("octavo_kv_blocks_saved"), "saved"),
            ),
            lines(
                "Forks and duplicates",
                "Forks come from n > 1; duplicates are equal prompts computed at the same time and merged afterwards.",
                PER_SECOND,
                Query(rate("octavo_forks_total"), "forks"),
                Query(rate("octavo_kv_deduplications_total"), "duplicates merged"),
            ),
        ),
    )


def _prefix_cache() -> Section:
    return Section(
        "Prefix cache",
        (
            lines(
                "Prompt tokens looked up, by where they were found",
                "Each hit is a token that was not computed. A falling share of hits costs time to first token.",
                PER_SECOND,
                Query(rate("octavo_prefix_cache_tokens_total", by="result"), "{{result}}"),
                stacked=True,
            ),
            lines(
                "Hit ratio by tier",
                "Stacked to the share of prompt tokens found. Much from host: the device pool is small.",
                SHARE,
                Query(
                    shares(
                        rate("octavo_prefix_cache_tokens_total", by="result", where='result=~"hit_.*"'),
                        rate("octavo_prefix_cache_tokens_total"),
                    ),
                    "{{result}}",
                ),
                stacked=True,
            ),
            lines(
                "Look-ups that ended, by reason",
                "evicted: more memory or a lower tier helps. never_seen: in prompts, put what varies at the end.",
                PER_SECOND,
                Query(rate("octavo_prefix_cache_misses_total", by="reason"), "{{reason}}"),
            ),
        ),
    )


def _lives() -> Section:
    return Section(
        "The life of a block",
        (
            heat(
                "Lifetime",
                "From being taken to being given up. Seconds: the cache turns over faster than prompts return.",
                SECONDS,
                "octavo_kv_block_lifetime_seconds",
            ),
            heat(
                "Idle time before being given up",
                "How long blocks wait without an owner for a next reader. Short: the pool is under pressure.",
                SECONDS,
                "octavo_kv_block_idle_seconds",
            ),
            heat(
                "Gap before reuse",
                "From the last owner to the hit that reused it. Wants to lie well below the idle time to its left.",
                SECONDS,
                "octavo_kv_block_reuse_gap_seconds",
            ),
            lines(
                "Is the cache large enough?",
                "If p90 of the gaps comes near p50 of the idle times, blocks go just before they are wanted.",
                SECONDS,
                Query(quantile(0.9, "octavo_kv_block_reuse_gap_seconds"), "gap before reuse, p90"),
                Query(quantile(0.5, "octavo_kv_block_idle_seconds"), "idle before given up, p50"),
                Query(quantile(0.5, "octavo_kv_block_lifetime_seconds"), "lifetime, p50"),
            ),
            lines(
                "Evictions",
                "Cached blocks given up for others. Normal in a full pool; harmful if the look-ups miss with evicted.",
                PER_SECOND,
                Query(rate("octavo_kv_evictions_total"), "evictions"),
            ),
            lines(
                "Pins",
                "Pinned prefixes. If one gave way, requests needed its blocks: pin less, or have a larger pool.",
                COUNT,
                Query(total("octavo_kv_pins"), "pins"),
                Query(total("octavo_kv_blocks", where='state="pinned"'), "pinned blocks"),
                Query(total("octavo_kv_pins_ended_total", by="reason"), "{{reason}} since the start"),
            ),
        ),
    )


def _copies() -> Section:
    return Section(
        "Copies and giving way",
        (
            lines(
                "Block copies by kind",
                "device_to_host and back at the same rate is swapping to and fro: run fewer sequences.",
                PER_SECOND,
                Query(rate("octavo_kv_copies_total", by="kind"), "{{kind}}"),
            ),
            lines(
                "Bytes copied by kind",
                "Compare with what the link or disk can do; at its limit, swapping is what slows the steps.",
                BYTES_PER_SECOND,
                Query(rate("octavo_kv_copied_bytes_total", by="kind"), "{{kind}}"),
            ),
            lines(
                "Share of time spent copying, by kind",
                "Much of it delays steps: a faster --swap-dir, smaller tiers, or --preemption recompute.",
                SHARE,
                Query(rate("octavo_kv_copy_seconds_total", by="kind"), "{{kind}}"),
            ),
            lines(
                "What preemptions cost",
                "Tokens computed again are wasted work; tokens swapped back are the cheaper way, if copies are fast.",
                PER_SECOND,
                Query(rate("octavo_recomputed_tokens_total"), "computed again"),
                Query(rate("octavo_swapped_tokens_total"), "swapped back"),
            ),
            lines(
                "Preemptions by method",
                "recompute where you expected swap: lower tiers were full, or computing is cheaper.",
                PER_SECOND,
                Query(rate("octavo_preemptions_total", by="method"), "{{method}}"),
                Query(rate("octavo_swap_full_total"), "found no room below"),
            ),
            lines(
                "Lost copies since the start",
                "Not zero: a lower tier damaged blocks. Check the disk of --swap-dir and the kernel's log.",
                COUNT,
                Query(total("octavo_kv_copies_lost_total", by="instance"), "{{instance}}"),
            ),
        ),
    )
