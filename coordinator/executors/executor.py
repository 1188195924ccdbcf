"""What runs a job's steps: a mesh of the group or the local sampler, driven alike."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from coordinator.executors.causes import cause, lost, translate
from coordinator.executors.member import MemberRun, PreparedRun, RunEnd, StepReport, give_up
from coordinator.executors.predict_lane import PatchedModel, PredictLane
from coordinator.executors.sharing import Share
from coordinator.executors.stopping import StopRequest, done_before, forward_stop
from coordinator.executors.together import together
from coordinator.lifecycle.patience import Patience
from coordinator.nodes.link import NodeLink
from ditmesh import telemetry
from ditmesh.errors import (
    DitmeshError,
    InternalError,
    RanksDiffer,
)
from ditmesh.jobs import Job
from ditmesh.mesh import MeshSpec
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2, sampler_pb2

# Streams kept open for calls: each holds a thread on every member.
_MAX_LANES = 4
# A model may come from a cold network disk, or wait for the job before.
_PREPARE_S = 1800.0
# A step shows that all members have a run in hand. After a run without one the others are waited
# for: one that found its stream closed before it began would leave the run out, and take the
# leader's last word in it for the next.
_SETTLE_S = 5.0

T = TypeVar("T")


class Executor:
    """Members that do the same work at once; the first of them leads and answers."""

    def __init__(
        self,
        name: str,
        members: Sequence[NodeLink],
        *,
        epoch: int = 0,
        mesh_index: int = 0,
        mesh: MeshSpec | None = None,
    ) -> None:
        """`name` is "group" or "local"; `members` stand in the order of the mesh's ranks."""
        self.name = name
        self.members = tuple(members)
        self.epoch = epoch
        self.mesh_index = mesh_index
        self.mesh = mesh
        self._lanes: dict[bytes, PredictLane] = {}

    @property
    def degrees(self) -> str:
        """The mesh's degrees for people, such as "ulysses=8"; empty for the local sampler."""
        return str(self.mesh).partition(" on ")[0] if self.mesh is not None else ""

    async def prepare(
        self, job: Job, *, deadline_s: float | None = None, at_once: bool = False
    ) -> PreparedRun:
        """Give every member the job, what it lacks of the inputs, and time to load the model.

        Members do this beside a job that they run. `at_once`: a single one does not wait for its
        start. Raises as `run`.
        """
        # Members' spans are part of the whole run, and not of its preparation.
        context = telemetry.current_span().context
        order = node_pb2.RunJob(
            epoch=self.epoch,
            mesh=self.mesh_index,
            job=job.spec,
            traceparent=context.traceparent if context is not None else "",
        )
        if deadline_s is not None:
            order.deadline_seconds = deadline_s
        with Share(job.tensors) as share:
            share.write_ahead(self.members)
            leader, *others = self.members
            runs = MemberRun(leader, latent_bytes=job.latent_bytes), *map(MemberRun, others)
            prepared = PreparedRun(runs)
            try:
                with telemetry.span("prepare"):
                    at_once = at_once and len(self.members) == 1
                    steps = [run.prepare(order, share, at_once=at_once) for run in prepared.runs]
                    await self._together(steps, limit_s=_PREPARE_S)
            except BaseException:
                prepared.close()
                raise
        for link in self.members:
            if link.up:
                link.runs.refill()
        return prepared

    async def run(
        self,
        job: Job,
        *,
        deadline_s: float | None,
        on_step: Callable[[StepReport], None],
        stop: StopRequest,
        on_start: Callable[[], None] = lambda: None,
        preparing: asyncio.Task[PreparedRun] | None = None,
    ) -> RunEnd:
        """Run a job from its state to its end, or until `stop`.

        `on_start` is called when every member is ready, its model loaded, and begins. `preparing`:
        `prepare` of this job, done or under way.

        Raises GroupLost or ExecutorFailed when the work can go on elsewhere (every step that
        was finished has been reported by then), and other errors when it cannot.
        """
        if preparing is None:
            preparing = asyncio.create_task(self.prepare(job, deadline_s=deadline_s, at_once=True))
        try:
            if not await done_before(stop, preparing):
                # Loading a model may take minutes; nobody has started.
                return RunEnd(stop.reason, None, ())
            runs = preparing.result().runs
            await self._together([run.start() for run in runs])
            on_start()
            return await self._follow(runs, on_step, stop)
        finally:
            give_up(preparing)

    async def _follow(
        self, runs: Sequence[MemberRun], on_step: Callable[[StepReport], None], stop: StopRequest
    ) -> RunEnd:
        stopper = asyncio.create_task(forward_stop(stop, runs[0]))
        patience = Patience()
        report = _timed(on_step, patience)
        stepped = False
        others = [asyncio.Event() for _ in runs[1:]]
        differing: list[RanksDiffer] = []

        def step(done: StepReport) -> None:
            nonlocal stepped
            stepped = True
            report(done)

        async def lead() -> RunEnd:
            end = await runs[0].follow(step, patience.limit_s)
            if not stepped:
                await _within(_SETTLE_S, others)
            if differing:
                # The last state is compared too, while the result is on its way.
                raise differing[0]
            return end

        async def join(run: MemberRun, ended: asyncio.Event) -> RunEnd:
            try:
                return await run.follow(_ignore, _forever)
            except (grpc.aio.AioRpcError, DitmeshError) as error:
                if isinstance(known := translate(error), RanksDiffer):
                    differing.append(known)
                raise
            finally:
                ended.set()

        try:
            joining = [join(run, ended) for run, ended in zip(runs[1:], others, strict=True)]
            return (await self._together([lead(), *joining], led=True))[0]
        finally:
            stopper.cancel()

    async def predict(
        self, model: PatchedModel, call: sampler_pb2.PredictCall, tensors: Sequence[WireTensor]
    ) -> WireTensor:
        """One transformer call; calls of one executor must not overlap. Raises as `run`.

        Cancelling it takes effect when the members are through with the call.
        """
        lane = self._lanes.get(model.key)
        if lane is None:
            while len(self._lanes) >= _MAX_LANES:
                self._lanes.pop(next(iter(self._lanes))).close()
            lane = PredictLane(self.members, self.epoch, self.mesh_index, model)
            self._lanes[model.key] = lane
        try:
            answer = await _to_its_end(lane.predict(call, tensors, self._together))
        except BaseException:
            # Half a call may be on its way: these streams cannot be used again. When the group was
            # found lost meanwhile, `close` has dropped them already.
            self._lanes.pop(model.key, None)
            lane.close()
            raise
        if isinstance(answer, DitmeshError):
            raise answer
        if answer is None:
            raise InternalError("the leading member answered without a tensor")
        return answer

    def close(self) -> None:
        """Drop the streams that are kept open."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    async def _together(
        self,
        steps: Sequence[Coroutine[Any, Any, T]],
        *,
        led: bool = False,
        limit_s: float | None = None,
    ) -> list[T]:
        """What each member, or the first alone, gives; raises the most telling error."""
        joint = await together(steps, self.members, led=led, limit_s=limit_s)
        if joint.results:
            return joint.results
        if joint.failures:
            raise cause(self.name, self.members, joint.failures)
        for rank in joint.late:
            self.members[rank].hung(joint.problems[rank])
        raise lost(self.name, self.members, *next(iter(joint.problems.items())))


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Its result. Who is cancelled still waits for it, unless cancelled again.

    Of members whose streams are cut, some may have read that they are to start and others not:
    those that have would wait in a collective, and the next work on the others would answer them.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    finally:
        task.cancel()


async def _within(seconds: float, events: Sequence[asyncio.Event]) -> None:
    """Wait for all of them, but no longer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for event in events:
                await event.wait()


def _timed(
    on_step: Callable[[StepReport], None], patience: Patience
) -> Callable[[StepReport], None]:
    """`on_step`, with the time of each step noted."""
    last = time.monotonic()

    def timed(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        patience.note(now - last)
        last = now
        on_step(report)

    return timed


def _ignore(step: StepReport) -> None:
    """Only the leader sends states."""


def _forever() -> None:
    """Who sends no states is silent until the end; the leader's limit counts for all."""
