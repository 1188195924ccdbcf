"""Sets telemetry up in a process, and shuts it down in bounded time.

Spans and metrics leave on threads of their own. A collector that is down costs a job nothing, the
log one line, and the process at most `SHUTDOWN_S` at its end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ditmesh.telemetry import spans
from ditmesh.telemetry.config import TelemetryConfig
from ditmesh.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from ditmesh.telemetry.exporters import Outages

SHUTDOWN_S: Final = 1.5
"""The most seconds that sending the last spans and metrics may take."""

_EXPORT_TIMEOUT_S: Final = 5.0
_SPAN_DELAY_MS: Final = 500.0
_METRIC_DELAY_MS: Final = 15_000.0
_QUEUE_SPANS: Final = 16_384

_log = logging.getLogger("ditmesh.telemetry")
_active: Telemetry | None = None


@dataclass
class _Pipeline:
    """One way out for spans or metrics."""

    flush: Callable[[], object]
    """Sends what is left and closes; may block for long."""
    abort: Callable[[], object] = lambda: None
    """Makes a `flush` that is under way return."""
    outages: Outages | None = None


class Telemetry:
    """The telemetry of this process, from `setup` to `shutdown`."""

    def __init__(self, metrics: Metrics, pipelines: list[_Pipeline]) -> None:
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
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        if config.exporters or config.prometheus_address:
            _log.warning("no traces and metrics: install opentelemetry, or ditmesh[node]")
        _active = Telemetry(Metrics(), [])
        return _active
    # What it says of every failed export, `Outages` says once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    pipelines: list[_Pipeline] = []
    resource = _resource(config)
    try:
        if config.exporters:
            _setup_spans(config, resource, pipelines)
        metrics = _setup_metrics(config, resource, pipelines)
    except BaseException:
        Telemetry(Metrics(), pipelines).shutdown()
        raise
    _active = Telemetry(metrics, pipelines)
    return _active


def shutdown() -> None:
    """Ends the telemetry of this process, if there is any, in bounded time."""
    global _active
    ended, _active = _active, None
    spans.use_tracer(None)
    if ended is not None:
        ended.shutdown()


def _resource(config: TelemetryConfig) -> Resource:
    from opentelemetry.sdk.resources import Resource

    attributes: dict[str, str | int] = {
        "service.name": config.service_name,
        "process.pid": os.getpid(),
    }
    if config.service_instance:
        attributes["service.instance.id"] = config.service_instance
    return Resource({**attributes})


def _setup_spans(config: TelemetryConfig, resource: Resource, pipelines: list[_Pipeline]) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
    )
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from ditmesh.telemetry.exporters import GuardedSpanExporter, JsonLinesExporter, console_line

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sampling_ratio)),
        resource=resource,
        shutdown_on_exit=False,  # its shutdown knows no bound
    )

    def add(exporter: SpanExporter, what: str) -> None:
        guarded = GuardedSpanExporter(exporter, what)
        # Never SimpleSpanProcessor: it exports in the middle of the call that ends a span.
        processor = BatchSpanProcessor(
            guarded, max_queue_size=_QUEUE_SPANS, schedule_delay_millis=_SPAN_DELAY_MS
        )
        provider.add_span_processor(processor)
        pipelines.append(_Pipeline(processor.shutdown, exporter.shutdown, guarded.outages))

    if "file" in config.exporters and config.trace_file is not None:
        add(JsonLinesExporter(config.trace_file), f"spans to {config.trace_file}")
    if "console" in config.exporters:
        add(ConsoleSpanExporter(out=sys.stderr, formatter=console_line), "spans to stderr")
    if "otlp" in config.exporters:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        add(
            OTLPSpanExporter(
                endpoint=config.otlp_endpoint,
                insecure=not config.otlp_endpoint.startswith("https://"),
                timeout=_EXPORT_TIMEOUT_S,
            ),
            f"spans to {config.otlp_endpoint}",
        )
    spans.use_tracer(provider.get_tracer("ditmesh"))


def _setup_metrics(
    config: TelemetryConfig, resource: Resource, pipelines: list[_Pipeline]
) -> Metrics:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        InMemoryMetricReader,
        MetricReader,
        PeriodicExportingMetricReader,
    )

    readers: list[MetricReader] = []
    if "otlp" in config.exporters:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        from ditmesh.telemetry.exporters import GuardedMetricExporter

        exporter = OTLPMetricExporter(
            endpoint=config.otlp_endpoint,
            insecure=not config.otlp_endpoint.startswith("https://"),
            timeout=_EXPORT_TIMEOUT_S,
        )
        guarded = GuardedMetricExporter(exporter, f"metrics to {config.otlp_endpoint}")
        reader = PeriodicExportingMetricReader(guarded, export_interval_millis=_METRIC_DELAY_MS)
        readers.append(reader)
        pipelines.append(_Pipeline(reader.shutdown, exporter.shutdown, guarded.outages))
    if config.prometheus_address:
        from ditmesh.telemetry.prometheus import PrometheusEndpoint

        memory = InMemoryMetricReader()
        endpoint = PrometheusEndpoint(config.prometheus_address, memory.get_metrics_data)
        readers.append(memory)
        pipelines.append(_Pipeline(endpoint.close))
    if not readers:
        return Metrics()
    provider = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
    return Metrics(provider.get_meter("ditmesh"))
