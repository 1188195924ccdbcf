"""An executor that does what a test says, in place of a mesh of ranks or a local sampler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from coordinator.executors.member import PreparedRun, RunEnd, StepReport
from coordinator.executors.stopping import StopRequest
from ditmesh.errors import BadResult, ExecutorFailed, GroupLost
from ditmesh.jobs import Job, Snapshot
from ditmesh.mesh import MeshSpec
from ditmesh.sampling import SAMPLERS
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as job_pb
from ditmesh.v1 import node_pb2
from ditmesh.v1 import sampler_pb2 as pb


@dataclass
class Script:
    """What an executor does. `before` is awaited before each step with the step's number."""

    before: Callable[[int], Awaitable[None]] | None = None
    fail: dict[int, Exception] = field(default_factory=dict)
    """Raised once, before the step of that number."""
    prepared: list[str] = field(default_factory=list)
    """Job id of each that was prepared before its turn."""
    given_up: list[str] = field(default_factory=list)
    """Those of them that were not, or no longer, wanted."""
    unprepared: list[str] = field(default_factory=list)
    """Those that cannot be."""
    sends_state: Callable[[int], bool] = lambda step: True
    """Whether the state after the step of that number goes along."""
    tells: Callable[[int], bool] = lambda step: True
    """Whether the step of that number, from 1, is told of."""
    after: Callable[[], Awaitable[None]] | None = None
    """Awaited after the last step, while the result is on its way."""
    started: list[str] = field(default_factory=list)
    """Job id of each that was told to start, perhaps to wait for the one before it."""
    runs: list[tuple[str, int]] = field(default_factory=list)
    """Job id and first step of each run."""
    ids: list[str] = field(default_factory=list)
    """The id of each run as executors see it."""
    answer: Callable[[pb.PredictCall, Sequence[WireTensor]], WireTensor] | None = None


class FakePrepared(PreparedRun):
    """In place of streams: tells when it is closed."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        super().__init__(())
        self._on_close = on_close

    def close(self) -> None:
        """Told."""
        self._on_close()


class FakeExecutor:
    """In place of Executor: walks through the steps as its script says."""

    scripts: dict[str, Script]

    def __init__(
        self,
        name: str,
        members: Sequence[object],
        *,
        epoch: int = 0,
        mesh_index: int = 0,
        mesh: MeshSpec | None = None,
    ) -> None:
        self.name = name
        self.members = tuple(members)
        self.epoch = epoch
        self.degrees = str(mesh).partition(" on ")[0] if mesh else ""
        self.script = self.scripts[name]
        self._thread = asyncio.Lock()
        """What does one piece of work after another, in the order in which they were started."""
        self._present = 0
        self._breaks = 0

    def close(self) -> None:
        """Nothing is kept open."""

    async def prepare(self, job: Job, *, deadline_s: float | None = None) -> PreparedRun:
        """As Executor.prepare."""
        name = job.spec.job_id.rpartition("-")[0]
        self.script.prepared.append(name)
        await asyncio.sleep(0)
        if name in self.script.unprepared:
            raise ExecutorFailed("a member did not take it")
        return FakePrepared(partial(self.script.given_up.append, name))

    async def run(
        self,
        job: Job,
        *,
        deadline_s: float | None,
        on_step: Callable[[StepReport], None],
        stop: StopRequest,
        on_start: Callable[[], None],
        preparing: asyncio.Task[PreparedRun] | None = None,
    ) -> RunEnd:
        """As Executor.run."""
        if preparing is not None:
            await preparing
        on_start()
        self.script.started.append(job.spec.job_id.rpartition("-")[0])
        with self._among_members():
            async with self._in_turn():
                end = await self._run(job, on_step, stop)
            if self.script.after is not None:
                await self.script.after()
            return end

    @contextlib.contextmanager
    def _among_members(self) -> Iterator[None]:
        self._present += 1
        assert self._present <= 2, "more than one waits for the one at work"
        try:
            yield
        finally:
            self._present -= 1

    @contextlib.asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """As on a rank's torch thread; who waits there when it breaks is lost too."""
        breaks = self._breaks
        async with self._thread:
            if self._breaks != breaks:
                kind = GroupLost if self.name == "group" else ExecutorFailed
                raise kind("it broke under the work before")
            try:
                yield
            except BadResult:
                raise
            except Exception:
                self._breaks += 1
                raise

    async def _run(
        self, job: Job, on_step: Callable[[StepReport], None], stop: StopRequest
    ) -> RunEnd:
        spec, script = job.spec, self.script
        steps = len(spec.schedule.explicit.sigmas) - 1
        if spec.HasField("stop_after_step"):
            steps = spec.stop_after_step
        first = spec.state.step if spec.HasField("state") else 0
        script.runs.append((spec.job_id.rpartition("-")[0], first))
        script.ids.append(spec.job_id)
        empty = spec.empty_latent
        shape = (empty.batch, 16, empty.height, empty.width)
        latent = WireTensor.from_numpy(np.full(shape, 0.5, np.float32))
        for step in range(first, steps):
            if script.before is not None:
                await script.before(step)
            if step in script.fail:
                raise script.fail.pop(step)
            if stop.requested:
                return RunEnd(stop.reason, None, ())
            revision = SAMPLERS[spec.sampler].revision
            state = job_pb.JobState(step=step + 1, sampler_revision=revision, latent=0)
            snapshot = Snapshot(state, (latent,)) if script.sends_state(step + 1) else None
            if script.tells(step + 1):
                on_step(StepReport(step + 1, 0.5, None, snapshot))
            await asyncio.sleep(0)
        result = pb.SampleResult(tensors=[latent.spec.to_proto()], latent=0)
        return RunEnd(node_pb2.STOP_REASON_UNSPECIFIED, result, (latent,))

    async def predict(
        self, model: object, call: pb.PredictCall, tensors: Sequence[WireTensor]
    ) -> WireTensor:
        """As Executor.predict."""
        with self._among_members():
            async with self._in_turn():
                return await self._predict(call, tensors)

    async def _predict(self, call: pb.PredictCall, tensors: Sequence[WireTensor]) -> WireTensor:
        self.script.runs.append((str(call.call_id), 0))
        if self.script.before is not None:
            await self.script.before(0)
        if call.call_id in self.script.fail:
            raise self.script.fail.pop(call.call_id)
        await asyncio.sleep(0)
        if self.script.answer is not None:
            return self.script.answer(call, tensors)
        return tensors[call.x]
