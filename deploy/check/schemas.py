"""Manifests against Kubernetes' schemas of several versions and those of custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache

import jsonschema
import kubernetes_validate

from deploy.check.manifests import ROOT, Manifest, name, workloads

VERSIONS = ("1.33", "1.35", "1.37")
"""Kubernetes versions that every manifest must be valid for; the last is the newest known."""

SCHEMAS = ROOT / "k8s" / "schemas"
_CUSTOM = {
    "LeaderWorkerSet": "leaderworkerset.json",
    "ServiceMonitor": "servicemonitor.json",
    "PrometheusRule": "prometheusrule.json",
    "Certificate": "certificate.json",
    "Issuer": "issuer.json",
}


def problems(manifests: Iterable[Manifest]) -> Iterator[str]:
    """What is wrong with each manifest, unknown fields included."""
    for manifest in manifests:
        yield from _problems(json.dumps(manifest, sort_keys=True))


@cache  # overlays share most of their manifests
def _problems(text: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    if manifest["kind"] in _CUSTOM:
        return (*_custom_problems(manifest), *_template_problems(manifest))
    return tuple(found for version in VERSIONS for found in _core_problems(manifest, version))


def _core_problems(manifest: Manifest, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{name(manifest)}: Kubernetes {version} knows no such kind"
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        yield f"{name(manifest)}: {where}: {error.message} (Kubernetes {version})"


def _custom_problems(manifest: Manifest) -> Iterator[str]:
    schema = json.loads((SCHEMAS / _CUSTOM[manifest["kind"]]).read_text())
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        where = ".".join(str(part) for part in error.path)
        yield f"{name(manifest)}: {where}: {error.message}"


def _template_problems(manifest: Manifest) -> Iterator[str]:
    """Pod templates inside custom resources, which Kubernetes' own schemas describe."""
    for workload in workloads([manifest]):
        template = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": manifest["metadata"]["name"]},
            "template": workload.template,
        }
        for version in VERSIONS:
            yield from _core_problems(template, version)
