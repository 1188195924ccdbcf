"""A coordinator without processes: real queue, runner, job table and services over fakes.

The group and the local sampler are scripted; everything between them and the client is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import grpc.aio
import numpy as np

from coordinator.cluster.cluster import Cluster
from coordinator.cluster.group import FormedGroup
from coordinator.config import Limits, Timing
from coordinator.jobs.admission import check_values
from coordinator.jobs.job_log import NoJournal
from coordinator.jobs.record import JobRecord, Listener
from coordinator.jobs.runner import Runner
from coordinator.jobs.scheduler import Scheduler
from coordinator.jobs.table import JobTable
from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.node import NodePhase, NodeView
from ditmesh import telemetry
from ditmesh.errors import DitmeshError
from ditmesh.mesh import MeshSpec
from ditmesh.tensors import WireTensor
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import job_pb2 as job_pb
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.scripted import FakeExecutor, Script

T = TypeVar("T")

MODEL = cluster_pb2.Model(
    name="tiny",
    family="flux",
    latent_channels=16,
    fingerprint="f",
    size_multiple=2,
    text_dim=64,
    pooled_dim=32,
    num_heads=8,
)
# Small times: a test waits for several of them.
TIMING = Timing(reattach=0.15, keep_result=0.3, settle=0.0, regroup_wait=0.2)
PATIENT = Timing(reattach=5.0, keep_result=5.0, settle=0.0, regroup_wait=0.2)
PATIENCE_S = 20.0
"""How long what must come may take: a busy machine is no failure."""


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run a test on a loop; fails for what asyncio would only log, and for tasks left over."""
    problems: list[dict[str, Any]] = []

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: None if _of_an_earlier_loop(context) else problems.append(context)
        )
        result = await asyncio.wait_for(test, 120.0)
        gc.collect()  # a stream that was dropped is closed by a task of its own
        await settled(lambda: asyncio.all_tasks() - {asyncio.current_task()})
        return result

    result = asyncio.run(watched())
    gc.collect()
    assert not problems, problems
    return result


def _of_an_earlier_loop(context: dict[str, Any]) -> bool:
    """Whether gRPC, whose poller serves all loops of a process, could not reach one that is gone.

    The loop under test is open when it reports this, so the late event is of an earlier test.
    """
    error = context.get("exception")
    return (
        isinstance(error, RuntimeError)
        and str(error) == "Event loop is closed"
        and "PollerCompletionQueue._handle_events" in context["message"]
    )


async def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def settled(left_over: Callable[[], Any]) -> None:
    """Wait until nothing is left over; fails for what is and stays."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: not left_over())
    left = left_over()
    assert not left, left


async def stop(*servers: grpc.aio.Server) -> None:
    """Stop servers and see their handlers end, which grpc.aio's own `stop` does not wait for."""
    await asyncio.gather(*(server.stop(None) for server in servers))
    ours = ("rpc_task", "HandleExceptions")
    await settled(lambda: [t for t in asyncio.all_tasks() if t.get_name().startswith(ours)])


def f32(*shape: int, value: float = 0.5) -> WireTensor:
    return WireTensor.from_numpy(np.full(shape, value, np.float32))


def make_job(
    job_id: str = "job", steps: int = 4, tensors: Sequence[WireTensor] = (), **fields: Any
) -> tuple[job_pb.JobSpec, list[WireTensor]]:
    """A job of an empty 4x4 latent; tensor 0 is its text, 1 its pooled text, then `tensors`."""
    everything = [f32(1, 2, 64), f32(1, 32), *tensors]
    spec = job_pb.JobSpec(
        job_id=job_id,
        model="tiny",
        sampler="euler",
        schedule=job_pb.Schedule(
            named=job_pb.NamedSchedule(scheduler="simple", steps=steps),
        ),
        positive=job_pb.Conditioning(text=0, pooled=1),
        empty_latent=job_pb.EmptyLatent(batch=1, height=4, width=4),
        tensors=[t.spec.to_proto() for t in everything],
    )
    spec.MergeFrom(job_pb.JobSpec(**fields))
    return spec, everything


class _NoState:
    """What FetchState answers when nothing is kept."""

    async def read(self) -> object:
        return grpc.aio.EOF

    def cancel(self) -> None:
        """Nothing to cancel."""


@dataclass
class FakeLink:
    """A node or the local sampler as its link shows it."""

    address: str
    has_models: tuple[cluster_pb2.Model, ...] = (MODEL,)
    up: bool = True
    seen: bool = True

    view = NodeView(NodePhase.JOINED, "one", 1, "")
    report = None
    stub = mock.Mock(FetchState=lambda request: _NoState())

    def doubt(self, why: str) -> None:
        """It speaks again in the same moment."""

    def models(self) -> dict[str, cluster_pb2.Model]:
        """By name."""
        return {m.name: m for m in self.has_models} if self.up else {}


