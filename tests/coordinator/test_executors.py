"""An executor of several members over real streams: what each end of a stream means."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator.executors import Executor
from coordinator.lifecycle.node import NodePhase, NodeView, Report
from coordinator.lifecycle.patience import Patience
from coordinator.member import RunEnd, StepReport
from coordinator.nodes import NodeLink
from coordinator.stopping import StopRequest
from ditmesh import errors, shared_memory
from ditmesh.errors import DitmeshError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import Job
from ditmesh.rpc_status import abort
from ditmesh.shared_memory import Memory
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2_grpc, sampler_pb2, tensor_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.fakes import PATIENCE_S, f32, make_job, run, stop, until

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
        self.offered: list[list[int]] = []
        """The tensors that each job said where to read."""
        self.asked: list[list[int]] = []
        """Those that it asked for, if it did."""

    async def _stage(self, name: str, context: Any) -> None:
        if name in self.at:
            await self.at[name](self, context)

    async def Run(self, requests: Any, context: Any) -> AsyncIterator[pb.RunResponse]:
        """As a node: needed, ready, states and result of two steps, done."""
        first = await anext(requests)
        specs = read_specs(first.job.job.tensors, field="t", max_bytes=1 << 30)
        receiver = Receiver(specs, field="t")
        self.offered.append([place.tensor for place in first.offered.tensors])
        if first.HasField("offered") and not self.blind:
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
        await self._stage("prepare", context)
        yield pb.RunResponse(ready=pb.RunReady())
        await self._stage("ready", context)
        start = await anext(requests, None)
        if start is None:
            # Given up before it began.
            return
        assert start.HasField("start")
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
        if self.leads:
            result = sampler_pb2.SampleResult(tensors=[latent.spec.to_proto()])
            yield pb.RunResponse(result=result)
            for chunk in chunks([latent], [0]):
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
async def executor(name: str = "group") -> AsyncIterator[tuple[Executor, list[ScriptedNode]]]:
    """Two members on servers of their own; the local sampler is one."""
    nodes = [ScriptedNode(leads=rank == 0) for rank in range(2 if name == "group" else 1)]
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
) -> RunEnd:
    def on_step(report: StepReport) -> None:
        if steps is not None:
            steps.append(report.step)

    spec, tensors = make_job(tensors=[f32(700_000), *more])
    job = Job(spec, tuple(tensors))
    return await made.run(job, deadline_s=None, on_step=on_step, stop=stop or StopRequest())


def test_members_get_each_byte_once_and_the_leader_answers() -> None:
    """Every state in order, then the result; all members start, none is sent a tensor twice."""

    async def test() -> None:
        async with executor() as (made, nodes):
            steps: list[int] = []
            end = await work(made, steps)
            assert steps == [1, 2]
            assert end.result is not None
            assert len(end.tensors) == 1
            nbytes = 4 * (128 + 32 + 700_000)
            assert [node.came for node in nodes] == [[nbytes], [nbytes]]
            # The leader's answer does not wait for the other.
            await until(lambda: [node.started for node in nodes] == [1, 1])

    run(test())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", ["receive", "prepare", "ready", "end"])
@pytest.mark.parametrize(
    "end",
    [
        ending,
        aborting(errors.StaleEpoch("another group")),
        aborting(errors.Draining("going")),
        aborting(errors.GroupLost("a rank died")),
        aborting(errors.InternalError("a defect")),
    ],
    ids=["shut down", "stale", "draining", "lost", "defect"],
)
def test_a_member_that_ends_its_stream_is_a_lost_group(rank: int, stage: str, end: Act) -> None:
    """At any stage and by any status: the job goes on elsewhere; it is never cancelled by it."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[rank].at[stage] = end
            if stage in ("ready", "end"):
                # The other one has started: it waits in a collective that this one is missing in.
                nodes[1 - rank].at["step0" if stage == "ready" else "end"] = hanging
                nodes[1 - rank].at["end"] = hanging
            with pytest.raises(errors.GroupLost, match=f"rank {rank}"):
                await work(made)

    run(test())


