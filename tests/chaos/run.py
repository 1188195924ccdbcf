"""Runs a plan against a cluster: hits jobs, watches them, compares what they give."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ditmesh.client import Accepted, JobHandle, Progress, SampleResult
from ditmesh.errors import DitmeshError
from tests.chaos.faults import Fault
from tests.chaos.jobs import RECIPES, Planned, recipe
from tests.chaos.site import RETURN_S, Site

TOLERANCE = 1e-4
"""Largest difference from the undisturbed run, in model space."""
JOB_S = 240.0
"""A job that takes longer counts as lost."""
_TRIES = 3

Latent = npt.NDArray[np.float32]


@dataclass
class Report:
    """What became of one job."""

    job_id: str
    recipe: int
    steps: int
    error: str = ""
    difference: float = float("nan")
    seconds: float = 0.0
    fault: str = ""
    hit_after_step: int = 0
    counted: bool = False
    """Whether the fault hit between the first and the last step."""
    pause_s: float = 0.0
    """The longest time without a new step from the fault on."""
    cost_s: float = 0.0
    """That pause, less a step's usual time."""
    repeated_steps: int = 0
    rung: str = ""
    """Who answered the fault."""
    noticed_s: float | None = None
    """Seconds from a kill until the coordinator knew of it."""

    @property
    def lost(self) -> bool:
        """Whether the client got an error or nothing."""
        return bool(self.error)

    @property
    def wrong(self) -> bool:
        """Whether the client got another latent than an undisturbed run gives."""
        return not self.lost and not self.difference <= TOLERANCE


@dataclass
class _Watched:
    """A job's events with their times, read on a thread of its own."""

    handle: JobHandle
    steps: list[tuple[float, int]] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for_step(self, step: int) -> bool:
        """Whether that step was reported before the job ended."""
        with self._news:
            self._news.wait_for(lambda: self.ended.is_set() or self.newest >= step, JOB_S)
            return self.newest >= step and not self.ended.is_set()

    @property
    def newest(self) -> int:
        """The last step that was reported."""
        return self.steps[-1][1] if self.steps else 0

    def _read(self) -> None:
        try:
            for event in self.handle:
                if isinstance(event, Accepted):
                    self.accepted.append(event.resumed)
                elif isinstance(event, Progress):
                    with self._news:
                        self.steps.append((time.monotonic(), event.step))
                        self._news.notify_all()
        except DitmeshError as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            with self._news:
                self.ended.set()
                self._news.notify_all()


