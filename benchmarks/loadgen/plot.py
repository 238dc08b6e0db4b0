"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

COLUMNS = 3
COLORS = ("#2a9d8f", "#e9c46a", "#f4a261", "#e76f51", "#8d99ae")


def draw(path: Path, title: str, rates: Mapping[str, Mapping[str, float]], floors: Mapping[str, float]) -> None:
    """Writes a picture with a panel for each workload and a bar for each server.

    Args:
        path: Its ending says which kind of picture, such as .svg.
        rates: Workload → server → output tokens per second.
        floors: Workload → what the machine could do, where that is known.
    """
    rows = -(-len(rates) // COLUMNS)
    servers = list(dict.fromkeys(name for by_server in rates.values() for name in by_server))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(servers)}
    with mpl.rc_context({"svg.hashsalt": "octavo", "font.size": 9}):  # the same figures give the same file
        figure = Figure(figsize=(4 * min(COLUMNS, len(rates)), 3 * rows), layout="constrained")
        figure.suptitle(title)
        panels = list(figure.subplots(rows, min(COLUMNS, len(rates)), squeeze=False).flat)
        for panel, (workload, by_server) in zip(panels, rates.items(), strict=False):
            bars = panel.bar(list(by_server), list(by_server.values()), color=[colors[name] for name in by_server])
            panel.bar_label(bars, fmt="%.0f")
            panel.set(title=workload, ylabel="output tok/s")
            panel.tick_params(axis="x", labelrotation=20)
            panel.spines[["top", "right"]].set_visible(False)
            if workload in floors:
                panel.axhline(floors[workload], color="#444", linestyle="--", linewidth=1)
                panel.annotate(
                    f"machine: {floors[workload]:.0f}", (0.99, floors[workload]), xycoords=("axes fraction", "data"),
                    ha="right", va="bottom", color="#444",
                )  # fmt: skip
            panel.margins(y=0.15)
        for unused in panels[len(rates) :]:
            unused.set_visible(False)
        figure.savefig(path, metadata={"Date": None})