class FakeGroup:
    """In place of GroupManager: forms and fails when told."""

    def __init__(self, nodes: int) -> None:
        self.links = {f"node{i}": FakeLink(f"node{i}") for i in range(nodes)}
        self.formed: FormedGroup | None = None
        self.phase = GroupPhase.NONE
        self.problem = ""
        self.epoch = 0
        self.busy = False
        self.failures: list[tuple[int, str]] = []
        self.returns = True
        self.could_grow = False
        self.awaits_loads = False
        self.on_change: Callable[[], None] = lambda: None

    def form(self) -> None:
        """All nodes form a group now."""
        self.epoch += 1
        members = tuple(self.links.values())
        mesh = MeshSpec(tuple(range(len(members))), ulysses=len(members))
        self.formed = FormedGroup(self.epoch, members, (mesh,))  # type: ignore[arg-type]
        self.phase = GroupPhase.READY
        self.on_change()

    def report_failure(self, epoch: int, why: str) -> None:
        """As GroupManager: the group is gone."""
        self.failures.append((epoch, why))
        self.formed, self.phase = None, GroupPhase.NONE
        self.on_change()
        if self.returns:
            asyncio.get_running_loop().call_later(0.02, self.form)

    @property
    def accepting(self) -> bool:
        """Whether it takes work."""
        return self.phase is GroupPhase.READY

    def set_busy(self, busy: bool) -> None:
        """Noted."""
        assert busy != self.busy, "taken twice, or given back twice"
        self.busy = busy


class World:
    """The parts of one coordinator, and shortcuts for tests."""

    def __init__(self, nodes: int, local: bool, limits: Limits, timing: Timing) -> None:
        self.limits = limits
        self.group = FakeGroup(nodes)
        self.local = FakeLink("local") if local else None
        self.scripts = {"group": Script(), "local": Script()}
        FakeExecutor.scripts = self.scripts
        self.cluster = Cluster(self.group, self.local, settle_s=0.0)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.cluster, regroup_wait_s=timing.regroup_wait)
        self.metrics = telemetry.Metrics()
        self.journal = NoJournal()
        self.runner = Runner(self.scheduler, self.cluster, self.metrics, self.journal)
        self.jobs = JobTable(self.runner, self.cluster, limits, timing, self.journal)

    async def begin(
        self,
        spec: job_pb.JobSpec,
        tensors: Sequence[WireTensor],
        *,
        remaining_s: float | None = None,
        scope: str = "",
    ) -> tuple[JobRecord, Listener]:
        """A job that is complete and in the queue, with one listener."""
        record, known = await self.jobs.open(
            spec, scope=scope, remaining_s=remaining_s, span=telemetry.start_span("job")
        )
        assert not known
        record.job = check_values(record.admitted, tuple(tensors))
        listener = self.jobs.attach(record)
        self.runner.submit(record)
        return record, listener

    async def ended(self, record: JobRecord) -> DitmeshError | None:
        """Wait for a job's end; its error, if it failed."""
        await until(lambda: record.phase.ended and (record.task is None or record.task.done()))
        return record.error

    def at_work(self) -> list[object]:
        """What waits, runs, or is held."""
        places = {
            "waiting": self.scheduler.waiting,
            "running": self.runner.running,
            "tasks": self.runner._running,
            "busy": self.cluster.at_work,
            "exiled": self.scheduler._exiled,
            "group": self.group.busy,
        }
        return [(name, what) for name, what in places.items() if what]


@asynccontextmanager
async def world(
    *,
    nodes: int = 2,
    local: bool = True,
    formed: bool = True,
    limits: Limits | None = None,
    timing: Timing = TIMING,
) -> AsyncIterator[World]:
    """A coordinator with a group that is ready, unless not `formed`, and a local sampler."""
    with mock.patch("coordinator.cluster.cluster.Executor", FakeExecutor):
        made = World(nodes, local, limits or Limits(), timing)
        if formed and nodes:
            made.group.form()
        yield made
        await settled(made.at_work)


def gate() -> tuple[asyncio.Semaphore, Callable[[int], Awaitable[None]]]:
    """A semaphore, and a `Script.before` that takes one of it for each step."""
    semaphore = asyncio.Semaphore(0)

    async def before(step: int) -> None:
        await semaphore.acquire()

    return semaphore, before


async def messages(listener: Listener) -> list[pb.SampleResponse]:
    """All that a listener hears until the job ends."""
    heard = []
    while (message := await listener.next()) is not None:
        heard.append(message)
    return heard
