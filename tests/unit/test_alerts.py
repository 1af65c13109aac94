"""The alert rules: valid, each tested by promtool when it fires and when it does not, each with a way out."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.prometheus import FOLDER, ROOT, names_in, promtool, rules

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def anchors_of(path: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_configuration_and_rules_are_valid() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_end_when_it_is_over() -> None:
    done = promtool("test", "rules", "alerts.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire() -> None:
    tested = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    samples = [sample for test in tested for check in test["promql_expr_test"] for sample in check["exp_samples"]]
    assert {re.findall('"(.+)"', sample["labels"])[0] for sample in samples} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_urgent_it_is_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    document, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors_of(document)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up == 0", {"up"}),
        ('sum by (type) (rate(a_total{status!="ok", x="by (b)"}[5m])) / on(type) c > 1e3', {"a_total", "c"}),
        ("a:b:sum10m > 2 * 1024 ^ 3 and deriv(a:b:sum10m[15m:30s] offset 1h) unless absent(z)", {"a:b:sum10m", "z"}),
        ("histogram_quantile(0.99, sum(rate(s_bucket[$__rate_interval])) by (le, instance))", {"s_bucket"}),
        ("max(x) without (partition) * on (i) group_left(n) y", {"x", "y"}),
    ],
)
def test_names_are_found_in_expressions(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names
