"""Puts the coordinator together and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.addresses import expand
from coordinator.cluster.cluster import Cluster
from coordinator.cluster.group import GroupManager
from coordinator.cluster.meshes import MeshPlan
from coordinator.cluster.rendezvous import Rendezvous
from coordinator.config import CoordinatorConfig
from coordinator.jobs.job_log import NoJournal
from coordinator.jobs.journal import Journal
from coordinator.jobs.runner import Runner
from coordinator.jobs.scheduler import Scheduler
from coordinator.jobs.table import JobTable
from coordinator.nodes.link import NodeLink
from coordinator.services.cluster import ClusterServicer
from coordinator.services.health import keep_current
from coordinator.services.identity import Identities
from coordinator.services.pipeline import PipelineServicer
from coordinator.services.predict import PredictCalls
from coordinator.services.sampler import SamplerServicer
from ditmesh import chunk_messages, heap, open_files, telemetry
from ditmesh.content import ContentStore
from ditmesh.errors import InvalidMesh
from ditmesh.security import Tokens, UnsafeListener, require_safe
from ditmesh.supervisor import MISCONFIGURED
from ditmesh.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    sampler_pb2,
    sampler_pb2_grpc,
)

log = logging.getLogger(__name__)

# Some pieces of tensors and messages on their way; what is under way at once is limited elsewhere.
_KEPT_BYTES = 64 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
_SERVICES = (
    sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name,
    pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].full_name,
    cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
)


def run(config: CoordinatorConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, MISCONFIGURED when it cannot run so."""
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s coordinator %(levelname)s %(message)s"
    )
    heap.keep_freed(_KEPT_BYTES)
    open_files.allow_most()
    exporting = telemetry.setup(config.telemetry)
    try:
        asyncio.run(Coordinator(config, exporting.metrics).serve())
    except (InvalidMesh, UnsafeListener) as error:
        log.critical("%s", error)
        return MISCONFIGURED
    finally:
        exporting.shutdown()
    return 0


class Coordinator:
    """Every part, wired once."""

    def __init__(self, config: CoordinatorConfig, metrics: telemetry.Metrics) -> None:
        """Raises OSError for an address or file that cannot be had, UnsafeListener for an address
        that needs protection, and InvalidMesh for impossible degrees.
        """
        self._config = config
        addresses = expand(config.nodes)
        plan = MeshPlan(len(addresses), config.mesh, config.cfg_split, config.min_ranks)
        self._rendezvous = Rendezvous(config.rendezvous_host, config.rendezvous_port)
        protected = config.tls.authority is not None or config.tokens is not None
        require_safe(config.listen, protected=protected, insecure=config.insecure)
        self._tokens = Tokens.reloading(config.tokens) if config.tokens is not None else None
        self._journal = None
        if config.journal is not None:
            self._journal = Journal(config.journal, max_bytes=config.limits.journal_bytes)
        self._group_arguments = (addresses, plan)
        self._metrics = metrics

    async def serve(self) -> None:
        """Run until a signal, then drain."""
        config, limits, timing = self._config, self._config.limits, self._config.timing
        addresses, plan = self._group_arguments
        group = GroupManager(
            addresses,
            plan,
            rendezvous=self._rendezvous,
            timing=timing,
            preload=config.preload,
            credentials=config.node_tls.channel_credentials(),
        )
        local = None
        if config.local_address:
            local = NodeLink(
                config.local_address,
                silence_s=timing.silence,
                on_change=lambda link, change: cluster.local_changed(),
                ours=True,
            )
        cluster = Cluster(group, local, settle_s=timing.settle)
        scheduler = Scheduler(
            cluster,
            regroup_wait_s=timing.regroup_wait,
            local_queue=limits.local_queued_jobs,
        )
        journal = self._journal or NoJournal()
        runner = Runner(scheduler, cluster, self._metrics, journal)
        jobs = JobTable(runner, cluster, limits, timing, journal)
        store = ContentStore(limits.content_bytes)
        calls = PredictCalls(scheduler, cluster, self._metrics, store, limits, jobs.reserved)
        self._metrics.observe(
            {
                "ditmesh.queue.length": lambda: scheduler.waiting,
                "ditmesh.queue.limit": lambda: limits.queued_jobs,
                "ditmesh.bytes_in_flight": lambda: jobs.bytes_in_flight,
                "ditmesh.bytes_in_flight.limit": lambda: limits.in_flight_bytes,
                "ditmesh.group.ranks": cluster.group_ranks,
                "ditmesh.group.ranks_expected": lambda: plan.expected,
                "ditmesh.local.available": lambda: int(local is not None and local.up),
            }
        )
        self._metrics.observe_nodes(cluster.nodes_by_state)

        identities = Identities(self._tokens)
        server = grpc.aio.server(options=_OPTIONS)
        sampler_pb2_grpc.add_SamplerServiceServicer_to_server(
            SamplerServicer(jobs, runner, calls, store, limits, identities),
            chunk_messages.server(server),
        )
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(
            ClusterServicer(cluster, scheduler, runner, jobs, limits.in_flight_bytes, identities),
            server,
        )
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(
            PipelineServicer(cluster, store, limits, identities), chunk_messages.server(server)
        )
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        _bind(server, config.listen, config.tls.server_credentials())
        probes = grpc.aio.server(options=_OPTIONS)
        if config.health:
            # Probes carry no certificate: health alone, on a port of its own.
            health_pb2_grpc.add_HealthServicer_to_server(health_servicer, probes)
            _bind(probes, config.health, None)
        stopping = _stop_event()
        following = asyncio.create_task(local.watch()) if local is not None else None
        group.start()
        for recovered in self._journal.recover() if self._journal is not None else ():
            jobs.restore(recovered)
        await server.start()
        await probes.start()
        telling = asyncio.create_task(keep_current(health_servicer, cluster, jobs, _SERVICES))
        log.info("listening on %s, rendezvous on %s", config.listen, self._rendezvous.address)

        await stopping.wait()
        log.info("draining")
        jobs.drain()
        await runner.drain(timing.grace)
        telling.cancel()
        await server.stop(_CLOSE_S)
        await probes.stop(None)
        await group.close()
        if self._journal is not None:
            self._journal.close()
        if local is not None and following is not None:
            following.cancel()
            await local.close()


_CLOSE_S = 2.0


def _bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> None:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(f"cannot listen on {address}: is the port taken?")


def _stop_event() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping
