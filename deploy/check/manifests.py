"""Overlays as objects: built by kustomize, with a few ways to look into them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.check.tools import kubectl

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "k8s" / "overlays"
JOBS = ROOT / "k8s" / "jobs"

PROGRAM = "app.kubernetes.io/name"
"""The label that tells which program a pod runs."""
COORDINATOR = "ditmesh-coordinator"
NODE = "ditmesh-node"

Manifest = dict[str, Any]


class BuildFailed(Exception):
    """kustomize refused an overlay."""


def overlays() -> list[Path]:
    """Every overlay that an operator may apply."""
    return sorted(p.parent for p in OVERLAYS.glob("*/kustomization.yaml"))


def jobs() -> list[Path]:
    """What an operator applies beside an overlay, and then deletes."""
    return sorted(p.parent for p in JOBS.glob("*/kustomization.yaml"))


def build(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder. Raises BuildFailed."""
    command = [str(kubectl()), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise BuildFailed(done.stderr.strip())
    if done.stderr.strip():
        # Deprecated fields and the like: the next kustomize would refuse them.
        raise BuildFailed(f"kustomize warns: {done.stderr.strip()}")
    return [d for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d]


def name(manifest: Manifest) -> str:
    """Kind and name, for messages."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@dataclass(frozen=True)
class Workload:
    """Something that makes pods, and its pod template."""

    manifest: Manifest
    template: Manifest

    @property
    def name(self) -> str:
        """Kind and name, for messages."""
        return name(self.manifest)

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        return dict(self.template["metadata"].get("labels", {}))

    @property
    def spec(self) -> Manifest:
        """Of its pods."""
        spec: Manifest = self.template["spec"]
        return spec

    def containers(self) -> list[Manifest]:
        """Init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def workloads(manifests: list[Manifest]) -> Iterator[Workload]:
    """Everything that makes pods."""
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
            yield Workload(manifest, manifest["spec"]["template"])
        elif manifest["kind"] == "LeaderWorkerSet":
            template = manifest["spec"]["leaderWorkerTemplate"]
            yield Workload(manifest, template["workerTemplate"])
            if "leaderTemplate" in template:
                yield Workload(manifest, template["leaderTemplate"])


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """The variables of a container that are known before it runs; others map to a placeholder."""
    maps = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    for variable in container.get("env", []):
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[variable["name"]] = "10.0.0.1" if field else variable.get("value", "")
    return found


def arguments(container: Manifest, manifests: list[Manifest]) -> list[str]:
    """The container's arguments with $(NAME) replaced; what is not defined stays as it is."""
    values = environment(container, manifests)
    return [
        re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), argument)
        for argument in container.get("args", [])
    ]


def pods_of(manifests: list[Manifest], program: str) -> list[Workload]:
    """The workloads that run a program."""
    return [w for w in workloads(manifests) if w.labels.get(PROGRAM) == program]


def option(options: list[str], wanted: str) -> str:
    """The value of --wanted=VALUE; empty when it is not given."""
    prefix = f"--{wanted}="
    return next((o.removeprefix(prefix) for o in options if o.startswith(prefix)), "")
