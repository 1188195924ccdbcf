"""The health of all ranks of a machine, on one port: what a probe asks a pod.

`live`: some rank has answered within a minute, or the pod is young; one dead rank must not cost
the others their weights. `ready` and the empty name: every rank answers and none drains. `group`:
every rank is in a group. No torch here: this answers while the ranks still import theirs.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)

YOUNG_S = 600.0
"""How long the first rank may take to answer: a first start reads weights from a cold disk."""
SILENT_S = 60.0
"""How long no rank may answer before the pod counts as dead."""
_INTERVAL_S = 1.0
_ASK_TIMEOUT_S = 2.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class HealthConfig:
    """Where to listen, and the health addresses of the ranks."""

    listen: str
    ranks: tuple[str, ...]


def run(config: HealthConfig) -> int:
    """Ask the ranks every second and answer for them until SIGTERM; returns the exit code."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(4, "health"), options=(("grpc.so_reuseport", 0),))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if not server.add_insecure_port(config.listen):
        raise OSError(f"cannot listen on {config.listen}: is the port taken?")
    server.start()
    stubs = [health_pb2_grpc.HealthStub(grpc.insecure_channel(rank)) for rank in config.ranks]
    started = answered = time.monotonic()
    while signal.sigtimedwait(signals, _INTERVAL_S) is None:
        told = ask(stubs)
        now = time.monotonic()
        if any(ready is not None for ready, _ in told):
            answered = now
        live = now - answered < SILENT_S or now - started < YOUNG_S
        ready = all(ready for ready, _ in told)
        grouped = all(grouped for _, grouped in told)
        for name, well in (("live", live), ("ready", ready), ("", ready), ("group", grouped)):
            servicer.set(name, _SERVING if well else _NOT_SERVING)
    server.stop(None)
    return 0


def ask(stubs: Sequence[health_pb2_grpc.HealthStub]) -> list[tuple[bool | None, bool]]:
    """For each rank: whether it is ready (None: it does not answer), whether it is in a group."""
    with ThreadPoolExecutor(len(stubs)) as pool:
        return list(pool.map(_ask_one, stubs))


def _ask_one(stub: health_pb2_grpc.HealthStub) -> tuple[bool | None, bool]:
    check: Callable[..., health_pb2.HealthCheckResponse] = stub.Check  # type: ignore[attr-defined]
    try:
        ready, grouped = (
            check(health_pb2.HealthCheckRequest(service=name), timeout=_ASK_TIMEOUT_S).status
            == _SERVING
            for name in ("", "group")
        )
    except grpc.RpcError:
        return None, False
    return ready, grouped
