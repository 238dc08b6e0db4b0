"""What `deploy/` holds, as data: expressions of panels and rules, and the metrics that docs/monitoring.md tells of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
PROMETHEUS = DEPLOY / "prometheus"
DOCUMENT = ROOT / "docs" / "monitoring.md"

# In tests' rates and rules: they need two scrapes in a window, and a busy machine may miss some.
TEST_WINDOW = "15s"

# A comparison with a number, which makes a rule's left-hand side an alert.
_THRESHOLD = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*-?[\d.]+(e-?\d+)?")
_WINDOW = re.compile(r"\[\d+[smhd]\]")
_VARIABLE = re.compile(r"\$\{?(\w+)")
_STRING = re.compile(r'"[^"]*"')
_RECORDED = re.compile(r"\w+:octavo_\w+:\w+")
_METRIC = re.compile(r"\boctavo_\w+")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")
_ROW = re.compile(r"^\| `(octavo_\w+)` \| ([^|]*)\|", re.MULTILINE)
_LABEL_VALUES = re.compile(r"label_values\((\w+), (\w+)\)")


@dataclass(frozen=True)
class Expression:
    """A PromQL expression. Attributes: place: where it stands, for messages. text: the PromQL."""

    place: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """Metrics of Octavo's that it reads, as docs/monitoring.md calls them; recorded series are not among them."""
        names = _METRIC.findall(_STRING.sub('""', _RECORDED.sub("", self.text)))
        return {_SUFFIX.sub("", name) for name in names}

    def at_test_speed(self) -> str:
        """With all variables of Grafana's filled in, and with windows that a test can wait for."""
        text = (
            self.text.replace("$__rate_interval", TEST_WINDOW)
            .replace('"$instance"', '".*"')
            .replace('"$tenant"', '".*"')
        )
        assert not _VARIABLE.search(text), f"{self.place}: a variable that the test does not know: {text}"
        return shortened(text)

    def without_thresholds(self) -> Expression:
        """What an alert compares, which has a value when nothing is wrong, too."""
        return Expression(self.place, _THRESHOLD.sub("", self.text))


def shortened(text: str) -> str:
    """PromQL, or a file of rules, with windows that a test can wait for."""
    return _WINDOW.sub(f"[{TEST_WINDOW}]", text)


def dashboards() -> dict[str, Any]:
    """The committed dashboards by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: Any) -> list[Any]:
    """A dashboard's panels, rows left out."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_expressions() -> Iterator[Expression]:
    """Every expression of every panel."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Expression(f"{name} / {panel['title']} / {target['refId']}", target["expr"])


def rule_files() -> list[Path]:
    """The files of rules."""
    return sorted((PROMETHEUS / "rules").glob("*.yaml"))


def rules() -> list[dict[str, Any]]:
    """Every rule; alerts have a key "alert", recording rules a key "record"."""
    files = [yaml.safe_load(file.read_text()) for file in rule_files()]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def rule_expressions() -> Iterator[Expression]:
    """What every rule reads; an alert's thresholds are left out."""
    for rule in rules():
        yield Expression(rule.get("alert") or rule["record"], rule["expr"]).without_thresholds()


def variables() -> set[tuple[str, str]]:
    """(Metric, label) of every variable whose choices are a label's values."""
    lists = [dashboard["templating"]["list"] for dashboard in dashboards().values()]
    queries = [variable["query"] for each in lists for variable in each if variable["type"] == "query"]
    return {match.group(1, 2) for query in queries if (match := _LABEL_VALUES.fullmatch(query))}


def documented_metrics() -> dict[str, set[str]]:
    """The metrics in the tables of docs/monitoring.md, with their labels."""
    rows = _ROW.findall(DOCUMENT.read_text())
    assert len(dict(rows)) == len(rows), "docs/monitoring.md has a metric twice"
    return {name: set(re.findall(r"\w+", labels)) for name, labels in rows}


def exported_metrics(exposition: str) -> dict[str, set[str]]:
    """The metrics in Prometheus' text format, with their labels; without those that only say since when one counts."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not name.endswith("_created"):
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found
