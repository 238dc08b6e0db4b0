"""Prometheus' config, rules and alerts, as promtool judges them, and as an operator reads them."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from monitoring import DOCUMENT, PROMETHEUS, rule_files, rules

ALERTS = [rule for rule in rules() if "alert" in rule]
TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
SEVERITIES = {"critical", "warning", "info"}


def run(promtool: str, *arguments: object) -> str:
    """What promtool says, if it is content."""
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_promtool_accepts_the_config_and_its_rules(promtool: str) -> None:
    said = run(promtool, "check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yaml")
    assert f"{len(rule_files())} rule files found" in said


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_pass_their_unit_tests(promtool: str, file: Any) -> None:
    run(promtool, "test", "rules", file)


def test_every_rule_has_a_unit_test_in_which_it_has_a_value() -> None:
    tested = {
        name
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for query in test["promql_expr_test"]
        if query["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"|(\w+:\w+:\w+)', query["expr"])
    }
    names = {alert or record for alert, record in tested}
    assert names == {rule.get("alert") or rule["record"] for rule in rules()}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_it_means_and_what_to_look_at_first(alert: Any) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert "$labels.instance" in alert["annotations"]["summary"]
    assert re.search(r"[Ll]ook (first )?(at|for) ", alert["annotations"]["description"])


def test_the_document_has_every_alert_with_its_severity() -> None:
    rows = re.findall(r"^\| `(Octavo\w+)` \| (\w+) \| .+ \| .+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == {alert["alert"]: alert["labels"]["severity"] for alert in ALERTS}
    assert len(rows) == len(ALERTS)
