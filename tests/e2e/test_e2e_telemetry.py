"""Telemetry must never cost a job anything."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, free_ports
from tests.e2e.clusters import Clusters
from tests.e2e.jobs import executors, golden_difference, golden_job
from tests.sampling.golden_cases import load_golden

pytestmark = pytest.mark.timeout(300)

SHUTDOWN_S = 30.0
"""Far more than it takes, far less than exporters wait if one lets them."""


def test_collectors_that_do_not_answer(tmp_path: Path, clusters: Clusters) -> None:
    """The nodes' collector refuses connections, the coordinator's takes them and says nothing:
    jobs run, the trace file is whole, and all processes end soon.
    """
    clusters.stop()
    case = load_golden("flux_dpmpp_2m_karras_n20_cfg1_d1_b1_16x16")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster = Cluster(
            tmp_path,
            ranks=2,
            exporters=(
                *("--exporter", "otlp", "--exporter", "file"),
                *("--otlp-endpoint", f"127.0.0.1:{free_ports(1)}"),
            ),
            options=("--otlp-endpoint", f"127.0.0.1:{silent.getsockname()[1]}"),
        )
        with cluster:
            for _ in range(3):
                result = cluster.client.sample(**golden_job(case))
                assert executors(result) == [("group", 0, case.steps)]
                assert golden_difference(case, result) <= case.tolerance
            stopping = time.monotonic()
        assert time.monotonic() - stopping < SHUTDOWN_S
    services = {span["service"] for span in cluster.trace(result.summary.trace_id)}
    assert services == {"coordinator", "gpu_node"}
