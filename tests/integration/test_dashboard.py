"""Everything the dashboard and the alerts ask Prometheus for exists on a worker."""

from __future__ import annotations

from pathlib import Path

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.apps import make_settings, running
from tests.integration.web import client_of
from tests.prometheus import DASHBOARD, GRAFANA, labels_in, names_in, panel_expressions, rules

# What Prometheus itself adds.
OWN_NAMES = {"up", "ALERTS"}
OWN_LABELS = {"job", "instance", "alertname", "alertstate"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


RULES = [str(rule["expr"]) for rule in rules()]


async def families(client: httpx.AsyncClient) -> tuple[set[str], set[str]]:
    """Names and labels of the samples that a worker has, or may have: a family without any says of what type it is."""
    names, labels = set(), {"le"}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        names |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
        labels |= {label for sample in family.samples for label in sample.labels}
    return names, labels


async def test_every_name_and_label_that_is_asked_for_exists(tmp_path: Path) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    async with running(make_settings("embedded://", tmp_path)) as app, client_of(app) as client:
        names, labels = await families(client)
    # Those come with what happens: letters, records that wait, calls to the outside, faults.
    labels |= {"topic", "agent", "outcome", "state", "kind"}
    for expression in (*panel_expressions(), *RULES):
        assert names_in(expression), expression
        assert names_in(expression) <= names | recorded | OWN_NAMES, expression
        assert labels_in(expression) <= labels | OWN_LABELS, expression


def test_the_dashboard_is_provisioned_with_a_data_source_it_knows() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
