"""Panels and dashboards in Octavo's form: each panel has a title, a line for the operator, and a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import promql
from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TimeZoneBrowser,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

WIDTH = 24  # columns of Grafana's grid
TAG = "octavo"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

Panel = timeseries.Panel | heatmap.Panel | stat.Panel


@dataclass(frozen=True)
class Query:
    """One expression of a panel.

    Attributes:
        expression: PromQL; `promql` has its shapes.
        legend: What its series are called, with ``{{label}}`` for a label's value.
    """

    expression: str
    legend: str


@dataclass(frozen=True)
class Section:
    """A row of a dashboard: its title, and its panels, each ``width`` columns wide."""

    title: str
    panels: Sequence[Panel]
    width: int = 8
    height: int = 8


def lines(title: str, advice: str, unit: str, *queries: Query, stacked: bool = False) -> timeseries.Panel:
    """Series over time.

    Args:
        title: What is shown. advice: one line on what an operator does with it.
        unit: One of Grafana's units.
        stacked: The series are parts of a whole.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(advice)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(40 if stacked else 5)
        .line_width(1)
        .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for target in _targets(queries):
        panel.with_target(target)
    return panel


def quantiles(title: str, advice: str, unit: str, histogram: str) -> timeseries.Panel:
    """A histogram's median, ninth decile and last percentile over time."""
    queries = [Query(promql.quantile(share / 100, histogram), f"p{share}") for share in (50, 90, 99)]
    return lines(title, advice, unit, *queries)


def heat(title: str, advice: str, unit: str, histogram: str) -> heatmap.Panel:
    """A histogram over time: how many observations fell into each of its buckets."""
    target = prometheus.Dataquery().expr(promql.buckets(histogram)).legend_format("{{le}}").ref_id("A")
    return (
        heatmap.Panel()
        .title(title)
        .description(advice)
        .datasource(SOURCE)
        .unit(unit)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(_colors())
        .show_legend()
        .with_target(target.format(PromQueryFormat.HEATMAP).datasource(SOURCE))
    )


def number(title: str, advice: str, unit: str, query: Query, alarm: float | None = None) -> stat.Panel:
    """The present value, large; ``alarm`` is where it turns red."""
    panel = (
        stat.Panel()
        .title(title)
        .description(advice)
        .datasource(SOURCE)
        .unit(unit)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .thresholds(_thresholds([("green", None)] if alarm is None else [("green", None), ("red", alarm)]))
    )
    for target in _targets([query]):
        panel.with_target(target)
    return panel


def light(title: str, advice: str, query: Query) -> stat.Panel:
    """A value that is 1 when all is well, as yes or no."""
    return (
        number(title, advice, "bool_yes_no", query)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.BACKGROUND)
        .thresholds(_thresholds([("red", None), ("green", 1)]))
    )


def words(title: str, advice: str, query: Query) -> stat.Panel:
    """What the labels of a series say; its value means nothing."""
    return (
        number(title, advice, "none", query)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.NONE)
        .text_mode(BigValueTextMode.NAME)
    )


def dashboard(name: str, about: str, sections: Sequence[Section], *, tenants: bool = False) -> Dashboard:
    """A dashboard ``octavo-<name>`` with the variables that all have, and one for tenants on request."""
    board = (
        Dashboard(f"Octavo: {name}")
        .uid(f"octavo-{name}")
        .description(about)
        .tags([TAG])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone(TimeZoneBrowser)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .editable()
        .link(_siblings())
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_label_variable("instance", "octavo_ready"))
    )
    if tenants:
        board.with_variable(_label_variable("tenant", "octavo_kv_tenant_blocks"))
    ids = count(1)  # links to a panel go by its number
    for section in sections:
        board.with_row(Row(section.title).id(next(ids)))
        for panel in section.panels:
            board.with_panel(panel.id(next(ids)).span(section.width).height(section.height))
    return board


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(chr(ord("A") + index)).range()
        for index, query in enumerate(queries)
    ]


def _siblings() -> DashboardLink:
    return (
        DashboardLink("Octavo").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(False).include_vars(True)
    ).keep_time(True)


def _label_variable(name: str, metric: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _thresholds(steps: Sequence[tuple[str, float | None]]) -> ThresholdsConfig:
    # Grafana wants the first step's value to be null, which stands for minus infinity.
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(color=color, value=value) for color, value in steps])
    )


def _colors() -> heatmap.HeatmapColorOptions:
    options = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    return options.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).steps(64)
