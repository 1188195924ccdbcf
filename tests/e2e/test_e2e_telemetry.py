"""Telemetry must never cost a job anything."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.clusters import Clusters
from tests.e2e.jobs import executors, golden_difference, golden_job
from tests.sampling.golden_cases import load_golden

pytestmark = pytest.mark.timeout(300)

SHUTDOWN_S = 30.0
"""Far more than it takes, far less than exporters wait if one lets them."""


def test_collectors_that_do_not_answer(deaf: Cluster, clusters: Clusters) -> None:
    """The nodes' collector refuses connections, the coordinator's takes them and says nothing:
    jobs run, the trace file is whole, and all processes end soon.
    """
    case = load_golden("flux_dpmpp_2m_karras_n20_cfg1_d1_b1_16x16")
    for _ in range(3):
        result = deaf.client.sample(**golden_job(case))
        assert executors(result) == [("group", 0, case.steps)]
        assert golden_difference(case, result) <= case.tolerance
    stopping = time.monotonic()
    clusters.stop()
    assert time.monotonic() - stopping < SHUTDOWN_S
    services = {span["service"] for span in deaf.trace(result.summary.trace_id)}
    assert services == {"coordinator", "gpu_node"}
