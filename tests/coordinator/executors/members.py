"""Members of an executor on real streams, that do what a test says at each stage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from coordinator.executors.executor import Executor
from coordinator.executors.member import RunEnd, StepReport
from coordinator.executors.stopping import StopRequest
from coordinator.lifecycle.node import NodePhase, NodeView
from coordinator.nodes.link import NodeLink
from ditmesh import shared_memory
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.executor.passing import PassedOn
from ditmesh.jobs import Job
from ditmesh.memory_pool import MemoryPool
from ditmesh.output_rooms import write_output
from ditmesh.rpc_status import abort
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2_grpc, sampler_pb2, tensor_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.fakes import f32, make_job, stop

Act = Callable[["ScriptedNode", Any], Awaitable[None]]


class ScriptedNode(node_pb2_grpc.NodeServiceServicer):
    """Takes a job as a node does, then does what the test says at each stage."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.at: dict[str, Act] = {}
        self.came: list[int] = []
        """Bytes of tensors that came with each job."""
        self.stopped: list[int] = []
        self.steps = 2
        self.started = self.finished = 0
        self.blind = False
        """Whether it cannot read shared memory."""
        self.keeps_all = False
        """Whether it has no memory for its neighbours."""
        self.store: ContentStore | None = None
        """What it has from earlier jobs."""
        self.told_to_pass_on: list[bool] = []
        """With each job."""
        self.told_at_once: list[bool] = []
        """With each job, whether it need not wait for its start."""
        self.begins = False
        """Whether it then does not; older nodes wait all the same."""
        self.offered: list[list[int]] = []
        """The tensors that each job said where to read."""
        self.asked: list[list[int]] = []
        """Those that it asked for, if it did."""
        self.latent = f32(1, 16, 4, 4)
        """What its jobs lead to."""
        self.writes = False
        """Whether it writes that to memory that comes with a job; older nodes do not."""
        self.room: tensor_pb2.CallMemory | None = None
        """The memory that came with the newest job."""
        self.memories: list[tensor_pb2.CallMemory | None] = []
        """The memory that came with each job that it did to its end."""
        self.streams = 0
        self.orders: list[tuple[int, pb.RunJob]] = []
        """How many streams had been opened when each job came, and the job."""

    async def _stage(self, name: str, context: Any) -> None:
        if name in self.at:
            await self.at[name](self, context)

    async def Run(self, requests: Any, context: Any) -> AsyncIterator[pb.RunResponse]:
        """As a node: needed, ready, states and result of two steps, done."""
        self.streams += 1
        first = await anext(requests)
        self.orders.append((self.streams, first.job))
        self.told_to_pass_on.append(first.pass_on)
        self.room = first.memory if first.HasField("memory") else None
        self.told_at_once.append(first.at_once)
        specs = read_specs(first.job.job.tensors, field="t", max_bytes=1 << 30)
        receiver = Receiver(specs, field="t", store=self.store)
        self.offered.append([place.tensor for place in first.offered.tensors])
        if first.offered.tensors and not self.blind:
            receiver.place(_read_shared(first.offered, specs))
        if not (receiver.complete and first.HasField("offered")):
            self.asked.append(list(receiver.missing))
            yield pb.RunResponse(needed=tensor_pb2.TensorsNeeded(tensors=receiver.missing))
        await self._stage("receive", context)
        came = 0
        while not receiver.complete:
            request = await anext(requests)
            if request.HasField("shared") and self.blind:
                needed = tensor_pb2.TensorsNeeded(tensors=receiver.missing)
                yield pb.RunResponse(needed=needed)
            elif request.HasField("shared"):
                receiver.place(_read_shared(request.shared, specs))
            else:
                came += len(request.chunk.data)
                receiver.feed(request.chunk)
        self.came.append(came)
        self.tensors = receiver.tensors()
        await self._stage("came", context)
        with PassedOn(MemoryPool()) as passed_on:
            if first.pass_on and came:
                nowhere = tensor_pb2.SharedTensors()
                places = (
                    nowhere if self.keeps_all else passed_on.place(self.tensors, self.asked[-1])
                )
                yield pb.RunResponse(passed=places)
            await self._stage("prepare", context)
            begun = first.at_once and self.begins
            yield pb.RunResponse(ready=pb.RunReady(begun=begun))
            await self._stage("ready", context)
            start = None if begun else await anext(requests, None)
        if start is None and not begun:
            # Given up before it began.
            return
        assert begun or start.HasField("start")
        self.started += 1
        latent = f32(1, 16, 4, 4)
        for step in range(self.steps if self.leads else 0):
            await self._stage(f"step{step}", context)
            state = job_pb2.JobState(step=step + 1, latent=0)
            update = pb.StateUpdate(tensors=[latent.spec.to_proto()], state=state)
            yield pb.RunResponse(state=update)
            for chunk in chunks([latent], [0]):
                yield pb.RunResponse(chunk=chunk)
        await self._stage("end", context)
        self.memories.append(self.room)
        if self.leads:
            result = sampler_pb2.SampleResult(tensors=[self.latent.spec.to_proto()])
            if self.writes and self.room is not None:
                assert write_output(self.room, self.latent.data)
                self.finished += 1
                yield pb.RunResponse(result=result, written=True, ended=pb.RunDone())
                return
            yield pb.RunResponse(result=result)
            for chunk in chunks([self.latent], [0]):
                yield pb.RunResponse(chunk=chunk)
        self.finished += 1
        yield pb.RunResponse(done=pb.RunDone())