def test_every_step_that_was_finished_is_reported_before_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the leader still sends after another member died is not dropped."""
    monkeypatch.setattr("coordinator.together._AFTERMATH_S", PATIENCE_S)

    async def test() -> None:
        async with executor() as (made, nodes):

            async def later(node: ScriptedNode, context: Any) -> None:
                await asyncio.sleep(0.1)

            nodes[0].at["step1"] = later
            nodes[0].at["end"] = aborting(errors.GroupLost("its collective broke off"))
            nodes[1].at["end"] = ending
            steps: list[int] = []
            with pytest.raises(errors.GroupLost, match="rank 1"):
                await work(made, steps)
            assert steps == [1, 2]

    run(test())


def test_ranks_that_differ_are_told_whoever_else_fails() -> None:
    """The others lose their group by it, and one may be gone: what counts is that no one knows
    whose state is right.
    """

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[0].at["end"] = aborting(errors.GroupLost("its collective broke off"))
            nodes[1].at["end"] = aborting(errors.RanksDiffer("rank 1 is at step 2"))
            with pytest.raises(errors.RanksDiffer, match="rank 1 is at step 2"):
                await work(made)

    run(test())


@pytest.mark.parametrize(
    ("raised", "kind", "name"),
    [
        (errors.InvalidRequest("no", field="job.x"), errors.InvalidRequest, "group"),
        (errors.BadResult("NaN"), errors.BadResult, "group"),
        (errors.DamagedModel("torn"), errors.ExecutorFailed, "group"),
        (errors.DamagedModel("torn"), errors.DamagedModel, "local"),
        (errors.InternalError("a defect"), errors.ExecutorFailed, "local"),
    ],
)
def test_what_a_member_says_of_the_work_is_told(
    raised: DitmeshError, kind: type[DitmeshError], name: str
) -> None:
    """A wrong request stays one; what another executor may do better can go on there."""

    async def test() -> None:
        async with executor(name) as (made, nodes):
            nodes[0].at["prepare"] = aborting(raised)
            with pytest.raises(DitmeshError) as caught:
                await work(made)
            assert type(caught.value) is kind

    run(test())


def test_a_stop_while_members_prepare_takes_effect_at_once() -> None:
    """Loading may take minutes; nobody has started."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["prepare"] = hanging
            stop = StopRequest()
            working = asyncio.create_task(work(made, stop=stop))
            await until(lambda: nodes[1].came)
            stop.set(pb.STOP_REASON_CANCELLED)
            end = await asyncio.wait_for(working, PATIENCE_S)
            assert end.stopped == pb.STOP_REASON_CANCELLED
            assert [node.started for node in nodes] == [0, 0]

    run(test())


def test_a_stop_asked_for_before_the_run_is_heard() -> None:
    """No matter how early."""

    async def test() -> None:
        async with executor() as (made, nodes):
            stop = StopRequest()
            stop.set(pb.STOP_REASON_DEADLINE)
            stop.set(pb.STOP_REASON_CANCELLED)
            end = await work(made, stop=stop)
            assert end.stopped == pb.STOP_REASON_DEADLINE
            assert nodes[0].started == 0

    run(test())


def test_the_leaders_result_does_not_wait_for_a_member_that_hangs() -> None:
    """The job is whole; the next one finds the member lost."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["end"] = hanging
            end = await asyncio.wait_for(work(made), PATIENCE_S)
            assert end.result is not None

    run(test())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_run_without_a_step_waits_for_all_members(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else shows that they have begun, and the next run must not find them before this
    one; but not for one that hangs.
    """
    monkeypatch.setattr("coordinator.executors._SETTLE_S", 0.3 if hangs else 20.0)

    async def test() -> None:
        async with executor() as (made, nodes):

            async def late(node: ScriptedNode, context: Any) -> None:
                await asyncio.sleep(0.1)

            nodes[0].steps = 0
            nodes[1].at["end"] = hanging if hangs else late
            await work(made)
            assert nodes[1].finished == (0 if hangs else 1)

    run(test())


