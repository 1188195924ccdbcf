"""Every job that the coordinator knows: taken in, taken up again, kept for a while, forgotten."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coordinator.cluster.cluster import Cluster
from coordinator.config import Limits, Timing
from coordinator.jobs.admission import Admitted, admit
from coordinator.jobs.job_log import JobLog
from coordinator.jobs.journal import Recovered
from coordinator.jobs.kept import KeptJobs
from coordinator.jobs.noise_levels import NoiseLevels
from coordinator.jobs.record import JobRecord, Listener
from coordinator.jobs.runner import Runner
from coordinator.lifecycle.job import JobPhase
from ditmesh import telemetry
from ditmesh.errors import (
    DeadlineExceeded,
    Draining,
    JobCancelled,
    JobExists,
    LimitExceeded,
    Overloaded,
    Unavailable,
)
from ditmesh.jobs import spec_digest
from ditmesh.v1 import job_pb2 as pb

_RETRY_AFTER_S = 2.0
# How long a client has until it is expected to send.
_START_S = 2.0
_ADMITTED_AT_ONCE = 2
# Tensors and patches of a job that is admitted at once.
_FEW = 16

_Key = tuple[str, str]


class JobTable:
    """Jobs by owner and id. Bounded by the limits in jobs and in bytes."""

    def __init__(
        self,
        runner: Runner,
        cluster: Cluster,
        limits: Limits,
        timing: Timing,
        journal: JobLog,
    ) -> None:
        self._runner = runner
        self._journal = journal
        self._cluster = cluster
        self._limits = limits
        self._timing = timing
        self._records: dict[_Key, JobRecord] = {}
        # Each of them is in one of these.
        self._active: dict[JobRecord, None] = {}
        self._kept = KeptJobs()
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        """Of jobs that nobody listens to: when they are stopped, or once ended, forgotten."""
        self._reserved = 0
        # Costly schedules are computed on threads, few at once.
        self._admitting = asyncio.Semaphore(_ADMITTED_AT_ONCE)
        self._levels = NoiseLevels()
        self.draining = False
        runner.on_end = self._ended

    @property
    def bytes_in_flight(self) -> int:
        """Tensors held for jobs that have not ended and for single calls, and kept results."""
        # A copy, because metrics ask for this on a thread of their own.
        active = sum(record.admitted.nbytes for record in list(self._active))
        return self._reserved + active + self._kept.nbytes

    @contextmanager
    def reserved(self, nbytes: int) -> Iterator[None]:
        """Room for the tensors of a call that is no job, within the block.

        Raises Overloaded, or LimitExceeded when there can never be so much.
        """
        self._find_bytes(nbytes)
        self._reserved += nbytes
        try:
            yield
        finally:
            self._reserved -= nbytes

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.draining = True

    async def open(
        self,
        spec: pb.JobSpec,
        *,
        scope: str,
        remaining_s: float | None,
        span: telemetry.Span,
    ) -> tuple[JobRecord, bool]:
        """The record of a job, and whether it was known before.

        `remaining_s` is the caller's deadline. Raises InvalidRequest and its kin, JobExists,
        Overloaded, Draining, UnknownModel and DeadlineExceeded; then nothing was taken in.
        """
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the job arrived")
        if not spec.job_id:
            spec.job_id = secrets.token_hex(8)
        digest = spec_digest(spec)
        key = (scope, spec.job_id)
        if key in self._records:
            return self._known(self._records[key], digest), True
        self._make_room(0)
        admitted = await self._admit(spec)
        if key in self._records:
            # Another stream brought it meanwhile.
            return self._known(self._records[key], digest), True
        self._make_room(admitted.nbytes)
        # Executors keep states by this id. A later job may have the client's id again, and must
        # never be continued from the states of this one.
        admitted.spec.job_id += f"-{secrets.token_hex(4)}"
        record = JobRecord(
            job_id=spec.job_id,
            scope=scope,
            digest=digest,
            admitted=admitted,
            span=span,
        )
        self._records[scope, spec.job_id] = record
        self._active[record] = None
        if remaining_s is not None:
            self._set_deadline(record, remaining_s)
        return record, False

    async def _admit(self, spec: pb.JobSpec) -> Admitted:
        model = self._cluster.find_model(spec.model, field="job.model")
        few = len(spec.tensors) <= _FEW and len(spec.weight_patches) <= _FEW
        if few and self._levels.knows(spec, model):
            return admit(spec, model, self._limits, self._levels)
        async with self._admitting:
            return await asyncio.to_thread(admit, spec, model, self._limits, self._levels)

    def restore(self, recovered: Recovered) -> None:
        """Take up a job out of the journal: its result is kept, or it goes on from its state."""
        span = telemetry.start_span("job", parent=recovered.trace, job_id=recovered.job_id)
        record = JobRecord(
            job_id=recovered.job_id,
            scope=recovered.scope,
            digest=recovered.digest,
            admitted=recovered.admitted,
            span=span,
            job=recovered.job,
            snapshot=recovered.snapshot,
            restored=True,
        )
        self._records[record.scope, record.job_id] = record
        self._active[record] = None
        if recovered.end is not None:
            record.restore_end(recovered.end, recovered.summary)
            span.end()
            self._ended(record)
            return
        if recovered.remaining_s is not None:
            self._set_deadline(record, recovered.remaining_s)
        self._runner.submit(record)
        # Clients need to notice, and to find the way back.
        self._expect_client(record, self._timing.settle + self._timing.reattach)

    def attach(self, record: JobRecord) -> Listener:
        """A client listens to the job."""
        listener = Listener()
        record.listeners.add(listener)
        if record.phase.ended:
            listener.end()
        else:
            self._cancel_timer(record)
        return listener

    def detach(self, record: JobRecord, listener: Listener) -> None:
        """A client is gone. The last one leaves a job that runs on for a short while."""
        record.listeners.discard(listener)
        if record.listeners or record.phase.ended:
            return
        self._expect_client(record, self._timing.reattach)

    def _expect_client(self, record: JobRecord, window_s: float) -> None:
        """Nobody listens to the job: it is stopped unless somebody comes in time."""
        gone = JobCancelled(f"nobody came back for the job in {window_s:g} s")
        self._set_timer(record, window_s, lambda: self._runner.stop(record, gone))

    def _set_deadline(self, record: JobRecord, remaining_s: float) -> None:
        loop = asyncio.get_running_loop()
        record.deadline = loop.time() + remaining_s
        late = DeadlineExceeded("the job's deadline passed")
        record.deadline_timer = loop.call_later(remaining_s, self._runner.stop, record, late)

    def _ended(self, record: JobRecord) -> None:
        """Keep the result for whoever comes back, then forget it."""
        del self._active[record]
        self._kept.add(record)
        self._set_timer(record, self._timing.keep_result, lambda: self.forget(record))
        self._drop_kept_results(0)

    def forget(self, record: JobRecord) -> None:
        """Drop the record and all it holds, unless its id is another job's by now."""
        if self._records.get((record.scope, record.job_id)) is not record:
            return
        del self._records[record.scope, record.job_id]
        self._kept.discard(record)
        self._journal.forgotten(record)
        self._cancel_timer(record)

    def _set_timer(self, record: JobRecord, seconds: float, act: Callable[[], None]) -> None:
        self._cancel_timer(record)
        loop = asyncio.get_running_loop()
        self._timers[record.scope, record.job_id] = loop.call_later(seconds, act)

    def _cancel_timer(self, record: JobRecord) -> None:
        timer = self._timers.pop((record.scope, record.job_id), None)
        if timer is not None:
            timer.cancel()

    def _known(self, record: JobRecord, digest: bytes) -> JobRecord:
        if record.digest != digest:
            raise JobExists(
                f"job {record.job_id!r} exists with another spec; choose another id",
                field="job.job_id",
            )
        if record.job is None and not record.phase.ended:
            # Perhaps the client's own stream, which broke without the server having noticed.
            raise Unavailable(
                f"another stream is still sending the inputs of job {record.job_id!r}",
                field="job.job_id",
                retry_after_s=_RETRY_AFTER_S,
            )
        return record

    def _make_room(self, nbytes: int) -> None:
        """Raises Draining or Overloaded when a job cannot be taken now, LimitExceeded if never."""
        if self.draining:
            raise Draining("the coordinator is shutting down", retry_after_s=_RETRY_AFTER_S)
        while (active := len(self._active)) > self._limits.queued_jobs:
            if not self._drop_slowest():
                raise Overloaded(
                    f"{active} jobs are waiting or running; no more are taken for now",
                    retry_after_s=_RETRY_AFTER_S,
                )
        self._find_bytes(nbytes)

    def _find_bytes(self, nbytes: int) -> None:
        """Raises Overloaded when so many bytes do not fit now, LimitExceeded if never."""
        limit = self._limits.in_flight_bytes
        if nbytes > limit:
            raise LimitExceeded(
                f"the tensors of this request, its states and its result are {nbytes} bytes; this "
                f"server holds at most {limit}",
                field="job.tensors",
            )
        self._drop_kept_results(nbytes)
        while (held := self.bytes_in_flight) + nbytes > limit:
            if not self._drop_slowest():
                raise Overloaded(
                    f"{held} of {limit} bytes are in flight; {nbytes} more do not fit now",
                    retry_after_s=_RETRY_AFTER_S,
                )

    def _drop_slowest(self) -> bool:
        """Others need room: a client that sends too slowly, or nothing, loses its stream."""
        now = time.monotonic()
        paces = {
            record: record.received_bytes / (now - record.accepted_at)
            for record in self._active
            if record.phase is JobPhase.RECEIVING and now - record.accepted_at > _START_S
        }
        slowest = min(paces, key=paces.__getitem__, default=None)
        if slowest is None or paces[slowest] >= self._limits.input_bytes_per_s:
            return False
        words = "the job's inputs came too slowly, and others needed its place"
        self._runner.fail(slowest, Overloaded(words, retry_after_s=_RETRY_AFTER_S))
        return True

    def _drop_kept_results(self, wanted: int) -> None:
        """Running work goes before results that nobody has fetched yet: the oldest goes first."""
        excess = self.bytes_in_flight + wanted - self._limits.in_flight_bytes
        for record in self._kept.to_drop(excess, self._limits.kept_jobs):
            self.forget(record)
