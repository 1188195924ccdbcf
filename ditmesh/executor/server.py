"""The process around an engine: gRPC server, health, reflection, signals, orderly end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ditmesh import chunk_messages, heap, open_files, telemetry
from ditmesh.executor.engine import Engine
from ditmesh.executor.servicer import NodeServicer, ServicerLimits
from ditmesh.security import TlsFiles, require_safe
from ditmesh.v1 import node_pb2, node_pb2_grpc

log = logging.getLogger(__name__)

STUCK_EXIT_CODE = 70
"""Exit code of a process whose torch thread could not be freed: restart it."""

_SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name
# Every open stream holds a thread: one watch, runs, the one that the coordinator holds open for the
# next run, predict lanes, health checks, and room.
_THREADS = 24
_PROBE_THREADS = 2
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# For answers under way: the job in hand has had its grace by then.
_CLOSE_S = 0.5
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


@dataclass(frozen=True)
class ExecutorConfig:
    """What a computing process is told. `grace_s`: for the work in hand after SIGTERM."""

    listen: str
    telemetry: telemetry.TelemetryConfig
    limits: ServicerLimits = field(default_factory=ServicerLimits)
    grace_s: float = 10.0
    threads: int = 1
    """Threads of torch on the CPU."""
    kept_bytes: int = heap.KEPT_BYTES
    """Memory that it keeps when it is freed, as `heap.keep_freed` does."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    """With an authority, the coordinator needs a certificate."""
    caller: str = ""
    """Name that the caller's certificate must have; empty: any."""
    insecure: bool = False
    """Whether to listen beyond this machine without TLS."""
    health: str = ""
    """host:port at which health alone is served, unencrypted; empty: nowhere."""


def serve(
    config: ExecutorConfig,
    make_engine: Callable[[], tuple[Engine, torch.device]],
    *,
    more: Callable[[grpc.Server, Engine], None] = lambda server, engine: None,
    preload: str | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises OSError for a taken port and
    UnsafeListener for an address that needs protection.

    `more` adds further services to the server. `preload` names a model to load at once; work that
    comes meanwhile waits for it.
    """
    require_safe(
        config.listen, protected=config.tls.authority is not None, insecure=config.insecure
    )
    heap.keep_freed(config.kept_bytes)
    open_files.allow_most()
    torch.set_num_threads(config.threads)
    signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before any thread starts, so that all of them leave the signals to sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    exporting = telemetry.setup(config.telemetry)
    engine, device = make_engine()
    health_servicer = health.HealthServicer()

    def tell(grouped: bool, draining: bool) -> None:
        for name in ("", _SERVICE):
            health_servicer.set(name, _NOT_SERVING if draining else _SERVING)
        health_servicer.set("group", _SERVING if grouped else _NOT_SERVING)

    servicer = NodeServicer(
        engine,
        device=device,
        limits=config.limits,
        caller=config.caller,
        on_change=tell,
        give_up=_give_up,
    )
    server = grpc.server(ThreadPoolExecutor(_THREADS, "grpc"), options=_OPTIONS)
    node_pb2_grpc.add_NodeServiceServicer_to_server(servicer, chunk_messages.server(server))
    more(server, engine)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    bind(server, config.listen, config.tls.server_credentials())
    probes = grpc.server(ThreadPoolExecutor(_PROBE_THREADS, "probes"))
    if config.health:
        # Probes carry no certificate: health alone, on a port of its own.
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, probes)
        bind(probes, config.health, None)
    tell(grouped=False, draining=False)
    server.start()
    probes.start()
    if preload is not None:
        servicer.begin_loading(preload)
    log.info("listening on %s, %s", config.listen, device)
    signal.sigwait(signals)
    servicer.drain(config.grace_s)
    server.stop(_CLOSE_S).wait()
    probes.stop(None)
    servicer.close()
    exporting.shutdown()
    return 0


def bind(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> None:
    """Listen at host:port or unix:path. Raises OSError when that cannot be had."""
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port and not address.startswith("unix:"):
        raise OSError(f"cannot listen on {address}: is the port taken?")


def _give_up(why: str) -> None:
    log.critical("%s; leaving, to be restarted", why)
    logging.shutdown()
    os._exit(STUCK_EXIT_CODE)