class Chaos:
    """One run. `tell` hears a line about every job."""

    def __init__(self, site: Site, *, steps: int, tell: Callable[[str], None]) -> None:
        self._site = site
        self._steps = steps
        self._tell = tell
        self._references: dict[int, Latent] = {}
        self.reports: list[Report] = []

    def sample_references(self, recipes: Iterable[int] = range(RECIPES)) -> None:
        """Each recipe once, undisturbed, on the whole group."""
        for number in recipes:
            result = self._site.user.sample(**recipe(number, self._steps))
            assert not result.summary.fallbacks, result.summary
            self._references[number] = result.latent

    def run(self, hit: Sequence[Planned], beside: Sequence[Planned]) -> None:
        """Hit the jobs one after the other, while the others come along on another stream."""
        waiting = list(reversed(beside))
        done = threading.Event()

        def go_along() -> None:
            while waiting:
                self._one(waiting.pop())
                # Spread over the whole run.
                share = (len(beside) - len(waiting)) / max(len(beside), 1)
                while share > (self._hits + 1) / max(len(hit), 1) and not done.wait(0.2):
                    pass

        self._hits = 0
        other = threading.Thread(target=go_along, daemon=True)
        other.start()
        for planned in hit:
            for attempt in range(_TRIES):
                self._site.wait(self._site.whole, "the whole group", timeout_s=RETURN_S)
                again = f"{planned.job_id}.{attempt}"
                if self._one(planned, job_id=again).counted:
                    break
            self._hits += 1
            self._site.note_shared_memory()
        done.set()
        other.join()

    def _one(self, planned: Planned, *, job_id: str = "") -> Report:
        job = recipe(planned.recipe, planned.steps)
        fault = planned.fault
        if fault is not None and fault.local:
            job["fallback"] = "local_only"
        report = Report(job_id or planned.job_id, planned.recipe, job["steps"])
        started = time.monotonic()
        handle = self._site.user.start(**job, job_id=report.job_id)
        watched = _Watched(handle)
        watched.start()
        if fault is not None:
            self._hurt(planned, fault, watched, report)
        if not watched.ended.wait(JOB_S):
            watched.error = f"not done after {JOB_S:.0f} s, at step {watched.newest}"
        report.seconds = time.monotonic() - started
        report.error = watched.error
        if report.error:
            handle.close()
        else:
            self._judge(report, watched, handle.result())
        self.reports.append(report)
        self._tell(line(report))
        if report.lost or report.wrong:
            self._tell(self._site.logs(40))
        return report

    def _hurt(self, planned: Planned, fault: Fault, watched: _Watched, report: Report) -> None:
        report.fault = fault.name
        if not watched.wait_for_step(planned.at_step):
            return
        try:
            before = time.monotonic()
            # Another attempt is another draw, the same in every run.
            draw = random.Random(f"{planned.seed} {report.job_id}")
            undo = fault.inject(self._site, draw)
        except Exception:
            # The cluster is not as it should be between two faults: that is a finding.
            watched.error = f"the fault could not be injected: {traceback.format_exc()}"
            return
        report.hit_after_step = watched.newest
        report.counted = not watched.ended.is_set() and 0 < watched.newest < report.steps
        watched.ended.wait(JOB_S if fault.hold_s is None else fault.hold_s)
        undo()
        watched.ended.wait(JOB_S)
        self._measure(report, watched, before)
        if fault.kills:
            report.noticed_s = self._site.noticed_s()

    @staticmethod
    def _measure(report: Report, watched: _Watched, hurt_at: float) -> None:
        """Time and steps that the fault cost."""
        times, newest = [], 0
        for at, step in [*watched.steps, (time.monotonic(), report.steps + 1)]:
            if step > newest:
                times.append(at)
                newest = step
            else:
                report.repeated_steps += 1
        gaps = [(b - a, b) for a, b in itertools.pairwise(times)]
        before = [gap for gap, end in gaps if end <= hurt_at]
        after = [gap for gap, end in gaps if end > hurt_at]
        report.pause_s = max(after, default=0.0)
        report.cost_s = max(report.pause_s - (statistics.median(before) if before else 0.0), 0.0)

    def _judge(self, report: Report, watched: _Watched, result: SampleResult) -> None:
        reference = self._references[report.recipe]
        report.difference = float(np.abs(result.latent - reference).max())
        report.rung = _rung(watched, result)


def _rung(watched: _Watched, result: SampleResult) -> str:
    """Who answered the fault."""
    segments, parts = result.summary.segments, []
    if len(watched.accepted) > 1:
        if segments[0].first_step:
            parts.append("journal")
        parts.append(
            "client took the job up again" if watched.accepted[-1] else "client sent again"
        )
    for before, after in itertools.pairwise(segments):
        if after.executor == "local":
            parts.append("local sampler")
        elif before.executor == "local":
            parts.append("back to the group")
        else:
            parts.append(f"group of {after.ranks}")
    return ", ".join(dict.fromkeys(parts)) or "none was needed"


def line(report: Report) -> str:
    """A report for people."""
    if report.lost:
        return f"{report.job_id}: LOST after '{report.fault}': {report.error}"
    verdict = "WRONG" if report.wrong else "right"
    text = f"{report.job_id}: {verdict} ({report.difference:.1e}) in {report.seconds:.1f} s"
    if report.fault:
        text += (
            f"; {report.fault} after step {report.hit_after_step} of {report.steps}"
            f"{'' if report.counted else ' (too late to count)'}: pause {report.pause_s:.2f} s, "
            f"{report.repeated_steps} repeated, {report.rung}"
        )
    return text
