"""What every pod must keep to, beyond being valid. Each rule yields what breaks it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from deploy.check.manifests import (
    COORDINATOR,
    NODE,
    PROGRAM,
    Manifest,
    arguments,
    option,
    pods_of,
    workloads,
)

# Seconds that the programs' supervisors add to the grace of their children, and room.
_SUPERVISOR_S = 10
_ROOM_S = 15
_HEALTH_NAMES = {"live", "ready", "group"}


def pods_are_restricted(manifests: list[Manifest]) -> Iterator[str]:
    """Non-root, read-only root, no capabilities, no privileges, no token, no links."""
    for workload in workloads(manifests):
        spec, security = workload.spec, workload.spec.get("securityContext", {})
        wanted = {
            "runs as a user that may be root": security.get("runAsNonRoot") is True,
            "has no seccomp profile": security.get("seccompProfile", {}).get("type")
            == "RuntimeDefault",
            "mounts an API token": spec.get("automountServiceAccountToken") is False,
            "gets variables for every Service": spec.get("enableServiceLinks") is False,
            "uses the default service account": "serviceAccountName" in spec,
            "shares a namespace of its machine": not any(
                spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")
            ),
        }
        yield from (f"{workload.name} {what}" for what, holds in wanted.items() if not holds)
        for container in workload.containers():
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{workload.name} {container['name']}: its root is writable"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{workload.name} {container['name']}: may gain privileges"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{workload.name} {container['name']}: keeps capabilities"


def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    """Every image has a version or a digest, and every container its memory."""
    for workload in workloads(manifests):
        for container in workload.containers():
            image = container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"{workload.name} {container['name']}: image {image} has no version"
            resources = container.get("resources", {})
            if "memory" not in resources.get("limits", {}) or not resources.get("requests"):
                yield f"{workload.name} {container['name']}: memory or requests are not set"


def references_resolve(manifests: list[Manifest]) -> Iterator[str]:
    """Whatever a pod names is among the manifests, and every $(NAME) is defined."""
    kinds = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    # cert-manager writes these.
    kinds |= {("Secret", m["spec"]["secretName"]) for m in manifests if m["kind"] == "Certificate"}
    for workload in workloads(manifests):
        wanted = [("ServiceAccount", workload.spec.get("serviceAccountName"))]
        for volume in workload.spec.get("volumes", []):
            wanted.append(("ConfigMap", volume.get("configMap", {}).get("name")))
            wanted.append(("Secret", volume.get("secret", {}).get("secretName")))
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            wanted.append(("PersistentVolumeClaim", claim))
        volumes = {v["name"] for v in workload.spec.get("volumes", [])}
        claims = workload.manifest["spec"].get("volumeClaimTemplates", [])
        volumes |= {claim["metadata"]["name"] for claim in claims}
        for container in workload.containers():
            wanted += [
                ("ConfigMap", source.get("configMapRef", {}).get("name"))
                for source in container.get("envFrom", [])
            ]
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{workload.name} {container['name']}: no volume {mount['name']}"
            for argument in arguments(container, manifests):
                if "$(" in argument:
                    yield f"{workload.name} {container['name']}: {argument} is not defined"
        for kind, what in wanted:
            if what and (kind, what) not in kinds:
                yield f"{workload.name}: there is no {kind} {what}"


def renewals_reach_pods(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets are mounted as folders: the kubelet never updates a file mounted by `subPath`."""
    for workload in workloads(manifests):
        secrets = {v["name"] for v in workload.spec.get("volumes", []) if "secret" in v}
        for container in workload.containers():
            for mount in container.get("volumeMounts", []):
                if mount["name"] in secrets and ("subPath" in mount or "subPathExpr" in mount):
                    yield f"{workload.name} {container['name']}: {mount['name']} is never renewed"


def options_exist(manifests: list[Manifest]) -> Iterator[str]:
    """The programs take the arguments that their containers are given."""
    for workload in workloads(manifests):
        parser = _parser(workload.labels.get(PROGRAM, ""))
        if parser is None:
            continue
        for container in workload.spec["containers"]:
            try:
                parser.parse_args(arguments(container, manifests))
            except argparse.ArgumentError as error:
                yield f"{workload.name} {container['name']}: {error}"


class _Parser(argparse.ArgumentParser):
    """Raises where argparse's own would end the process."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise argparse.ArgumentError(None, message)


def _parser(program: str) -> argparse.ArgumentParser | None:
    parser = _Parser(prog=program)
    if program == COORDINATOR:
        from coordinator.app import add_arguments as add
    elif program == NODE:
        from gpu_node.app import add_arguments as add
    else:
        return None
    add(parser)
    return parser


def pods_may_finish(manifests: list[Manifest]) -> Iterator[str]:
    """A pod's grace period covers preStop, the programs' own grace and their supervisor's."""
    for workload in workloads(manifests):
        if workload.labels.get(PROGRAM) not in (COORDINATOR, NODE):
            continue
        for container in workload.spec["containers"]:
            grace = option(arguments(container, manifests), "grace")
            if not grace:
                yield f"{workload.name}: no --grace, so a long job would be cut off"
                continue
            needed = float(grace) + _pre_stop_s(container) + _SUPERVISOR_S + _ROOM_S
            given = workload.spec.get("terminationGracePeriodSeconds", 30)
            if given < needed:
                yield f"{workload.name}: grace period of {given} s, jobs need {needed:.0f} s"
    for workload in pods_of(manifests, COORDINATOR):
        if not all(_pre_stop_s(container) for container in workload.spec["containers"]):
            yield f"{workload.name}: no preStop, so calls still arrive while it drains"


def _pre_stop_s(container: Manifest) -> float:
    hook = container.get("lifecycle", {}).get("preStop", {})
    command = hook.get("exec", {}).get("command", [])
    if command[:1] == ["sleep"]:
        return float(command[1])
    return float(hook.get("sleep", {}).get("seconds", 0))


def probes_ask_health(manifests: list[Manifest]) -> Iterator[str]:
    """Startup, readiness and liveness ask the health port by gRPC, under the names it knows."""
    for workload in (*pods_of(manifests, COORDINATOR), *pods_of(manifests, NODE)):
        for container in workload.spec["containers"]:
            health = option(container["args"], "health").rpartition(":")[2]
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {}).get("grpc", {})
                if str(probe.get("port")) != health or probe.get("service") not in _HEALTH_NAMES:
                    yield f"{workload.name} {kind}: asks {probe or None}, health is on {health}"
            if container.get("livenessProbe", {}).get("grpc", {}).get("service") != "live":
                yield f"{workload.name}: being unready must not restart it"


RULES = (
    pods_are_restricted,
    images_are_pinned,
    references_resolve,
    renewals_reach_pods,
    options_exist,
    pods_may_finish,
    probes_ask_health,
)
