"""The pods of the CPU demonstration, run as processes: they start, serve, upgrade and end.

One story, told in order: each test goes on where the last one stopped.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.check import manifests, monitoring
from deploy.check.manifests import COORDINATOR, NODE
from ditmesh.client import Client, Progress, SampleResult
from tests.deploy.pods import Pod, wait_for
from tests.e2e.cluster import MODEL, model_folder
from tests.e2e.jobs import executors, random_job
from tests.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = 2
STEPS = 60


class Demo:
    """The coordinator's pod, the node's pod, and a client."""

    def __init__(self, folder: Path) -> None:
        found = manifests.build(manifests.OVERLAYS / "cpu-demo")
        coordinator_port, node_port = free_ports(300), free_ports(300)
        while abs(coordinator_port - node_port) < 300:
            node_port = free_ports(300)
        first = node_port + 50_061 - 50_050
        mounts = {
            "/models": model_folder(folder / "models", MODEL),
            "/var/lib/ditmesh": folder,
        }
        config = {
            "RANKS": str(RANKS),
            "NODES": f"127.0.0.1:{first}-{first + RANKS - 1}",
            "PRELOAD": MODEL,
            # Starting may take long where many tests share two cores.
            "REGROUP_WAIT": "300",
        }
        self.coordinator = Pod(
            found,
            COORDINATOR,
            first_port=coordinator_port,
            mounts=mounts,
            config=config,
            log=folder / "coordinator.log",
        )
        self.node = Pod(
            found,
            NODE,
            first_port=node_port,
            mounts=mounts,
            config=config,
            log=folder / "node.log",
        )
        self.client = Client(self.coordinator.address(50_050))

    def wait_for(self, pod: Pod, service: str, wanted: bool = True) -> None:
        """Wait until a pod's health says so."""
        wait_for(
            lambda: pod.healthy(service) is wanted,
            f"{service} to be {wanted}",
            self.coordinator,
            self.node,
        )

    def sample(self, seed: int, **changes: Any) -> SampleResult:
        """One job."""
        return self.client.sample(**random_job(seed, steps=STEPS, **changes))

    def sample_while(self, pod: Pod, seed: int) -> SampleResult:
        """A job in whose third step the pod is told to end."""
        told = threading.Event()

        def on_progress(progress: Progress) -> None:
            if progress.step >= 3 and not told.is_set():
                told.set()
                pod.terminate()

        result = self.sample(seed, on_progress=on_progress)
        assert told.is_set()
        return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Both pods, started."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        demo.node.start()
        demo.coordinator.start()
        yield demo
    finally:
        demo.client.close()
        demo.coordinator.kill()
        demo.node.kill()


def test_probes_succeed_once_pods_have_started(demo: Demo) -> None:
    """All three probes of either pod succeed, and the coordinator has its whole group."""
    for pod in (demo.coordinator, demo.node):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_for(lambda pod=pod, probe=probe: pod.probe(probe), probe, pod)  # type: ignore[misc]
    demo.wait_for(demo.coordinator, "group")
    demo.wait_for(demo.node, "group")


def test_a_job_runs_on_the_group(demo: Demo) -> None:
    """The pods find one another by what the manifests tell them."""
    assert executors(demo.sample(1)) == [("group", 0, STEPS)]


def test_the_scrape_holds_what_alerts_ask_for(demo: Demo) -> None:
    """The gauges that the checks take for exported are there, from the first scrape on."""
    url = f"http://{demo.coordinator.address(50_199)}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        scraped = set(re.findall(r"^(\w+)", answer.read().decode(), re.MULTILINE))
    gauges = {name for name, labels in monitoring.exported().series.items() if not labels}
    assert gauges
    assert gauges | {"ditmesh_nodes", "ditmesh_jobs_total"} <= scraped


def test_a_node_that_is_replaced_finishes_its_job(demo: Demo) -> None:
    """SIGTERM in the middle of a job: every step runs on the group, and then the pod ends."""
    result = demo.sample_while(demo.node, 2)
    assert executors(result) == [("group", 0, STEPS)]
    assert demo.node.wait() == 0


def test_a_coordinator_without_its_group_says_so(demo: Demo) -> None:
    """It is ready, for its local sampler can take jobs; but `group` is not there."""
    demo.wait_for(demo.coordinator, "group", False)
    assert demo.coordinator.probe("readinessProbe")
    assert demo.coordinator.probe("livenessProbe")


def test_the_node_that_comes_back_is_found(demo: Demo) -> None:
    """A job that arrives while there is no node waits for it, and runs on the group."""
    results: list[SampleResult] = []
    waiting = threading.Thread(target=lambda: results.append(demo.sample(3)))
    waiting.start()
    demo.node.start()
    waiting.join(150)
    assert [executors(result) for result in results] == [[("group", 0, STEPS)]]
    demo.wait_for(demo.node, "ready")


def test_a_coordinator_that_is_replaced_finishes_its_jobs(demo: Demo) -> None:
    """SIGTERM in the middle of a job: the client gets its picture, then the pod ends."""
    result = demo.sample_while(demo.coordinator, 4)
    assert executors(result) == [("group", 0, STEPS)]
    assert demo.coordinator.wait() == 0
    # The next one takes the nodes over as they are.
    demo.coordinator.start()
    demo.wait_for(demo.coordinator, "group")
    assert executors(demo.sample(5)) == [("group", 0, STEPS)]
