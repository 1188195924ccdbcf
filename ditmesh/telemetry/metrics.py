"""The metrics of ditmesh.

    name                     kind       unit        attributes
    ditmesh.jobs             counter    {job}       model, outcome
    ditmesh.job.duration     histogram  s           model, outcome
    ditmesh.steps            counter    {step}      executor
    ditmesh.step.duration    histogram  s           executor
    ditmesh.queue.length     up-down    {job}
    ditmesh.queue.limit      up-down    {job}
    ditmesh.bytes_in_flight  up-down    By
    ditmesh.bytes_in_flight.limit       up-down  By
    ditmesh.group.ranks      up-down    {rank}
    ditmesh.group.ranks_expected        up-down  {rank}
    ditmesh.nodes            up-down    {node}      state
    ditmesh.local.available  up-down    {sampler}
    ditmesh.fallbacks        counter    {fallback}  reason, from, to
    ditmesh.predict.calls    counter    {call}      executor, outcome

Attributes are named `ditmesh.model` and so on. `outcome` is OK or the reason of an error of
`ditmesh.errors`, `executor` is group or local, `state` is that of a node or left_out, for one that
answers but fails to load its models or to join: all of them take few values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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

    def observe(self, readings: Mapping[str, Callable[[], int]]) -> None:
        """Has each function asked, on another thread, whenever metrics are collected.

        `readings`: up-down counters of the table above, by name, but for `ditmesh.nodes`.
        """
        for name, read in readings.items():
            self._observe(name, lambda read=read: {"": read()})  # type: ignore[misc]

    def observe_nodes(self, by_state: Callable[[], Mapping[str, int]]) -> None:
        """As `observe`, for the number of nodes in each state."""
        self._observe("ditmesh.nodes", by_state)

    def _observe(self, name: str, read: Callable[[], Mapping[str, int]]) -> None:
        if self._meter is not None:
            unit, words = _READINGS[name]
            self._meter.create_observable_up_down_counter(name, [_observing(read)], unit, words)


_READINGS: Final = {
    "ditmesh.queue.length": ("{job}", "Jobs that wait"),
    "ditmesh.queue.limit": ("{job}", "Jobs that may wait"),
    "ditmesh.bytes_in_flight": ("By", "Bytes of tensors held for jobs"),
    "ditmesh.bytes_in_flight.limit": ("By", "Bytes of tensors that may be held for jobs"),
    "ditmesh.group.ranks": ("{rank}", "Ranks of the group; 0 when there is none"),
    "ditmesh.group.ranks_expected": ("{rank}", "Ranks that the whole group would have"),
    "ditmesh.nodes": ("{node}", "Nodes by state"),
    "ditmesh.local.available": ("{sampler}", "1 when the local sampler can take work"),
}


def _observing(
    read: Callable[[], Mapping[str, int]],
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: Any) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        return [
            Observation(value, {"ditmesh.state": state} if state else {})
            for state, value in read().items()
        ]

    return observe
