"""Sends malformed requests to a real coordinator and watches what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from tests.e2e.cluster import Cluster
from tests.fuzz.requests import CLUSTER, ENCODE, Request, requests

AT_ONCE = 16
SILENCE_S = 0.05
ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
"""What a malformed request may be answered with. Never INTERNAL or UNKNOWN: these are defects.

gRPC itself answers UNKNOWN to bytes that are no message of a unary call, before any code of ours
runs.
"""
_NO_MESSAGE = "google.protobuf.message.DecodeError"


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
    """`count` requests to a coordinator with a local sampler; memory is read `samples` times."""
    options = ("--reattach", "0.2", "--keep-result", "1")
    with Cluster(folder, ranks=0, options=options) as cluster:
        pid = _server_pid(cluster)
        report = Report()
        started = time.monotonic()
        stream = requests(seed)
        for _ in range(samples):
            batch = list(itertools.islice(stream, count // samples))
            asyncio.run(_send_all(cluster.address, batch, report))
            report.resident_kib.append(_resident_kib(pid))
        report.seconds = time.monotonic() - started
        # It answers, it is the same process, and it still does its work.
        cluster.client.cluster()
        report.restarts = int(_server_pid(cluster) != pid)
    return report


async def _send_all(address: str, batch: list[Request], report: Report) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    async with grpc.aio.insecure_channel(address) as channel:

        async def one(request: Request) -> None:
            async with slots:
                code, details = await _send(channel, request)
                report.sent += 1
                report.answers[code.name] += 1
                if code not in ALLOWED and _NO_MESSAGE not in details:
                    report.defects.append(f"{request.method} {code.name}: {details}")

        await asyncio.gather(*(one(request) for request in batch))


async def _send(channel: grpc.aio.Channel, request: Request) -> tuple[grpc.StatusCode, str]:
    """The status of the answer. Raw bytes in, raw bytes out."""

    async def messages() -> AsyncIterator[bytes]:
        for message in request.messages:
            yield message
        if request.silent:
            await asyncio.sleep(SILENCE_S)

    timeout = SILENCE_S if request.silent else 5.0
    call: grpc.aio.Call
    if request.method == CLUSTER:
        call = channel.unary_unary(request.method)(request.messages[0], timeout=timeout)
    elif request.method == ENCODE:
        call = channel.unary_stream(request.method)(request.messages[0], timeout=timeout)
    else:
        call = channel.stream_stream(request.method)(messages(), timeout=timeout)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for _ in call:
                pass
    return await call.code(), await call.details() or ""


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
