"""The schemas refuse what a cluster would refuse, or would silently drop."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from deploy.check import schemas
from tests.deploy.overlays import Built, find


def test_an_unknown_field_is_refused_by_every_version(built: Built) -> None:
    """A misspelt field, which an API server drops with a warning, is an error here."""
    found = built("single-node")
    pod = find(found, "StatefulSet", "ditmesh-node")["spec"]["template"]["spec"]
    pod["terminationGraceSeconds"] = 5
    problems = list(schemas.problems(found))
    assert len(problems) == len(schemas.VERSIONS) == 3
    assert all("terminationGraceSeconds" in problem for problem in problems)


def test_a_wrong_type_is_refused(built: Built) -> None:
    """A number where text must be."""
    found = built("single-node")
    find(found, "StatefulSet", "ditmesh-node")["spec"]["serviceName"] = 5
    assert any("serviceName" in problem for problem in schemas.problems(found))


@pytest.mark.parametrize(
    ("overlay", "kind", "path", "value"),
    [
        ("multi-node", "LeaderWorkerSet", ["leaderWorkerTemplate", "restartPolicy"], "Never"),
        ("multi-node", "LeaderWorkerSet", ["leaderWorkerTemplate", "replica"], 1),
        ("mtls", "Certificate", ["dnsName"], ["x"]),
        ("mtls", "Certificate", ["usages"], ["server"]),
        ("mtls", "Issuer", ["ca"], {}),
        ("monitoring", "ServiceMonitor", ["endpoints"], [{"ports": "metrics"}]),
        ("monitoring", "PrometheusRule", ["groups"], [{"rules": []}]),
    ],
)
def test_a_custom_resource_is_held_against_its_definition(
    built: Built, overlay: str, kind: str, path: list[str], value: object
) -> None:
    """Misspelt fields and unknown values of custom resources are errors too."""
    found = built(overlay)
    assert list(schemas.problems(found)) == []
    place = find(found, kind, "ditmesh")["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert any(problem.startswith(f"{kind}/") for problem in schemas.problems(found))


def test_the_pods_of_a_custom_resource_are_checked(built: Built) -> None:
    """A LeaderWorkerSet's pod template is held against Kubernetes' own schema."""
    found = built("multi-node")
    template = find(found, "LeaderWorkerSet", "ditmesh-node")["spec"]["leaderWorkerTemplate"]
    template["workerTemplate"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert len(list(schemas.problems(found))) == 3


def test_an_unknown_kind_is_refused() -> None:
    """Nothing passes for want of a schema."""
    manifest = {"apiVersion": "example.org/v1", "kind": "Toy", "metadata": {"name": "toy"}}
    assert len(list(schemas.problems([manifest]))) == 3


def test_the_committed_schemas_are_schemas() -> None:
    """Each is valid itself and says where it comes from."""
    for path in schemas.SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        Draft202012Validator.check_schema(schema)
        assert "github.com/" in schema["$comment"]