def test_members_of_this_machine_read_tensors_from_memory() -> None:
    """Not a byte is sent to one that can; one elsewhere, or one that cannot, is sent them all."""

    async def test() -> None:
        async with executor() as (made, nodes):
            here, there = made.members
            here.report = pb.WatchResponse(host=shared_memory.host_id())
            there.report = pb.WatchResponse(host="another")
            await work(made)
            nodes[0].blind = True
            await work(made)
            everything = sum(t.spec.nbytes for t in nodes[1].tensors)
            assert nodes[0].came == [0, everything]
            assert nodes[1].came == [everything, everything]
            assert nodes[0].tensors == nodes[1].tensors
            assert nodes[1].offered == [[], []]

    run(test())


def test_a_member_is_told_with_the_job_where_to_read_what_is_new_to_it() -> None:
    """It has nothing to ask then. What it was given before it asks for when it has dropped it, and
    another process has everything to be told.
    """

    async def test() -> None:
        async with executor() as (made, nodes):
            for member in made.members:
                member.report = pb.WatchResponse(host=shared_memory.host_id())
            hashed = f32(100_000).hashed()
            await work(made, more=[hashed])
            await work(made, more=[hashed])
            made.members[0]._apply(Report("another process", 1))
            await work(made, more=[hashed])
            assert nodes[0].offered == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
            assert nodes[1].offered == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
            assert [node.asked for node in nodes] == [[[3]], [[3], [3]]]
            assert [node.came for node in nodes] == [[0, 0, 0]] * 2

    run(test())


def test_a_run_that_is_given_up_while_memory_is_written_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread cannot be interrupted: what it writes to stays open until it is through."""
    begun, go_on, opened = threading.Event(), threading.Event(), list[Memory]()

    def add(memory: Memory, tensor: WireTensor) -> int:
        opened.append(memory)
        begun.set()
        assert go_on.wait(20)
        os.fstat(memory.fd)
        return 4096

    async def test() -> None:
        async with executor() as (made, _):
            made.members[0].report = pb.WatchResponse(host=shared_memory.host_id())
            preparing = asyncio.create_task(work(made))
            await until(begun.is_set)
            preparing.cancel()
            await asyncio.wait([preparing])
            os.fstat(opened[0].fd)
            go_on.set()

    monkeypatch.setattr(Memory, "add", add)
    run(test())


def test_memory_that_cannot_be_had_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are sent instead."""

    def full(*args: Any) -> None:
        raise OSError("no room")

    async def test() -> None:
        async with executor() as (made, nodes):
            for member in made.members:
                member.report = pb.WatchResponse(host=shared_memory.host_id())
            monkeypatch.setattr(shared_memory.Memory, "add", full)
            await work(made)
            assert all(node.came[0] > 0 for node in nodes)

    run(test())


@pytest.mark.parametrize("stage", ["receive", "prepare", "step0"])
def test_a_member_that_falls_silent_ends_the_run_at_any_stage(stage: str) -> None:
    """Whatever its stream does: its link knows first, and the others are not waited for."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[0].at[stage] = hanging
            nodes[1].at["end"] = hanging
            working = asyncio.create_task(work(made))
            await until(lambda: nodes[0].came or stage == "receive")
            made.members[0].doubt("it has said nothing for 5 s")
            with pytest.raises(errors.GroupLost, match=r"rank 0 .* said nothing for 5 s"):
                await asyncio.wait_for(working, PATIENCE_S)

    run(test())


def test_a_member_that_never_gets_ready_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that hangs has an end."""
    monkeypatch.setattr("coordinator.executors._PREPARE_S", 1.0)

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["prepare"] = hanging
            with pytest.raises(errors.GroupLost, match=r"rank 1 .* not answered for 1 s"):
                await work(made)

    run(test())


@pytest.mark.parametrize("stage", ["prepare", "step1"])
def test_a_local_sampler_that_hangs_is_ended(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor starts it again; the job can go on. It lives, so nothing else would end it."""
    monkeypatch.setattr("coordinator.executors._PREPARE_S", 0.3)
    monkeypatch.setattr("coordinator.executors.Patience", lambda: Patience(first_s=0.5))

    async def test() -> None:
        async with executor("local") as (made, nodes):
            nodes[0].at[stage] = hanging
            process = subprocess.Popen(["sleep", "60"])
            (link,) = made.members
            link._ours, link._pid = True, process.pid
            with pytest.raises(errors.ExecutorFailed, match="the local sampler"):
                await work(made)
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
            assert not link.up

    run(test())