def _read_shared(shared: Any, specs: Any) -> dict[int, bytes | memoryview]:
    places = [(place.offset, specs[place.tensor].nbytes) for place in shared.tensors]
    found = shared_memory.read(shared.pid, shared.fd, shared.token, places)
    return {place.tensor: data for place, data in zip(shared.tensors, found, strict=True)}


def aborting(error: DitmeshError) -> Act:
    async def act(node: ScriptedNode, context: Any) -> None:
        await abort(context, error)

    return act


async def ending(node: ScriptedNode, context: Any) -> None:
    """As a server that is shut down with the stream open."""
    await context.abort(grpc.StatusCode.CANCELLED, "server stopping")


async def hanging(node: ScriptedNode, context: Any) -> None:
    await asyncio.sleep(3600)


@asynccontextmanager
async def executor(
    name: str = "group", size: int = 2
) -> AsyncIterator[tuple[Executor, list[ScriptedNode]]]:
    """A group's members on servers of their own; the local sampler is one."""
    nodes = [ScriptedNode(leads=rank == 0) for rank in range(size if name == "group" else 1)]
    servers, links = [], []
    for node in nodes:
        server = grpc.aio.server()
        node_pb2_grpc.add_NodeServiceServicer_to_server(node, server)
        link = NodeLink(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", silence_s=5.0)
        link.view = NodeView(NodePhase.JOINED, "one", 1, "")
        await server.start()
        await link._channel.channel_ready()
        servers.append(server)
        links.append(link)
    made = Executor(name, links)
    try:
        yield made, nodes
    finally:
        made.close()
        for link in links:
            await link.close()
        await stop(*servers)


async def work(
    made: Executor,
    steps: list[int] | None = None,
    stop: StopRequest | None = None,
    more: Sequence[WireTensor] = (),
    large: bool = True,
    latent_bytes: int = 0,
) -> RunEnd:
    def on_step(report: StepReport) -> None:
        if steps is not None:
            steps.append(report.step)

    spec, tensors = make_job(tensors=[*([f32(700_000)] if large else []), *more])
    job = Job(spec, tuple(tensors), latent_bytes)
    return await made.run(job, deadline_s=None, on_step=on_step, stop=stop or StopRequest())
