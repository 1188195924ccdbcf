"""Alerts fire when they should, and nothing asks for a metric that is not exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.check import monitoring
from tests.deploy.overlays import Built, find

ALERT_TESTS = Path(__file__).parent / "alerts_test.yaml"


def test_alerts_and_dashboard_ask_for_what_is_exported(built: Built) -> None:
    """Every series, label and outcome is one that the code exports."""
    assert list(monitoring.problems(built("monitoring"))) == []


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rate(ditmesh_job_total[5m])", "ditmesh_job_total is not exported"),
        ('ditmesh_jobs_total{outcome="OK"}', "ditmesh_jobs_total has no label outcome"),
        ('ditmesh_jobs_total{ditmesh_outcome="FINE"}', "no job ends with FINE"),
        ('ditmesh_jobs_total{ditmesh_outcome=~"OK|FINE"}', "no job ends with FINE"),
        ("sum by (ditmesh_rank) (ditmesh_jobs_total)", "no metric in"),
        ("sum by (ditmesh_executor) (ditmesh_queue_length)", "no metric in"),
        ("ditmesh_job_duration_seconds", "ditmesh_job_duration_seconds is not exported"),
    ],
)
def test_a_query_for_something_else_is_seen(query: str, complaint: str) -> None:
    """A metric, label or outcome that does not exist is named."""
    (problem,) = monitoring.query_problems("here", query)
    assert complaint in problem


def test_a_query_for_what_there_is_passes() -> None:
    """Histograms are asked for by their buckets, labels by their exported names."""
    query = (
        "histogram_quantile(0.9, sum by (le, ditmesh_executor) "
        '(rate(ditmesh_step_duration_seconds_bucket{ditmesh_executor="group"}[5m])))'
    )
    assert list(monitoring.query_problems("here", query)) == []


def test_promtool_refuses_a_broken_query() -> None:
    """What cannot be parsed is reported with promtool's words."""
    (problem,) = monitoring.promtool_problems(monitoring.as_rule("sum(rate(up)"))
    assert "unclosed left parenthesis" in problem


def test_alerts_fire_when_they_should(built: Built) -> None:
    """Promtool plays series to the rules: each alert fires in its case, and in no other."""
    rule = find(built("monitoring"), "PrometheusRule", "ditmesh")
    assert monitoring.run_rule_tests(rule, ALERT_TESTS) == ""


def test_every_alert_is_tried(built: Built) -> None:
    """No alert is without a case in which it fires."""
    rule = find(built("monitoring"), "PrometheusRule", "ditmesh")
    tests = ALERT_TESTS.read_text()
    for alert in (entry["alert"] for entry in rule["spec"]["groups"][0]["rules"]):
        assert f"alertname: {alert}\n" in tests


def test_the_dashboard_is_one(built: Built) -> None:
    """Grafana's sidecar finds a dashboard whose panels have distinct ids and places."""
    dashboard = json.loads(
        find(built("monitoring"), "ConfigMap", "ditmesh-dash")["data"]["ditmesh.json"]
    )
    panels = dashboard["panels"]
    assert dashboard["uid"] == "ditmesh"
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
