"""One job as the coordinator holds it: its value, its lifecycle, its history, its listeners."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.executors.executor import Executor
from coordinator.executors.member import RunEnd, StepReport
from coordinator.executors.stopping import StopRequest
from coordinator.jobs.admission import Admitted
from coordinator.jobs.scheduler import Claim
from coordinator.lifecycle.job import JobEffect, JobEvent, JobPhase, advance
from coordinator.lifecycle.ladder import Decision
from coordinator.lifecycle.losses import Losses
from ditmesh import telemetry
from ditmesh.errors import DitmeshError, InternalError
from ditmesh.jobs import Job, Snapshot
from ditmesh.v1 import job_pb2
from ditmesh.v1 import sampler_pb2 as pb

_MAX_UNREAD = 32
_NO_SPEC = job_pb2.JobSpec()


class Listener:
    """A client's view of a job: messages in order. Old progress goes before memory grows."""

    def __init__(self) -> None:
        self._messages: deque[pb.SampleResponse] = deque(maxlen=_MAX_UNREAD)
        self._wake = asyncio.Event()
        self._ended = False

    def push(self, message: pb.SampleResponse) -> None:
        """Add a message; the oldest goes when the client does not keep up.

        Only the newest preview is kept: previews are large, and the older ones are of no use.
        """
        if _has_preview(message):
            for i, unread in enumerate(self._messages):
                if _has_preview(unread):
                    self._messages[i] = _without_preview(unread)
        self._messages.append(message)
        self._wake.set()

    def end(self) -> None:
        """The job has ended: `next` gives None once everything before is read."""
        self._ended = True
        self._wake.set()

    async def next(self) -> pb.SampleResponse | None:
        """The next message, or None at the end of the job."""
        while not self._messages:
            if self._ended:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._messages.popleft()


def _has_preview(message: pb.SampleResponse) -> bool:
    return message.HasField("progress") and message.progress.HasField("preview")


def _without_preview(message: pb.SampleResponse) -> pb.SampleResponse:
    # A copy: other listeners have the same message.
    plain = pb.SampleResponse()
    plain.CopyFrom(message)
    plain.progress.ClearField("preview")
    return plain


def bare(error: DitmeshError) -> DitmeshError:
    """The same error without the frames that it came through: they hold the job's tensors."""
    return type(error)(error.message, field=error.field, retry_after_s=error.retry_after_s)


@dataclass(frozen=True)
class Moved:
    """Why a job left an executor: a short code, and words."""

    reason: str
    message: str


