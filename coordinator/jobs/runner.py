"""Drives one job from complete inputs to its end, down the ladder when an executor fails."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import partial

from coordinator.cluster.cluster import Cluster
from coordinator.executors.executor import Executor
from coordinator.executors.member import PreparedRun, RunEnd
from coordinator.jobs.ahead import Ahead
from coordinator.jobs.checks import POLICIES
from coordinator.jobs.job_log import JobLog
from coordinator.jobs.record import JobRecord, Moved, bare
from coordinator.jobs.recovery import catch_up
from coordinator.jobs.scheduler import Claim, Grant, Scheduler
from coordinator.jobs.segment import Segments
from coordinator.lifecycle.job import JobEffect, JobEvent, JobPhase
from ditmesh import telemetry
from ditmesh.errors import (
    BadResult,
    DeadlineExceeded,
    DitmeshError,
    Draining,
    ExecutorFailed,
    GroupLost,
    JobCancelled,
    RanksDiffer,
)
from ditmesh.rpc_status import as_ditmesh_error
from ditmesh.v1 import node_pb2
from ditmesh.v1 import sampler_pb2 as pb

log = logging.getLogger(__name__)

_STOP_S = 5.0


class Runner:
    """Starts and ends jobs; `on_end` is called with each that ended."""

    def __init__(
        self,
        scheduler: Scheduler,
        cluster: Cluster,
        metrics: telemetry.Metrics,
        journal: JobLog,
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._cluster = cluster
        self._metrics = metrics
        self._segments = Segments(cluster, metrics, journal)
        self._running: dict[asyncio.Task[None], JobRecord] = {}
        self.on_end: Callable[[JobRecord], None] = lambda record: None

    @property
    def running(self) -> int:
        """Jobs that an executor works on."""
        working = (JobPhase.LINED_UP, JobPhase.RUNNING, JobPhase.STOPPING)
        return sum(record.phase in working for record in self._running.values())

    def position(self, record: JobRecord) -> int:
        """Claims before this job's; 0 once it runs."""
        return self._scheduler.position(record.claim) if record.claim is not None else 0

    async def drain(self, grace_s: float) -> None:
        """Let the jobs end; those that have not after `grace_s` seconds are stopped."""
        if self._running:
            await asyncio.wait(self._running.keys(), timeout=grace_s)
        self._journal.freeze(self._running.values())
        for record in list(self._running.values()):
            self.stop(record, Draining("the coordinator is shutting down", retry_after_s=1.0))
        if self._running:
            await asyncio.wait(self._running.keys(), timeout=_STOP_S)

    def submit(self, record: JobRecord) -> None:
        """The job's inputs are complete: it queues from now on."""
        self.apply(record, JobEvent.COMPLETE)
        self._journal.taken(record)
        record.task = asyncio.create_task(self._drive(record))
        self._running[record.task] = record
        record.task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task).task = None

    def stop(self, record: JobRecord, error: DitmeshError) -> None:
        """End a job, wherever it is. `error` is what its clients will read."""
        if not record.phase.ended:
            record.error = record.error or bare(error)
        self.apply(record, JobEvent.STOP)

    def fail(self, record: JobRecord, error: DitmeshError) -> None:
        """The job cannot be done. One that has ended already stays as it is."""
        if not record.phase.ended:
            record.error = record.error or bare(error)
            self.apply(record, JobEvent.FAIL)

    def apply(self, record: JobRecord, event: JobEvent) -> None:
        """Advance the job and do what its lifecycle says."""
        for effect in record.apply(event):
            match effect:
                case JobEffect.WITHDRAW:
                    if record.task is not None:
                        record.task.cancel()
                case JobEffect.STOP_EXECUTOR:
                    late = isinstance(record.error, DeadlineExceeded)
                    record.stop.set(
                        node_pb2.STOP_REASON_DEADLINE if late else node_pb2.STOP_REASON_CANCELLED
                    )
                case JobEffect.REPORT:
                    self._report(record)

    def _report(self, record: JobRecord) -> None:
        model = record.admitted.spec.model
        record.finish()
        outcome = "OK" if record.error is None else record.error.reason
        seconds = time.monotonic() - record.accepted_at
        self._metrics.job_ended(model=model, outcome=outcome, seconds=seconds)
        if record.error is not None and not isinstance(record.error, JobCancelled):
            record.span.fail(record.error)
        record.span.set(outcome=outcome)
        record.span.end()
        self._journal.ended(record)
        self.on_end(record)

    async def _drive(self, record: JobRecord) -> None:
        """Claim an executor and work on it, until the job has ended."""
        try:
            while not record.phase.ended:
                await self._turn(record)
        except asyncio.CancelledError:
            log.info("job %s was withdrawn", record.job_id)
        except DitmeshError as error:
            self.fail(record, error)
        except Exception as error:
            log.exception("job %s failed", record.job_id)
            self.fail(record, as_ditmesh_error(error))

    async def _turn(self, record: JobRecord) -> None:
        """Wait for an executor, and work on it until the job leaves it."""
        ahead = Ahead(partial(self._prepare, record))
        record.claim = self._claim(record, ahead)
        try:
            with telemetry.span("queue", parent=record.span):
                grant = await self._scheduler.acquire(record.claim, first=bool(record.segments))
            await self._work(record, grant, ahead)
        finally:
            ahead.drop()

    async def _work(self, record: JobRecord, grant: Grant, ahead: Ahead) -> None:
        try:
            if record.restored:
                record.restored = False
                await catch_up(record, grant.executor.members)
            self._note_fallback(record, grant)
            self.apply(record, JobEvent.LINE_UP if grant.turn.lined_up else JobEvent.START)
            self._ended(record, await self._run(record, grant, ahead))
            # Its client is answered before the group is looked after.
            await asyncio.sleep(0)
        except ExecutorFailed as error:
            await self._lost(record, grant, error)
        finally:
            self._scheduler.release(grant)

    def _claim(self, record: JobRecord, ahead: Ahead) -> Claim:
        spec = record.admitted.spec
        guided = spec.HasField("cfg") and not math.isclose(spec.cfg, 1.0)

        def tell(position: int) -> None:
            record.tell(pb.SampleResponse(queue=pb.QueuePosition(position=position)))

        def hand_over() -> None:
            record.stop.set(node_pb2.STOP_REASON_PREEMPTED)

        return Claim(
            model=spec.model,
            policy=POLICIES[spec.fallback],
            cells=record.admitted.cells,
            steps_left=record.admitted.steps - record.step,
            deadline=record.deadline,
            split=guided,
            group_excluded=record.group_excluded,
            alone=record.losses.any,
            on_position=tell,
            # A restored job has to look for its newest state first.
            on_next=lambda executor: ahead.begin(None if record.restored else executor),
            on_group_free=hand_over,
        )

    async def _prepare(self, record: JobRecord, executor: Executor) -> PreparedRun:
        """Bring the job's inputs to an executor that still works on another."""
        with telemetry.span("ahead", parent=record.span, executor=executor.name):
            return await executor.prepare(record.current_job(), deadline_s=record.remaining_s())

    async def _run(self, record: JobRecord, grant: Grant, ahead: Ahead) -> RunEnd:
        executor = grant.executor
        with telemetry.span(
            "run",
            parent=record.span,
            executor=executor.name,
            epoch=executor.epoch,
            ranks=len(executor.members),
            first_step=record.step,
        ) as span:
            job = record.current_job()
            hand_on = partial(self._scheduler.hand_on, grant)
            segment = self._segments.begin(record, grant, span, hand_on)
            try:
                return await executor.run(
                    job,
                    deadline_s=record.remaining_s(),
                    on_step=segment.step,
                    stop=record.stop,
                    on_start=segment.start,
                    preparing=ahead.take(executor),
                )
            finally:
                segment.end()

    def _ended(self, record: JobRecord, end: RunEnd) -> None:
        if record.phase.ended:
            # It was stopped while it was lined up, and its executor has left it out by now.
            return
        if end.stopped == node_pb2.STOP_REASON_UNSPECIFIED:
            record.end = end
            self.apply(record, JobEvent.FINISH)
            return
        if end.stopped == node_pb2.STOP_REASON_PREEMPTED and record.error is None:
            record.moved = Moved("GROUP_RETURNED", "the group is back and faster")
            self.apply(record, JobEvent.LOST)
            return
        if end.stopped == node_pb2.STOP_REASON_DEADLINE:
            record.error = record.error or DeadlineExceeded(
                f"the deadline passed after {record.reached} of {record.admitted.steps} steps"
            )
        record.error = record.error or JobCancelled("the job was cancelled")
        self.apply(record, JobEvent.STOPPED)

    async def _lost(self, record: JobRecord, grant: Grant, error: ExecutorFailed) -> None:
        """The executor failed: find the newest state, and let the job queue again with it."""
        log.warning("job %s: %s", record.job_id, error)
        executor = grant.executor
        record.moved = Moved(error.reason, error.message)
        if isinstance(error, GroupLost):
            self._cluster.group_failed(executor, str(error))
        elif executor.name == "local" and not isinstance(error, BadResult):
            self._cluster.local_failed(error.message)
        if isinstance(error, RanksDiffer):
            # What the members hold is what they differ in.
            record.take_back()
        elif isinstance(error, GroupLost) and not record.phase.ended:
            await catch_up(record, executor.members)
        if record.phase.ended:
            return
        # By the state: steps of which none is left are no progress.
        advanced = record.step > record.segments[-1].first_step
        too_often = record.losses.note(
            executor.name, advanced=advanced, lined_up=grant.turn.lined_up
        )
        if executor.name == "local":
            if isinstance(error, BadResult) or too_often:
                self.fail(record, error)
                return
        elif not isinstance(error, GroupLost) or too_often:
            record.group_excluded = error.reason
        if isinstance(error, BadResult):
            # Where such a state comes from, those before it are not to be trusted either.
            record.begin_again()
        if isinstance(error, (BadResult, RanksDiffer)):
            self._journal.set_back(record)
        self.apply(record, JobEvent.LOST)

    def _note_fallback(self, record: JobRecord, grant: Grant) -> None:
        """Make visible that the job did not stay, or did not go, where it belongs."""
        fallback = record.fallback_to(grant.executor, grant.decision)
        if fallback is None:
            return
        record.fallbacks.append(fallback)
        self._metrics.fell_back(
            reason=fallback.reason, source=fallback.source, target=fallback.target
        )
        with telemetry.span(
            "fallback",
            parent=record.span,
            reason=fallback.reason,
            message=fallback.message,
            source=fallback.source,
            target=fallback.target,
            at_step=fallback.at_step,
        ):
            log.warning("job %s moves to %s: %s", record.job_id, fallback.target, fallback.message)
