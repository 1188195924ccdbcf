"""A job's stretch on one executor, as the executor's steps tell of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from coordinator.cluster.cluster import Cluster
from coordinator.executors.executor import Executor
from coordinator.executors.member import StepReport
from coordinator.jobs.job_log import JobLog
from coordinator.jobs.record import JobRecord
from coordinator.jobs.scheduler import Grant
from coordinator.lifecycle.job import JobEvent, JobPhase
from ditmesh import telemetry


class Segments:
    """The segments of all jobs: each tells a record, its trace, the metrics and the journal."""

    def __init__(self, cluster: Cluster, metrics: telemetry.Metrics, journal: JobLog) -> None:
        self.cluster = cluster
        self.metrics = metrics
        self.journal = journal
        self._last: dict[str, float] = {}

    def begin(
        self,
        record: JobRecord,
        grant: Grant,
        span: telemetry.Span,
        on_last_step: Callable[[], None],
    ) -> Segment:
        """An executor has the job. `on_last_step` is called when it has at most one step left."""
        record.begin_segment(grant.executor)
        return Segment(self, record, grant.executor, span, on_last_step)

    def stepped(self, executor: Executor, started: float, now: float) -> float:
        """A step is done; when it began, of a job whose members were told to start at `started`.

        A job that lined up behind another begins when that one's last step is done.
        """
        began = max(self._last.get(executor.name, started), started)
        self._last[executor.name] = now
        return began


class Segment:
    """One job on one executor. `Segments.begin` makes it."""

    def __init__(
        self,
        book: Segments,
        record: JobRecord,
        executor: Executor,
        span: telemetry.Span,
        on_last_step: Callable[[], None],
    ) -> None:
        self._book = book
        self._record = record
        self._executor = executor
        self._span = span
        self._on_last_step = on_last_step
        self._began = time.monotonic()
        self._stepped = False

    def start(self) -> None:
        """Every member was told to begin."""
        self._began = time.monotonic()
        self._record.steps_begin(self._began)

    def step(self, report: StepReport) -> None:
        """A step is done, or the state of one that is known has come."""
        record, book = self._record, self._book
        if record.phase.ended:
            # Stopped while it was lined up; its executor is about to hear of it.
            return
        if report.snapshot is not None:
            record.keep(report.snapshot)
            book.journal.stepped(record)
        if report.step <= record.segments[-1].end_step:
            # Only its state was missing.
            return
        now = time.monotonic()
        began = book.stepped(self._executor, self._began, now)
        # Of steps that come fast, only some are told of.
        count = report.step - record.segments[-1].end_step
        seconds = (now - began) / count
        for _ in range(count):
            book.metrics.step_done(executor=self._executor.name, seconds=seconds)
        if self._stepped:
            # The first step's time has warming up in it.
            model, cells = record.admitted.spec.model, record.admitted.cells
            book.cluster.note_step(self._executor, model, cells, seconds)
        else:
            self._stepped, self._began = True, began
            record.steps_begin(began)
            if record.phase is JobPhase.LINED_UP:
                record.apply(JobEvent.START)
        # Here too: what a rank recorded dies with it.
        self._span.event("step", step=report.step, sigma=report.sigma, seconds=seconds)
        record.step_done(report)
        if record.admitted.steps - report.step <= 1:
            self._on_last_step()

    def end(self) -> None:
        """The executor has it no more."""
        self._record.segments[-1].seconds = time.monotonic() - self._began
