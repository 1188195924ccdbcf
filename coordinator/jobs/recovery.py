"""After a loss: the newest state that any survivor holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

import grpc.aio

from coordinator.jobs.record import JobRecord
from coordinator.nodes.link import NodeLink
from ditmesh.errors import DitmeshError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import Snapshot
from ditmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

_FETCH_S = 1.0
_MAX_STATE_BYTES = 4 << 30


async def catch_up(record: JobRecord, members: Sequence[NodeLink]) -> None:
    """Have the job go on from a newer state than the coordinator's, if there is one among the
    members that still answer.
    """
    job_id = record.admitted.spec.job_id
    asking = [_fetch(link, job_id, record.step) for link in members if link.up]
    if not asking:
        return
    tasks = [asyncio.create_task(coroutine) for coroutine in asking]
    done, pending = await asyncio.wait(tasks, timeout=_FETCH_S)
    for task in pending:
        task.cancel()
    found = [snapshot for task in done if (snapshot := task.result()) is not None]
    if found and not record.phase.ended:
        record.catch_up(max(found, key=lambda snapshot: snapshot.step))


async def _fetch(link: NodeLink, job_id: str, after_step: int) -> Snapshot | None:
    call = link.stub.FetchState(pb.FetchStateRequest(job_id=job_id))
    try:
        first = await _next(call)
        if first is None or first.state.state.step <= after_step:
            return None
        specs = read_specs(first.state.tensors, field="state", max_bytes=_MAX_STATE_BYTES)
        receiver = Receiver(specs, field="state")
        while not receiver.complete:
            message = await _next(call)
            if message is None:
                return None
            receiver.feed(message.chunk)
        return Snapshot(first.state.state, receiver.tensors())
    except (grpc.aio.AioRpcError, DitmeshError) as error:
        log.debug("%s has no state of job %s: %s", link.address, job_id, error)
        return None
    finally:
        call.cancel()


async def _next(call: Any) -> pb.FetchStateResponse | None:
    """The next message, None at the end. A chunk is no object of protobuf's."""
    message = await call.read()
    return None if message is grpc.aio.EOF else cast(pb.FetchStateResponse, message)