@dataclass(eq=False)
class JobRecord:
    """A job's mutable record. Only `apply` changes its phase. Times are time.monotonic()."""

    job_id: str
    scope: str
    """The identity of the client that owns it."""
    digest: bytes
    admitted: Admitted
    span: telemetry.Span
    deadline: float | None = None
    deadline_timer: asyncio.TimerHandle | None = None
    phase: JobPhase = JobPhase.RECEIVING
    job: Job | None = None
    snapshot: Snapshot | None = None
    """Its newest state. Others set it by `keep`, `catch_up`, `take_back` and `begin_again`."""
    compared: Snapshot | None = None
    """The state before that: ranks compare theirs before each step, so all had this one."""
    error: DitmeshError | None = None
    moved: Moved | None = None
    """Why the last executor has it no more, until the next one has it."""
    losses: Losses = field(default_factory=Losses)
    restored: bool = False
    """Whether it comes out of the journal, and its executors may hold newer states."""
    group_excluded: str = ""
    end: RunEnd | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    task: asyncio.Task[None] | None = None
    claim: Claim | None = None
    received_bytes: int = 0
    """Of its inputs, while they come."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has ended."""
    unpin: Callable[[], None] = lambda: None
    """Lets the cached tensors of its inputs go."""
    segments: list[pb.Segment] = field(default_factory=list)
    fallbacks: list[pb.Fallback] = field(default_factory=list)
    listeners: set[Listener] = field(default_factory=set)
    accepted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    _summary: pb.JobSummary | None = None

    def apply(self, event: JobEvent) -> tuple[JobEffect, ...]:
        """Advance the lifecycle; returns what the caller must do."""
        self.phase, effects = advance(self.phase, event)
        return effects

    @property
    def reached(self) -> int:
        """Steps finished, with those whose state did not come."""
        return max(self.step, self.segments[-1].end_step if self.segments else 0)

    @property
    def step(self) -> int:
        """Steps finished in the newest state: the job goes on from there."""
        return self.snapshot.step if self.snapshot is not None else self.admitted.first_step

    def keep(self, snapshot: Snapshot) -> None:
        """There is a newer state."""
        self.snapshot, self.compared = snapshot, self.snapshot

    def catch_up(self, snapshot: Snapshot) -> None:
        """A member of the lost executor has a newer state than it told of.

        Of a job out of the journal, the executor that it had is not known any more.
        """
        self.keep(snapshot)
        if self.segments:
            self.segments[-1].end_step = self.reached

    def take_back(self) -> None:
        """The ranks differ in what the last step made: go on from a state that all of them had."""
        if self.segments[-1].first_step < self.step == self.reached:
            self.snapshot = self.compared

    def begin_again(self) -> None:
        """None of its states is to be trusted."""
        self.snapshot = self.compared = None

    def current_job(self) -> Job:
        """The job as it goes on from its newest state."""
        if self.job is None:
            raise InternalError("a job without inputs was started")
        return self.job.continued_from(self.snapshot) if self.snapshot is not None else self.job

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, if there is one."""
        if self.deadline is None:
            return None
        return max(self.deadline - asyncio.get_running_loop().time(), 0.0)

    def fallback_to(self, executor: Executor, decision: Decision) -> pb.Fallback | None:
        """The change of executor that begins now; None when the job goes where it belongs."""
        moved, self.moved = self.moved, None
        if moved is None and decision.reason in ("", "LOCAL_ONLY"):
            return None
        words = [moved.message] if moved is not None else []
        if decision.message:
            words.append(decision.message)
        source = self.segments[-1].executor if self.segments else "group"
        done = self.segments[-1].end_step if self.segments else self.step
        return pb.Fallback(
            source=source,
            target=executor.name,
            reason=moved.reason if moved is not None else decision.reason,
            message="; ".join(words),
            at_step=self.step,
            repeated_steps=max(done - self.step, 0),
        )

    def begin_segment(self, executor: Executor) -> None:
        """An executor starts to work on the job."""
        self.stop = StopRequest()
        self.segments.append(
            pb.Segment(
                executor=executor.name,
                epoch=executor.epoch,
                ranks=len(executor.members),
                mesh=executor.degrees,
                first_step=self.step,
                end_step=self.step,
            )
        )

    def steps_begin(self, at: float) -> None:
        """An executor is ready and begins its first step; or turns out to have begun it then."""
        if self.started_at is None or len(self.segments) == 1:
            self.started_at = at

    def step_done(self, report: StepReport) -> None:
        """Tell the listeners."""
        segment = self.segments[-1]
        segment.end_step = report.step
        progress = pb.Progress(
            step=report.step,
            steps=self.admitted.steps,
            sigma=report.sigma,
            executor=segment.executor,
        )
        if report.preview is not None:
            progress.preview.CopyFrom(report.preview)
        self.tell(pb.SampleResponse(progress=progress))

    def tell(self, message: pb.SampleResponse) -> None:
        """Send a message to every listener."""
        for listener in self.listeners:
            listener.push(message)

    def finish(self) -> None:
        """The job has ended: free what nobody who comes back is told, and wake the listeners."""
        self.ended_at = time.monotonic()
        self.over.set()
        self.begin_again()
        self.job = self.claim = None
        self.admitted = replace(self.admitted, spec=_NO_SPEC, specs=())
        self.unpin()
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        for listener in self.listeners:
            listener.end()

    def restore_end(self, end: RunEnd, summary: pb.JobSummary | None) -> None:
        """The job ended before this process began."""
        self.phase, self.end, self._summary = JobPhase.SUCCEEDED, end, summary
        self.finish()

    def summary(self) -> pb.JobSummary:
        """Who did what."""
        if self._summary is not None:
            return self._summary
        ended = self.ended_at if self.ended_at is not None else time.monotonic()
        started = self.started_at if self.started_at is not None else ended
        return pb.JobSummary(
            job_id=self.job_id,
            trace_id=self.span.trace_id,
            segments=self.segments,
            fallbacks=self.fallbacks,
            queue_seconds=started - self.accepted_at,
            run_seconds=ended - started,
        )
