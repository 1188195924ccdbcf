"""One member's stream of a run: a job goes in, states and the result come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2, sampler_pb2, tensor_pb2

# What an executor sends is bounded by what it was sent; this only catches nonsense.
_MAX_ANSWER_BYTES = 4 << 30
# Not the loop's own threads: what clients send is looked through there, and an executor waits here.
_HASHING = ThreadPoolExecutor(1, "hash")


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

    def __init__(self, link: NodeLink) -> None:
        self.link = link
        self._call = link.runs.take()
        self._status = CallStatus(self._call)
        self._begun = False

    async def prepare(self, order: node_pb2.RunJob, share: Share, *, at_once: bool = False) -> None:
        """Bring the job and what the member lacks; returns when it is ready to start.

        `at_once`: or has started, which is for a member that is alone.
        """
        offered = await share.offer(self.link, share.new_to(self.link))
        first = node_pb2.RunRequest(job=order, offered=offered, at_once=at_once)
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
        result: sampler_pb2.SampleResult | None = None
        hashing: asyncio.Future[tuple[WireTensor, ...]] | None = None
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
                parts = await self._tensors(update.tensors, "state.tensors")
                preview = update.preview if update.HasField("preview") else None
                snapshot = Snapshot(update.state, parts) if parts else None
                on_step(StepReport(update.state.step, update.sigma, preview, snapshot))
            elif message.HasField("result"):
                result = message.result
                with telemetry.span("result"):
                    tensors = await self._tensors(result.tensors, "result.tensors")
                # On a thread: hashing the latent must not hold up the job that is next.
                loop = asyncio.get_running_loop()
                hashing = loop.run_in_executor(_HASHING, _hashed, tensors, result.latent)
            else:
                tensors = await hashing if hashing is not None else ()
                return RunEnd(message.done.stopped, result, tensors)

    def close(self) -> None:
        """Give up the stream, if it still lives."""
        self._call.cancel()

    async def _tensors(
        self, specs: Sequence[tensor_pb2.TensorSpec], field: str
    ) -> tuple[WireTensor, ...]:
        receiver = Receiver(
            read_specs(specs, field=field, max_bytes=_MAX_ANSWER_BYTES), field=field
        )
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


def _hashed(tensors: Sequence[WireTensor], latent: int) -> tuple[WireTensor, ...]:
    """The latent with its hash: whoever has it decoded need not send it again."""
    return tuple(t.hashed() if i == latent else t for i, t in enumerate(tensors))


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
