"""Grafana's names of the units that panels have."""

BLOCKS = TOKENS = REQUESTS = COUNT = "short"
BYTES_PER_SECOND = "binBps"
PER_SECOND = "cps"
SECONDS = "s"
SHARE = "percentunit"
