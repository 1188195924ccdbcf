"""`ClusterService`: the cluster as it is at this moment."""

from __future__ import annotations

from typing import Any

import grpc.aio

from coordinator.cluster.cluster import Cluster
from coordinator.jobs.runner import Runner
from coordinator.jobs.scheduler import Scheduler
from coordinator.jobs.table import JobTable
from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.node import NodePhase
from coordinator.nodes.link import NodeLink
from coordinator.services.identity import Identities
from coordinator.services.streams import answering
from ditmesh import __version__
from ditmesh.v1 import cluster_pb2 as pb
from ditmesh.v1 import cluster_pb2_grpc

_NODE_STATES = {
    NodePhase.DOWN: pb.NODE_STATE_DOWN,
    NodePhase.IDLE: pb.NODE_STATE_IDLE,
    NodePhase.JOINED: pb.NODE_STATE_JOINED,
    NodePhase.DRAINING: pb.NODE_STATE_DRAINING,
}
_GROUP_STATES = {
    GroupPhase.NONE: pb.GROUP_STATE_NONE,
    GroupPhase.FORMING: pb.GROUP_STATE_FORMING,
    GroupPhase.READY: pb.GROUP_STATE_READY,
}


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Reads what the others hold; changes nothing."""

    def __init__(
        self,
        cluster: Cluster,
        scheduler: Scheduler,
        runner: Runner,
        jobs: JobTable,
        bytes_limit: int,
        identities: Identities,
    ) -> None:
        self._identities = identities
        self._cluster = cluster
        self._scheduler = scheduler
        self._runner = runner
        self._jobs = jobs
        self._bytes_limit = bytes_limit

    async def GetCluster(
        self,
        request: pb.GetClusterRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.GetClusterResponse:
        """The cluster now."""
        async with answering(context, "ditmesh.v1.ClusterService/GetCluster"):
            self._identities.of(context)
            return self._cluster_now()
        raise AssertionError("an aborted request returned")

    def _cluster_now(self) -> pb.GetClusterResponse:
        group = self._cluster.group
        ranks = {}
        meshes = []
        if group.formed is not None:
            ranks = {link.address: rank for rank, link in enumerate(group.formed.members)}
            meshes = [str(mesh) for mesh in group.formed.meshes]
        left_out = group.left_out()
        return pb.GetClusterResponse(
            version=__version__,
            nodes=[
                _node(link, ranks.get(link.address), left_out.get(link.address, ""))
                for link in group.links.values()
            ],
            group=pb.Group(
                state=_GROUP_STATES[group.phase],
                epoch=group.epoch,
                world_size=len(ranks),
                meshes=meshes,
                problem=group.problem,
            ),
            queue=pb.Queue(
                waiting=self._scheduler.waiting,
                running=self._runner.running,
                bytes_in_flight=self._jobs.bytes_in_flight,
                bytes_limit=self._bytes_limit,
            ),
            models=self._models(),
            local=self._local(),
        )

    def _models(self) -> list[pb.Model]:
        models = []
        formed = self._cluster.group.formed
        for _, model in sorted(self._cluster.models().items()):
            told = pb.Model()
            told.CopyFrom(model)
            told.on_group = formed is not None and formed.has_model(model)
            told.on_local = self._cluster.local_has(model)
            models.append(told)
        return models

    def _local(self) -> pb.LocalSampler:
        link = self._cluster.local
        if link is None:
            return pb.LocalSampler(problem="not configured")
        device = link.report.device if link.report else ""
        return pb.LocalSampler(available=link.up, device=device, problem=link.view.problem)


def _node(link: NodeLink, rank: int | None, left_out: str) -> pb.Node:
    node = pb.Node(
        address=link.address,
        state=_NODE_STATES[link.view.phase],
        problem=link.view.problem or left_out,
    )
    if rank is not None:
        node.rank = rank
    if link.report is not None:
        node.device = link.report.device
        node.memory_total_bytes = link.report.memory_total_bytes
        node.memory_used_bytes = link.report.memory_used_bytes
        node.pid = link.report.pid
        node.loaded_models.extend(m.model.name for m in link.report.models if m.loaded)
    return node
