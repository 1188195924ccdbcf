"""Alerts through promtool; what alerts and the dashboard ask for against what the code exports."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.check.manifests import Manifest, name
from deploy.check.tools import promtool

_METRIC = re.compile(r"\bditmesh_\w+")
_SELECTOR = re.compile(r"\b(ditmesh_\w+)\s*\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")


def problems(manifests: Iterable[Manifest]) -> Iterator[str]:
    """What is wrong with alerts and dashboards."""
    for manifest in manifests:
        if manifest["kind"] == "PrometheusRule":
            yield from promtool_problems(manifest)
            for expression in alert_expressions(manifest):
                yield from query_problems(f"{name(manifest)}", expression)
        labels = manifest["metadata"].get("labels", {})
        if manifest["kind"] == "ConfigMap" and "grafana_dashboard" in labels:
            for title, text in manifest["data"].items():
                for expression in dashboard_expressions(json.loads(text)):
                    yield from promtool_problems(as_rule(expression))
                    yield from query_problems(f"{name(manifest)} {title}", expression)


@dataclass(frozen=True)
class Exported:
    """What a scrape of the coordinator can hold: series, and the values of some labels."""

    series: dict[str, frozenset[str]]
    """Label names by series."""
    outcomes: frozenset[str]


@cache
def exported() -> Exported:
    """Read off the code itself: every instrument used once, then scraped."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from deploy.check.instruments import use_all
    from ditmesh import errors
    from ditmesh.telemetry import Metrics
    from ditmesh.telemetry.prometheus import prometheus_text

    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    use_all(Metrics(provider.get_meter("check")))
    series: dict[str, frozenset[str]] = {}
    for line in prometheus_text(reader.get_metrics_data()).splitlines():
        if not line.startswith("#"):
            sample, _, labels = line.partition("{")
            found = re.findall(r'(\w+)="', labels)
            series[sample.split(" ")[0]] = frozenset(found)
    provider.shutdown()
    return Exported(series, frozenset({"OK", *errors.by_reason()}))


def query_problems(where: str, expression: str) -> Iterator[str]:
    """Series, labels and outcomes in a query that the code never exports."""
    known = exported()
    used = {m for m in _METRIC.findall(expression) if m in known.series}
    labels = frozenset().union(*(known.series[m] for m in used)) if used else frozenset()
    for metric in _METRIC.findall(expression):
        # A label's name begins like a metric's: it is told apart by where it stands.
        if metric not in known.series and metric not in _labels_named(expression):
            yield f"{where}: {metric} is not exported"
    for metric, matchers in _SELECTOR.findall(expression):
        for label, operator, value in _MATCHER.findall(matchers):
            if metric in known.series and label not in known.series[metric]:
                yield f"{where}: {metric} has no label {label}"
            if label == "ditmesh_outcome":
                values = value.split("|") if operator in ("=~", "!~") else [value]
                yield from (
                    f"{where}: no job ends with {v}" for v in values if v not in known.outcomes
                )
    for group in _GROUPED.findall(expression):
        for label in filter(None, (part.strip() for part in group.split(","))):
            if label not in labels:
                yield f"{where}: no metric in {expression!r} has a label {label}"


def _labels_named(expression: str) -> set[str]:
    inside = [
        m[0] for _, matchers in _SELECTOR.findall(expression) for m in _MATCHER.findall(matchers)
    ]
    grouped = [p.strip() for group in _GROUPED.findall(expression) for p in group.split(",")]
    return {*inside, *grouped}


def alert_expressions(rule: Manifest) -> Iterator[str]:
    """The queries of a PrometheusRule."""
    for group in rule["spec"]["groups"]:
        for entry in group["rules"]:
            yield entry["expr"]


def dashboard_expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """The queries of a Grafana dashboard, its interval filled in."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")


def as_rule(expression: str) -> Manifest:
    """A query as a recording rule, so that promtool parses it."""
    rules = [{"record": "check:query", "expr": expression}]
    return {
        "kind": "PrometheusRule",
        "metadata": {"name": "query"},
        "spec": {"groups": [{"name": "check", "rules": rules}]},
    }


def promtool_problems(rule: Manifest) -> Iterator[str]:
    """What promtool says of the rules."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(rule["spec"], file)
        file.flush()
        done = _promtool("check", "rules", file.name)
    if done.returncode:
        yield f"{name(rule)}: {done.stderr.strip() or done.stdout.strip()}"


def run_rule_tests(rule: Manifest, tests: Path) -> str:
    """Run promtool's unit tests against the rules; returns its complaints, empty when it has none.

    The tests' `rule_files` is set here.
    """
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.yaml"
        rules.write_text(yaml.safe_dump(rule["spec"]))
        cases = yaml.safe_load(tests.read_text()) | {"rule_files": [str(rules)]}
        file = Path(folder) / "tests.yaml"
        file.write_text(yaml.safe_dump(cases))
        done = _promtool("test", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(promtool()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
