"""Sends malformed requests to a real coordinator and watches what becomes of it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ditmesh.errors import BadResult
from ditmesh.rpc_status import from_rpc_error
from tests.e2e.cluster import Cluster
from tests.fuzz.requests import CLUSTER, ENCODE, Request, requests

AT_ONCE = 16
SILENCE_S = 0.05
ENDLESS_S = 0.25
_DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
"""What a malformed request must not be answered with, but for two cases that are no defects."""
_NO_MESSAGE = "google.protobuf.message.DecodeError"
"""In gRPC's own answer to bytes that are no message of a unary call, before our code runs."""


@dataclass
class Report:
    """What happened: answers by status, those that must not be, and the coordinator's memory."""

    sent: int = 0
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    resident_kib: list[int] = field(default_factory=list)
    restarts: int = 0


def fuzz(folder: Path, *, seed: int, count: int, samples: int = 20) -> Report:
    """`count` requests to a coordinator with a local sampler; memory is read `samples` times.

    The coordinator keeps hardly any tensors for later jobs, so that memory that stays is a leak.
    """
    options = ("--reattach", "0.2", "--keep-result", "1", "--max-content-bytes", str(1 << 20))
    with Cluster(folder, ranks=0, options=options) as cluster:
        pid = _server_pid(cluster)
        report = Report()
        started = time.monotonic()
        stream = requests(seed)
        for _ in range(samples):
            batch = list(itertools.islice(stream, count // samples))
            _send_all(cluster.address, batch, report)
            report.resident_kib.append(_resident_kib(pid))
        report.seconds = time.monotonic() - started
        # It answers, it is the same process, and it still does its work.
        cluster.client.cluster()
        report.restarts = int(_server_pid(cluster) != pid)
    return report


def _send_all(address: str, batch: list[Request], report: Report) -> None:
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(AT_ONCE) as pool:
        for request, error in zip(
            batch, pool.map(lambda request: _send(channel, request), batch), strict=True
        ):
            code = error.code() if error is not None else grpc.StatusCode.OK
            report.sent += 1
            report.answers[code.name] += 1
            if error is not None and code in _DEFECTS and not _excused(error):
                report.defects.append(f"{request.method} {code.name}: {error.details()}")


def _excused(error: grpc.RpcError) -> bool:
    """Not a message at all, or numbers so large that a sound job really overflowed."""
    overflowed = isinstance(from_rpc_error(error), BadResult)
    return overflowed or _NO_MESSAGE in (error.details() or "")


def _send(channel: grpc.Channel, request: Request) -> grpc.RpcError | None:
    """The error that a request was answered with, if any. Raw bytes in, raw bytes out."""

    def messages() -> Iterator[bytes]:
        yield from request.messages
        if request.silent:
            time.sleep(SILENCE_S)
        if request.endless is not None:
            yield from itertools.repeat(request.endless)

    timeout = SILENCE_S if request.silent else 5.0 if request.endless is None else ENDLESS_S
    try:
        if request.method == CLUSTER:
            channel.unary_unary(request.method)(request.messages[0], timeout=timeout)
        elif request.method == ENCODE:
            list(channel.unary_stream(request.method)(request.messages[0], timeout=timeout))
        else:
            list(channel.stream_stream(request.method)(messages(), timeout=timeout))
    except grpc.RpcError as error:
        return error
    return None


def _server_pid(cluster: Cluster) -> int:
    """The process that serves: the supervisor's child of that name."""
    assert cluster.coordinator is not None
    supervisor = cluster.coordinator.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in children:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "coordinator":
            return int(pid)
    raise RuntimeError(f"the supervisor {supervisor} has no coordinator among {children}")


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory")
