"""The dashboards: made by their code, told to operators, and about metrics that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monitoring import DASHBOARDS, DEPLOY, dashboards, documented_metrics, panel_expressions, panels, rule_expressions

EVERY_PANEL = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in dashboards().items()
    for panel in panels(dashboard)
]


def test_the_committed_dashboards_are_what_the_code_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DEPLOY / "grafana" / "dashboards.py", tmp_path], check=True, timeout=120)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert sorted(made) == [file.name for file in sorted(DASHBOARDS.iterdir())]
    changed = [name for name, text in made.items() if text != (DASHBOARDS / name).read_text()]
    assert changed == [], "run `python deploy/grafana/dashboards.py`"


def test_there_are_four_with_names_of_their_own() -> None:
    assert {name: board["uid"] for name, board in dashboards().items()} == {
        name: f"octavo-{name}" for name in ("blocks", "latency", "overview", "tenants")
    }


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_has_a_title_a_line_of_advice_and_a_unit(panel: Any) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert "\n" not in panel["description"]
    assert len(panel["description"]) <= 120
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_asks_the_data_source_that_was_chosen(panel: Any) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target.get("datasource", panel["datasource"]) == panel["datasource"] for target in panel["targets"])


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_lets_one_choose_where_the_numbers_come_from(name: str) -> None:
    variables = [variable["name"] for variable in dashboards()[name]["templating"]["list"]]
    assert variables == ["datasource", "instance", *(["tenant"] if name == "tenants" else [])]
    assert all("$instance" in target["expr"] for panel in panels(dashboards()[name]) for target in panel["targets"])


@pytest.mark.parametrize("name", dashboards())
def test_panels_lie_on_the_grid_side_by_side(name: str) -> None:
    assert len({panel["id"] for panel in dashboards()[name]["panels"]}) == len(dashboards()[name]["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboards()[name]["panels"]:
        place = panel["gridPos"]
        x, y = place.get("x", 0), place.get("y", 0)
        cells = {(x + i, y + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert x + place["w"] <= 24
        taken |= cells


def test_panels_and_rules_read_documented_metrics_and_show_each_of_them() -> None:
    expressions = [*panel_expressions(), *rule_expressions()]
    unknown = {one.place: one.metrics - set(documented_metrics()) for one in expressions}
    assert {place: names for place, names in unknown.items() if names} == {}
    shown = set().union(*(one.metrics for one in panel_expressions()))
    assert sorted(set(documented_metrics()) - shown) == []
