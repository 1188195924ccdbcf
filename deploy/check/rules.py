"""All rules that a deployment must keep to."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.check import cluster_rules, pod_rules
from deploy.check.manifests import Manifest

RULES = (*pod_rules.RULES, *cluster_rules.RULES)


def problems(manifests: list[Manifest]) -> Iterator[str]:
    """Everything that breaks a rule."""
    for rule in RULES:
        yield from rule(manifests)
