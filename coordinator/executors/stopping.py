"""Ending a run from outside, before it has begun or within a step."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from coordinator.executors.member import MemberRun
from ditmesh.errors import DitmeshError
from ditmesh.v1 import node_pb2


@dataclass
class StopRequest:
    """Ends a run from outside: set once, with the reason that the members are told."""

    reason: node_pb2.StopReason = node_pb2.STOP_REASON_UNSPECIFIED
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, reason: node_pb2.StopReason) -> None:
        """Ask for the end; the first reason counts."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked for the end."""
        return self._event.is_set()

    async def wait(self) -> node_pb2.StopReason:
        """The reason, once there is one."""
        await self._event.wait()
        return self.reason


async def forward_stop(stop: StopRequest, leader: MemberRun) -> None:
    """Tell the leader, once somebody asks for the end."""
    with contextlib.suppress(DitmeshError, grpc.aio.AioRpcError):
        # A leader that can no longer be told has ended, or is about to be found lost.
        await leader.stop(await stop.wait())


async def done_before(stop: StopRequest, task: asyncio.Task[Any]) -> bool:
    """Wait until the task is done; False when `stop` comes before."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        stopping.cancel()
