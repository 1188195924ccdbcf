"""Sets telemetry up in a process, and shuts it down in bounded time.

Spans and metrics leave on threads of their own. A collector that is down costs a job nothing, the
log one line, and the process at most `SHUTDOWN_S` at its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ditmesh.telemetry import spans
from ditmesh.telemetry.config import TelemetryConfig
from ditmesh.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from ditmesh.telemetry.exporters import Outages

SHUTDOWN_S: Final = 1.5
"""The most seconds that sending the last spans and metrics may take."""

_log = logging.getLogger("ditmesh.telemetry")
_active: Telemetry | None = None


@dataclass
class Pipeline:
    """One way out for spans or metrics."""

    flush: Callable[[], object]
    """Sends what is left and closes; may block for long."""
    abort: Callable[[], object] = lambda: None
    """Makes a `flush` that is under way return."""
    outages: Outages | None = None


class Telemetry:
    """The telemetry of this process, from `setup` to `shutdown`."""

    def __init__(self, metrics: Metrics, pipelines: list[Pipeline]) -> None:
        self.metrics = metrics
        self._pipelines = pipelines

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Sends what is left, for about `timeout_s` seconds at most. Further calls do nothing."""
        pipelines, self._pipelines = self._pipelines, []
        deadline = time.monotonic() + timeout_s
        flushes = []
        for pipeline in pipelines:
            if pipeline.outages is not None and pipeline.outages.failing:
                pipeline.abort()
            # A daemon: one that hangs all the same must not keep the process alive.
            flush = threading.Thread(target=pipeline.flush, name="telemetry-flush", daemon=True)
            flush.start()
            flushes.append((flush, pipeline))
        for flush, pipeline in flushes:
            flush.join(max(0.0, deadline - time.monotonic()))
            if flush.is_alive():
                pipeline.abort()


def setup(config: TelemetryConfig) -> Telemetry:
    """Starts telemetry in this process, in place of any that was started before.

    It starts threads, so it must be called after a fork, in each child, never in the parent.
    Raises OSError when the trace file or the Prometheus address cannot be opened. Where
    OpenTelemetry is not installed it does nothing but say so.
    """
    global _active
    shutdown()
    try:
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        if config.exporters or config.prometheus_address:
            _log.warning("no traces and metrics: install opentelemetry, or ditmesh[node]")
        _active = Telemetry(Metrics(), [])
        return _active
    from ditmesh.telemetry import sdk

    # What it says of every failed export, `Outages` says once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    pipelines: list[Pipeline] = []
    try:
        tracer, meter = sdk.build(config, pipelines)
    except BaseException:
        Telemetry(Metrics(), pipelines).shutdown()
        raise
    spans.use_tracer(tracer)
    _active = Telemetry(Metrics(meter), pipelines)
    return _active


def shutdown() -> None:
    """Ends the telemetry of this process, if there is any, in bounded time."""
    global _active
    ended, _active = _active, None
    spans.use_tracer(None)
    if ended is not None:
        ended.shutdown()
