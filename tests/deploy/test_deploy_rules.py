"""Each rule sees what it is for: a good overlay is broken in one place, and the rule says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from deploy.check import cluster_rules, pod_rules, rules
from deploy.check.manifests import Manifest
from tests.deploy.overlays import Built, find

Break = Callable[[list[Manifest]], object]


def _node(found: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = find(found, "StatefulSet", "ditmesh-node")["spec"]["template"]["spec"]
    return spec


def _coordinator(found: list[Manifest]) -> dict[str, Any]:
    name = "ditmesh-coordinator"
    spec: dict[str, Any] = find(found, "StatefulSet", name)["spec"]["template"]["spec"]
    return spec


def _config(found: list[Manifest]) -> dict[str, str]:
    data: dict[str, str] = next(
        m["data"] for m in found if m["kind"] == "ConfigMap" and "NODES" in m["data"]
    )
    return data


def _policy(found: list[Manifest], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = find(found, "NetworkPolicy", name)["spec"]
    return spec


def _main(spec: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = spec["containers"][0]
    return container


def _mount_one_file(spec: dict[str, Any]) -> None:
    spec["volumes"].append({"name": "tls", "secret": {"secretName": "ditmesh-node-tls"}})
    mount = {"name": "tls", "mountPath": "/etc/ditmesh/tls.crt", "subPath": "tls.crt"}
    _main(spec)["volumeMounts"].append(mount)


CASES: list[tuple[rules.Rule, Break, str]] = [
    (
        pod_rules.pods_are_restricted,
        lambda m: _node(m)["securityContext"].update(runAsNonRoot=False),
        "may be root",
    ),
    (
        pod_rules.pods_are_restricted,
        lambda m: _main(_coordinator(m))["securityContext"].update(readOnlyRootFilesystem=False),
        "its root is writable",
    ),
    (
        pod_rules.pods_are_restricted,
        lambda m: _node(m)["initContainers"][0].pop("securityContext"),
        "verify-models: keeps capabilities",
    ),
    (pod_rules.pods_are_restricted, lambda m: _node(m).update(hostIPC=True), "shares a namespace"),
    (
        pod_rules.images_are_pinned,
        lambda m: _main(_node(m)).update(image="registry.example/ditmesh-node:latest"),
        "has no version",
    ),
    (
        pod_rules.images_are_pinned,
        lambda m: _main(_node(m)).update(image="registry:5000/ditmesh-node"),
        "has no version",
    ),
    (
        pod_rules.images_are_pinned,
        lambda m: _main(_node(m))["resources"].pop("limits"),
        "memory or requests are not set",
    ),
    (
        pod_rules.references_resolve,
        lambda m: _node(m).update(serviceAccountName="other"),
        "there is no ServiceAccount other",
    ),
    (
        pod_rules.references_resolve,
        lambda m: _config(m).pop("MESH"),
        r"--mesh=\$\(MESH\) is not defined",
    ),
    (
        pod_rules.references_resolve,
        lambda m: _node(m).update(volumes=_node(m)["volumes"][1:]),
        "no volume models",
    ),
    (pod_rules.renewals_reach_pods, lambda m: _mount_one_file(_node(m)), "tls is never renewed"),
    (
        pod_rules.options_exist,
        lambda m: _main(_node(m))["args"].append("--no-such-option=1"),
        "unrecognized arguments: --no-such-option=1",
    ),
    (pod_rules.options_exist, lambda m: _config(m).update(DTYPE="fp13"), "invalid choice: 'fp13'"),
    (
        pod_rules.pods_may_finish,
        lambda m: _node(m).update(terminationGracePeriodSeconds=600),
        "grace period of 600 s, jobs need 625 s",
    ),
    (pod_rules.pods_may_finish, lambda m: _config(m).update(GRACE="7200"), "jobs need 7230 s"),
    (
        pod_rules.pods_may_finish,
        lambda m: _main(_coordinator(m)).pop("lifecycle"),
        "no preStop",
    ),
    (
        pod_rules.probes_ask_health,
        lambda m: _main(_node(m)).update(readinessProbe={"tcpSocket": {"port": 50061}}),
        "readinessProbe: asks None",
    ),
    (
        pod_rules.probes_ask_health,
        lambda m: _main(_node(m))["livenessProbe"]["grpc"].update(service="ready"),
        "being unready must not restart it",
    ),
    (
        cluster_rules.nodes_have_what_ranks_need,
        lambda m: _main(_node(m))["resources"]["limits"].update({"nvidia.com/gpu": 4}),
        "8 ranks and 4 GPUs",
    ),
    (
        cluster_rules.nodes_have_what_ranks_need,
        lambda m: _node(m)["volumes"][-1].update(emptyDir={}),
        "/dev/shm is not memory",
    ),
    (
        cluster_rules.nodes_have_what_ranks_need,
        lambda m: _node(m).pop("initContainers"),
        "weights are not verified",
    ),
    (
        cluster_rules.nodes_have_what_ranks_need,
        lambda m: _node(m).update(tolerations=[]),
        "does not tolerate the taint",
    ),
    (
        cluster_rules.nodes_have_what_ranks_need,
        lambda m: _node(m).pop("topologySpreadConstraints"),
        "not spread",
    ),
    (
        cluster_rules.nodes_are_found,
        lambda m: find(m, "StatefulSet", "ditmesh-node")["spec"].update(replicas=2),
        "there are ditmesh-node-0.ditmesh-node:50061-50068,ditmesh-node-1",
    ),
    (
        cluster_rules.nodes_are_found,
        lambda m: find(m, "Service", "ditmesh-node")["spec"].pop("publishNotReadyAddresses"),
        "no headless Service",
    ),
    (
        cluster_rules.nothing_is_reachable_by_default,
        lambda m: m.remove(find(m, "NetworkPolicy", "default-deny")),
        "no NetworkPolicy denies everything",
    ),
    (
        cluster_rules.nothing_is_reachable_by_default,
        lambda m: _policy(m, "coordinator")["ingress"][0].pop("from"),
        "a rule for every peer",
    ),
    (
        cluster_rules.nothing_is_reachable_by_default,
        lambda m: _policy(m, "node")["ingress"][0].pop("ports"),
        "a rule for every port",
    ),
    (
        cluster_rules.drains_are_bounded,
        lambda m: m.remove(find(m, "PodDisruptionBudget", "ditmesh")),
        "0 PodDisruptionBudgets",
    ),
    (
        cluster_rules.selectors_find_pods,
        lambda m: find(m, "Service", "ditmesh-coordinator")["spec"]["selector"].update(tier="x"),
        "selects no pod",
    ),
    (
        cluster_rules.selectors_find_pods,
        lambda m: _main(_coordinator(m))["ports"].pop(0),
        "no container has a port grpc",
    ),
    (
        cluster_rules.one_coordinator,
        lambda m: find(m, "StatefulSet", "ditmesh-coordinator").update(kind="Deployment"),
        "there may be two",
    ),
    (
        cluster_rules.one_coordinator,
        lambda m: find(m, "StatefulSet", "ditmesh-coordinator")["spec"].pop("volumeClaimTemplates"),
        "its journal is not on a claim",
    ),
]


@pytest.mark.parametrize(("rule", "harm", "message"), CASES)
def test_a_rule_sees_what_it_is_for(
    built: Built, rule: rules.Rule, harm: Break, message: str
) -> None:
    """The rule is silent before the harm and names it afterwards."""
    found = built("single-node")
    assert list(rule(found)) == []
    harm(found)
    problems = list(rule(found))
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("field", "value"), [("restartPolicy", "RecreateGroupOnPodRestart"), ("size", 2)]
)
def test_survivors_keep_their_weights(built: Built, field: str, value: object) -> None:
    """A LeaderWorkerSet that would delete the survivors of a dead pod is refused."""
    found = built("multi-node")
    assert list(cluster_rules.survivors_keep_their_weights(found)) == []
    find(found, "LeaderWorkerSet", "ditmesh-node")["spec"]["leaderWorkerTemplate"][field] = value
    assert list(cluster_rules.survivors_keep_their_weights(found)) == [
        "LeaderWorkerSet/ditmesh-node: a dead pod takes its group with it"
    ]


def test_every_rule_is_tried() -> None:
    """No rule is without a case that it must see."""
    tried = {rule for rule, _, _ in CASES} | {cluster_rules.survivors_keep_their_weights}
    assert tried == set(rules.RULES)
