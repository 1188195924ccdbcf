"""What pods, Services and policies together must keep to. Each rule yields what breaks it."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.check.manifests import (
    COORDINATOR,
    NODE,
    Manifest,
    arguments,
    name,
    option,
    pods_of,
    workloads,
)


def nodes_have_what_ranks_need(manifests: list[Manifest]) -> Iterator[str]:
    """One container with all GPUs, memory for /dev/shm, weights read-only and verified first."""
    for workload in pods_of(manifests, NODE):
        containers = workload.spec["containers"]
        if len(containers) != 1:
            yield f"{workload.name}: ranks in several containers have no CUDA IPC"
        options = arguments(containers[0], manifests)
        ranks = int(option(options, "ranks"))
        limits = containers[0]["resources"]["limits"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        if gpus != (ranks if option(options, "device") == "cuda" else 0):
            yield f"{workload.name}: {ranks} ranks and {gpus} GPUs"
        if gpus and not any(t.get("key") == "nvidia.com/gpu" for t in workload.spec["tolerations"]):
            yield f"{workload.name}: does not tolerate the taint of GPU machines"
        volumes = {v["name"]: v for v in workload.spec["volumes"]}
        mounts = {m["mountPath"]: m for m in containers[0]["volumeMounts"]}
        shm = volumes.get(mounts.get("/dev/shm", {}).get("name"), {})
        if shm.get("emptyDir", {}).get("medium") != "Memory":
            yield f"{workload.name}: /dev/shm is not memory"
        if mounts.get("/models", {}).get("readOnly") is not True:
            yield f"{workload.name}: weights are writable"
        if "topologySpreadConstraints" not in workload.spec:
            yield f"{workload.name}: its pods are not spread over machines"
    for workload in workloads(manifests):
        served = [c for c in workload.spec["containers"] if _mounts(c, "/models")]
        verified = any(c.get("command", [""])[0] == "verify-models" for c in workload.containers())
        if served and not verified:
            yield f"{workload.name}: weights are not verified"


def nodes_are_found(manifests: list[Manifest]) -> Iterator[str]:
    """The coordinator is told every rank of every pod, under names that a Service gives."""
    for coordinator in pods_of(manifests, COORDINATOR):
        told = option(arguments(coordinator.spec["containers"][0], manifests), "nodes")
        expected = []
        for workload in pods_of(manifests, NODE):
            spec = workload.manifest["spec"]
            ranks = int(option(arguments(workload.spec["containers"][0], manifests), "ranks"))
            service = spec.get("serviceName", workload.manifest["metadata"]["name"])
            last = 50061 + ranks - 1
            expected += [f"{NODE}-{i}.{service}:50061-{last}" for i in range(spec["replicas"])]
            headless = [
                m
                for m in manifests
                if m["kind"] == "Service"
                and m["metadata"]["name"] == service
                and m["spec"].get("clusterIP") == "None"
                and m["spec"].get("publishNotReadyAddresses")
            ]
            if not headless:
                yield f"{workload.name}: no headless Service {service} with unready addresses"
        if told.split(",") != expected:
            yield f"{coordinator.name}: told {told}, there are {','.join(expected)}"


def nothing_is_reachable_by_default(manifests: list[Manifest]) -> Iterator[str]:
    """A policy that denies all, and none that selects every peer or every port."""
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    denied = any(
        p["spec"]["podSelector"] == {}
        and sorted(p["spec"].get("policyTypes", [])) == ["Egress", "Ingress"]
        and not p["spec"].get("ingress")
        and not p["spec"].get("egress")
        for p in policies
    )
    if not denied:
        yield "no NetworkPolicy denies everything"
    for policy in policies:
        rules = [("from", r) for r in policy["spec"].get("ingress", [])]
        rules += [("to", r) for r in policy["spec"].get("egress", [])]
        for peers, rule in rules:
            if not rule.get(peers) or {} in rule[peers]:
                yield f"{name(policy)}: a rule for every peer"
            if not rule.get("ports"):
                yield f"{name(policy)}: a rule for every port"


def drains_are_bounded(manifests: list[Manifest]) -> Iterator[str]:
    """A PodDisruptionBudget covers every pod."""
    budgets = [m for m in manifests if m["kind"] == "PodDisruptionBudget"]
    for workload in workloads(manifests):
        if workload.manifest["kind"] == "Job":
            continue
        covering = [
            b
            for b in budgets
            if b["spec"]["selector"]["matchLabels"].items() <= workload.labels.items()
        ]
        if len(covering) != 1:
            yield f"{workload.name}: {len(covering)} PodDisruptionBudgets; exactly one may apply"


def selectors_find_pods(manifests: list[Manifest]) -> Iterator[str]:
    """Services and policies select pods that exist, by ports that exist."""
    pods = list(workloads(manifests))
    for manifest in manifests:
        if manifest["kind"] == "Service":
            selector, ports = manifest["spec"]["selector"], manifest["spec"]["ports"]
            wanted = [port.get("targetPort", port["port"]) for port in ports]
        elif manifest["kind"] == "NetworkPolicy":
            selector = manifest["spec"]["podSelector"].get("matchLabels", {})
            rules = manifest["spec"].get("ingress", [])
            wanted = [port["port"] for rule in rules for port in rule["ports"]]
        else:
            continue
        found = [pod for pod in pods if selector.items() <= pod.labels.items()]
        if not found:
            yield f"{name(manifest)}: selects no pod"
        names = {p["name"] for pod in found for c in pod.containers() for p in c.get("ports", [])}
        for port in wanted:
            if isinstance(port, str) and port not in names:
                yield f"{name(manifest)}: no container has a port {port}"


def one_coordinator(manifests: list[Manifest]) -> Iterator[str]:
    """Never two, not even while one replaces the other; its journal outlives it."""
    for workload in pods_of(manifests, COORDINATOR):
        if workload.manifest["kind"] != "StatefulSet" or workload.manifest["spec"]["replicas"] != 1:
            yield f"{workload.name}: there may be two"
        journal = option(arguments(workload.spec["containers"][0], manifests), "journal")
        claims = {
            claim["metadata"]["name"]
            for claim in workload.manifest["spec"].get("volumeClaimTemplates", [])
        }
        mounts = workload.spec["containers"][0]["volumeMounts"]
        if not any(m["name"] in claims and journal.startswith(m["mountPath"]) for m in mounts):
            yield f"{workload.name}: its journal is not on a claim"


def survivors_keep_their_weights(manifests: list[Manifest]) -> Iterator[str]:
    """No pod's end may delete another pod."""
    for manifest in manifests:
        if manifest["kind"] == "LeaderWorkerSet":
            template = manifest["spec"]["leaderWorkerTemplate"]
            if template.get("restartPolicy") != "None" or template.get("size") != 1:
                yield f"{name(manifest)}: a dead pod takes its group with it"


def _mounts(container: Manifest, path: str) -> bool:
    return any(mount["mountPath"] == path for mount in container.get("volumeMounts", []))


RULES = (
    nodes_have_what_ranks_need,
    nodes_are_found,
    nothing_is_reachable_by_default,
    drains_are_bounded,
    selectors_find_pods,
    one_coordinator,
    survivors_keep_their_weights,
)
