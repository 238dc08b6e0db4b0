"""PromQL in pieces: the few shapes of expression that the dashboards are made of.

All of them are restricted to the instances that the dashboard's variable selects. ``where`` is a further condition on
labels, such as ``tier="device"``; ``by`` names the labels that stay apart, with commas between them.
"""

from __future__ import annotations

INSTANCES = 'instance=~"$instance"'


def total(name: str, by: str = "", where: str = "") -> str:
    """A gauge, or a counter's count since its server started, summed."""
    return f"{_aggregated('sum', by)} ({selected(name, where)})"


def mean(name: str, by: str = "", where: str = "") -> str:
    """The mean of a gauge over instances: for ratios, which do not add up."""
    return f"{_aggregated('avg', by)} ({selected(name, where)})"


def rate(name: str, by: str = "", where: str = "") -> str:
    """A counter's growth per second."""
    return f"{_aggregated('sum', by)} (rate({selected(name, where)}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    """What a share of a histogram's latest observations stays below.

    Args:
        share: Between 0 and 1.
        histogram: Its name without a suffix.
    """
    return f"histogram_quantile({share}, {buckets(histogram)})"


def buckets(histogram: str) -> str:
    """A histogram's buckets, as observations per second: what a heatmap shows."""
    return rate(f"{histogram}_bucket", by="le")


def average(histogram: str) -> str:
    """The mean of a histogram's latest observations."""
    return f"{rate(f'{histogram}_sum')} / {rate(f'{histogram}_count')}"


def shares(part: str, whole: str) -> str:
    """Parts, each divided by one whole that has no labels."""
    return f"{part} / on () group_left () {whole}"


def fraction(part: str, whole: str) -> str:
    """A part of a whole with the same labels; 0, not nothing, while the part has no series yet."""
    return f"({part} or {whole} * 0) / {whole}"


def selected(name: str, where: str = "") -> str:
    """A metric's series as they are."""
    return f"{name}{{{', '.join(filter(None, (INSTANCES, where)))}}}"


def _aggregated(how: str, by: str) -> str:
    return f"{how} by ({by})" if by else how
