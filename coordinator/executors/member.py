"""One member's stream of a run: a job goes in, states and the result come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import grpc.aio

from coordinator.executors.sharing import Share
from coordinator.nodes import awake
from coordinator.nodes.link import NodeLink
from ditmesh import telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.chunk_messages import chunk_messages
from ditmesh.errors import InternalError, Unavailable
from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import Snapshot
from ditmesh.output_rooms import OutputRooms
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2, sampler_pb2, tensor_pb2

# What an executor sends is bounded by what it was sent; this only catches nonsense.
_MAX_ANSWER_BYTES = 4 << 30
# One for all: the next result is of the size that the last one had.
_ROOMS = OutputRooms()


@dataclass(frozen=True)
class StepReport:
    """A step that an executor finished; with the state after it, if that came."""

    step: int
    sigma: float
    preview: tensor_pb2.InlineTensor | None
    snapshot: Snapshot | None


@dataclass(frozen=True)
class RunEnd:
    """How a run ended. `result` and its tensors are set on the leader, unless it was stopped."""

    stopped: node_pb2.StopReason
    result: sampler_pb2.SampleResult | None
    tensors: tuple[WireTensor, ...]


class MemberRun:
    """Drives `NodeService.Run` on one member. gRPC errors pass through."""

    def __init__(self, link: NodeLink, *, latent_bytes: int = 0) -> None:
        """`latent_bytes`: of the result, if this member is to send one."""
        self.link = link
        self._room = _ROOMS.take(latent_bytes) if link.is_here else None
        self._call = link.runs.take()
        self._status = CallStatus(self._call)
        self._begun = False

    async def prepare(self, order: node_pb2.RunJob, share: Share, *, at_once: bool = False) -> None:
        """Bring the job and what the member lacks; returns when it is ready to start.

        `at_once`: or has started, which is for a member that is alone.
        """
        new = share.new_to(self.link)
        # If nothing is new, an offer of nothing spares it to say that it lacks nothing.
        offered = await share.offer(self.link, new) if new else tensor_pb2.SharedTensors()
        room = self._room.message if self._room is not None else None
        first = node_pb2.RunRequest(job=order, offered=offered, at_once=at_once, memory=room)
        try:
            await self._give(first, share)
        finally:
            share.neighbours.passed(self.link, None)
        share.given_to(self.link)

    async def _give(self, first: node_pb2.RunRequest, share: Share) -> None:
        first.pass_on = share.neighbours.passes_on(self.link)
        await self._write(first)
        answer = await self._read("needed", "ready")
        if answer.HasField("needed"):
            shared = await share.offer(self.link, answer.needed.tensors)
            if shared is not None:
                await self._write(node_pb2.RunRequest(shared=shared))
                answer = await self._read("needed", "ready")
        if answer.HasField("needed"):
            needed = answer.needed.tensors
            if not needed:
                # Its model may have to be loaded yet, and its neighbours' as well.
                share.neighbours.passed(self.link, None)
            for message in chunk_messages(node_pb2.RunRequest, share.tensors, needed):
                await self._write(message)
            answer = await self._read("passed", "ready")
        if answer.HasField("passed"):
            share.neighbours.passed(self.link, answer.passed)
            answer = await self._read("ready")
        self._begun = answer.ready.begun

    async def start(self) -> None:
        """Begin, if it has not; every member of the mesh is ready."""
        if self._begun:
            # It may have ended by now, and what is written to a stream that is over costs what it
            # has brought.
            return
        await self._write(node_pb2.RunRequest(start=node_pb2.StartRun()))

    async def stop(self, reason: node_pb2.StopReason) -> None:
        """End the run at the next step."""
        await self._write(node_pb2.RunRequest(stop=node_pb2.StopRun(reason=reason)))

    async def follow(
        self, on_step: Callable[[StepReport], None], limit_s: Callable[[], float | None]
    ) -> RunEnd:
        """Read until the member is done.

        `limit_s` tells how long the next step may take, None for no limit. Raises Unavailable
        when it takes longer.
        """
        if self._room is not None:
            self._room.expect()
        result: sampler_pb2.SampleResult | None = None
        tensors: tuple[WireTensor, ...] = ()
        while True:
            patience = limit_s()
            try:
                async with awake.Timeout(patience):
                    message = await self._read("state", "result", "done")
            except TimeoutError:
                self.link.hung(f"has done no step in {patience:.0f} s")
                raise Unavailable(f"no step was done in {patience:.0f} s") from None
            if message.HasField("state"):
                update = message.state
                parts = await self._tensors(self._receiver(update.tensors, "state.tensors"))
                preview = update.preview if update.HasField("preview") else None
                snapshot = Snapshot(update.state, parts) if parts else None
                on_step(StepReport(update.state.step, update.sigma, preview, snapshot))
            elif message.HasField("result"):
                result = message.result
                with telemetry.span("result"):
                    receiver = self._receiver(result.tensors, "result.tensors")
                    if message.written:
                        receiver.place({result.latent: self._written()})
                    tensors = await self._tensors(receiver)
                if message.HasField("ended"):
                    return RunEnd(message.ended.stopped, result, tensors)
            else:
                return RunEnd(message.done.stopped, result, tensors)

    def close(self) -> None:
        """Give up the stream, if it still lives."""
        self._call.cancel()
        room, self._room = self._room, None
        if room is not None:
            # The member may yet write to it.
            room.close()

    def _written(self) -> memoryview:
        room, self._room = self._room, None
        if room is None:
            raise InternalError("a result was written to memory that is not there")
        latent = room.read().toreadonly()
        _ROOMS.give_back(room)
        return latent

    @staticmethod
    def _receiver(specs: Sequence[tensor_pb2.TensorSpec], field: str) -> Receiver:
        known = read_specs(specs, field=field, max_bytes=_MAX_ANSWER_BYTES)
        return Receiver(known, field=field)

    async def _tensors(self, receiver: Receiver) -> tuple[WireTensor, ...]:
        while not receiver.complete:
            receiver.feed((await self._read("chunk")).chunk)
        return receiver.tensors()

    async def _write(self, message: node_pb2.RunRequest) -> None:
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:
            # The stream has ended: reading tells why.
            await self._read()
        except grpc.aio.AioRpcError as failure:
            raise await self._status.of(failure) from failure

    async def _read(self, *expected: str) -> node_pb2.RunResponse:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise await self._status.of(failure) from failure
        got = "the end of the stream"
        if message is not grpc.aio.EOF:
            # A chunk is no object of protobuf's: see `chunk_messages`.
            answer = cast(node_pb2.RunResponse, message)
            got = answer.WhichOneof("message") or "nothing"
            if got in expected:
                return answer
        wanted = " or ".join(expected) or "waiting for more"
        raise InternalError(f"{self.link.address} sent {got} instead of {wanted}")


class PreparedRun:
    """A job on every member of an executor, inputs and model in place, that waits for its start."""

    def __init__(self, runs: Sequence[MemberRun]) -> None:
        self.runs = tuple(runs)

    def close(self) -> None:
        """Give it up, started or not."""
        for run in self.runs:
            run.close()


def give_up(preparing: asyncio.Task[PreparedRun]) -> None:
    """End a preparation, or what it has led to. What it failed with is no longer of interest."""
    preparing.cancel()
    preparing.add_done_callback(_close_prepared)


def _close_prepared(preparing: asyncio.Task[PreparedRun]) -> None:
    if not preparing.cancelled() and preparing.exception() is None:
        preparing.result().close()
