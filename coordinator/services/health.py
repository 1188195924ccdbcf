"""What the coordinator's health says, under the names that probes ask for.

`live`: the process answers; also while it drains. `ready` and the empty name: it takes new jobs
and something can run them. `group`: a group of all expected ranks is formed; a coordinator that
has only its local sampler, or a smaller group, is ready but not that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from grpc_health.v1 import health, health_pb2

from coordinator.cluster.cluster import Cluster
from coordinator.jobs.table import JobTable

_INTERVAL_S = 0.5
_STATUS = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


def healthy(cluster: Cluster, *, draining: bool) -> dict[str, bool]:
    """Which names are healthy now."""
    formed = cluster.group.formed
    local = cluster.local is not None and cluster.local.up
    ready = not draining and (formed is not None or local)
    whole = formed is not None and len(formed.members) == len(cluster.group.links)
    return {"live": True, "ready": ready, "": ready, "group": whole and not draining}


async def keep_current(
    servicer: health.aio.HealthServicer, cluster: Cluster, jobs: JobTable, services: Sequence[str]
) -> None:
    """Set every status now and for as long as the task runs; `services` are as ready as "" is."""
    while True:
        names = healthy(cluster, draining=jobs.draining)
        for name in services:
            names[name] = names["ready"]
        for name, well in names.items():
            await servicer.set(name, _STATUS[well])
        await asyncio.sleep(_INTERVAL_S)
