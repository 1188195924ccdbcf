"""Every overlay, and every combination of their parts, is valid and keeps to the rules."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest
import yaml

from deploy.check import manifests, rules, schemas
from tests.deploy.overlays import Built

OVERLAYS = [
    "cpu-demo",
    "eks",
    "gke",
    "monitoring",
    "mtls",
    "multi-node",
    "on-prem",
    "single-node",
]


def test_the_overlays_that_are_promised_are_there() -> None:
    """Operators find all eight, and no more that nobody checks."""
    assert [folder.name for folder in manifests.overlays()] == OVERLAYS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid_for_every_kubernetes(built: Built, overlay: str) -> None:
    """Three versions of Kubernetes take every manifest, unknown fields refused."""
    assert list(schemas.problems(built(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_to_the_rules(built: Built, overlay: str) -> None:
    """Security, grace periods, options, names, policies: no rule is broken."""
    assert list(rules.problems(built(overlay))) == []


@pytest.mark.parametrize(
    ("topology", "pool"),
    list(itertools.product(["single-node", "multi-node"], ["gke", "eks", "on-prem"])),
)
def test_parts_combine(tmp_path: Path, topology: str, pool: str) -> None:
    """Any topology goes with any pool, and with mutual TLS, monitoring and the local sampler."""
    k8s = Path(os.path.relpath(manifests.ROOT / "k8s", tmp_path))
    parts = [pool, "mtls", "monitoring", "local-sampler"]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(k8s / "overlays" / topology)],
        "components": [str(k8s / "components" / part) for part in parts],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    found = manifests.build(tmp_path)
    assert [*schemas.problems(found), *rules.problems(found)] == []
    (node,) = manifests.pods_of(found, manifests.NODE)
    assert node.spec["nodeSelector"]
    assert "--coordinator-name=ditmesh-coordinator" in node.spec["containers"][0]["args"]


def test_the_overlay_of_the_operators_page(tmp_path: Path) -> None:
    """What the page tells an operator to write is built as it stands there, and keeps the rules."""
    page = (manifests.ROOT.parent / "docs" / "kubernetes.md").read_text()
    (told,) = re.findall(r"```yaml\n(# my-cluster/kustomization.yaml\n.*?)```", page, re.DOTALL)
    deploy = os.path.relpath(manifests.ROOT, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(told.replace("../deploy", deploy))
    (tmp_path / "SHA256SUMS").touch()
    found = manifests.build(tmp_path)
    assert [*schemas.problems(found), *rules.problems(found)] == []
    images = {c["image"] for w in manifests.workloads(found) for c in w.containers()}
    assert images == {
        "REGISTRY/PROJECT/ditmesh-coordinator:0.1.0",
        "REGISTRY/PROJECT/ditmesh-node:0.1.0",
    }
    (coordinator,) = manifests.pods_of(found, manifests.COORDINATOR)
    options = manifests.arguments(coordinator.spec["containers"][0], found)
    assert manifests.option(options, "preload") == "flux1-dev"


def test_two_machines_have_the_pods_of_one(built: Built) -> None:
    """The LeaderWorkerSet's pods are those of the StatefulSet, to the last field."""
    (one,) = manifests.pods_of(built("single-node"), manifests.NODE)
    (two,) = manifests.pods_of(built("multi-node"), manifests.NODE)
    assert two.manifest["kind"] == "LeaderWorkerSet"

    def without_hashes(spec: object) -> str:
        text = yaml.safe_dump(spec)
        for manifest in (*built("single-node"), *built("multi-node")):
            if manifest["kind"] == "ConfigMap":
                name = manifest["metadata"]["name"]
                text = text.replace(name, name.rpartition("-")[0])
        return text

    assert without_hashes(one.spec) == without_hashes(two.spec)


def test_a_changed_option_rolls_the_pods(built: Built, tmp_path: Path) -> None:
    """Configuration is part of a ConfigMap's name, so pods never run with half of a change."""
    k8s = Path(os.path.relpath(manifests.ROOT / "k8s", tmp_path))
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [str(k8s / "overlays/single-node")],
                "configMapGenerator": [
                    {
                        "name": "ditmesh",
                        "namespace": "ditmesh",
                        "behavior": "merge",
                        "literals": ["PRELOAD=flux1-dev"],
                    }
                ],
            }
        )
    )
    changed = manifests.build(tmp_path)
    assert list(rules.problems(changed)) == []
    (before,) = manifests.pods_of(built("single-node"), manifests.NODE)
    (after,) = manifests.pods_of(changed, manifests.NODE)
    assert before.spec["containers"][0]["envFrom"] != after.spec["containers"][0]["envFrom"]


def test_an_overlay_that_kustomize_refuses_is_reported(tmp_path: Path) -> None:
    """A missing file is a problem with a message, not an empty deployment."""
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(manifests.BuildFailed, match=r"missing\.yaml"):
        manifests.build(tmp_path)
