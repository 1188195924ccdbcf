"""The metrics of ditmesh.

    name                     kind       unit        attributes
    ditmesh.jobs             counter    {job}       model, outcome
    ditmesh.job.duration     histogram  s           model, outcome
    ditmesh.steps            counter    {step}      executor
    ditmesh.step.duration    histogram  s           executor
    ditmesh.queue.length     up-down    {job}
    ditmesh.bytes_in_flight  up-down    By
    ditmesh.fallbacks        counter    {fallback}  reason, from, to
    ditmesh.predict.calls    counter    {call}      executor, outcome

Attributes are named `ditmesh.model` and so on. `outcome` is OK or the reason of an error of
`ditmesh.errors`, `executor` is group or local: all of them take few values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

# Seconds. A step takes 5 ms to seconds, a job up to many minutes.
_STEP_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_JOB_BOUNDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """The instruments of one process. Every method may be called from any thread, at any time.

    `meter` is OpenTelemetry's; without one nothing is measured.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter
        if meter is None:
            return
        self._jobs = meter.create_counter("ditmesh.jobs", "{job}", "Jobs that ended")
        self._job_duration = meter.create_histogram(
            "ditmesh.job.duration",
            "s",
            "Time from acceptance to the end of a job",
            explicit_bucket_boundaries_advisory=_JOB_BOUNDS,
        )
        self._steps = meter.create_counter("ditmesh.steps", "{step}", "Steps that were sampled")
        self._step_duration = meter.create_histogram(
            "ditmesh.step.duration",
            "s",
            "Time of one step",
            explicit_bucket_boundaries_advisory=_STEP_BOUNDS,
        )
        self._fallbacks = meter.create_counter(
            "ditmesh.fallbacks", "{fallback}", "Times that work moved to another executor"
        )
        self._predict_calls = meter.create_counter(
            "ditmesh.predict.calls", "{call}", "Single transformer calls that were answered"
        )

    def job_ended(self, *, model: str, outcome: str, seconds: float) -> None:
        """Counts a job. `model` must be one that is served, or empty."""
        if self._meter is not None:
            attributes = {"ditmesh.model": model, "ditmesh.outcome": outcome}
            self._jobs.add(1, attributes)
            self._job_duration.record(seconds, attributes)

    def step_done(self, *, executor: str, seconds: float) -> None:
        """Counts a step."""
        if self._meter is not None:
            attributes = {"ditmesh.executor": executor}
            self._steps.add(1, attributes)
            self._step_duration.record(seconds, attributes)

    def fell_back(self, *, reason: str, source: str, target: str) -> None:
        """Counts a move of work from one executor to another."""
        if self._meter is not None:
            self._fallbacks.add(
                1, {"ditmesh.reason": reason, "ditmesh.from": source, "ditmesh.to": target}
            )

    def predict_answered(self, *, executor: str, outcome: str) -> None:
        """Counts a single transformer call."""
        if self._meter is not None:
            attributes = {"ditmesh.executor": executor, "ditmesh.outcome": outcome}
            self._predict_calls.add(1, attributes)

    def observe_load(
        self, *, queue_length: Callable[[], int], bytes_in_flight: Callable[[], int]
    ) -> None:
        """Has both functions asked, on another thread, whenever metrics are collected."""
        if self._meter is None:
            return
        self._meter.create_observable_up_down_counter(
            "ditmesh.queue.length", [_observing(queue_length)], "{job}", "Jobs that wait"
        )
        self._meter.create_observable_up_down_counter(
            "ditmesh.bytes_in_flight",
            [_observing(bytes_in_flight)],
            "By",
            "Bytes of tensors held for jobs",
        )


def _observing(
    function: Callable[[], int],
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: Any) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(function())]

    return observe
