"""Builds the OpenTelemetry SDK's tracer and meter as a config says.

Imports the SDK: only `ditmesh.telemetry.lifecycle` may import this module, when it is installed.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from ditmesh.telemetry.config import TelemetryConfig
from ditmesh.telemetry.exporters import (
    GuardedMetricExporter,
    GuardedSpanExporter,
    JsonLinesExporter,
    Outages,
    console_line,
)
from ditmesh.telemetry.lifecycle import Pipeline
from ditmesh.telemetry.prometheus import PrometheusEndpoint

_EXPORT_TIMEOUT_S: Final = 3.0
_SPAN_DELAY_MS: Final = 500.0
_METRIC_DELAY_MS: Final = 15_000.0
_QUEUE_SPANS: Final = 16_384


def build(config: TelemetryConfig, pipelines: list[Pipeline]) -> tuple[Tracer | None, Meter | None]:
    """A tracer and a meter, each None if nothing would come of it.

    Every way out that was opened is added to `pipelines`, also when a later one fails. Raises
    OSError when the trace file or the Prometheus address cannot be opened.
    """
    attributes: dict[str, str | int] = {
        "service.name": config.service_name,
        "process.pid": os.getpid(),
    }
    if config.service_instance:
        attributes["service.instance.id"] = config.service_instance
    # Not Resource.create, which adds what it finds in the environment.
    resource = Resource({**attributes})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sampling_ratio)),
        resource=resource,
        shutdown_on_exit=False,  # its shutdown knows no bound
    )
    readers: list[MetricReader] = []
    if "file" in config.exporters and config.trace_file is not None:
        outages = Outages(str(config.trace_file))
        pipelines.append(_export(provider, JsonLinesExporter(config.trace_file), outages))
    if "console" in config.exporters:
        console = ConsoleSpanExporter(out=sys.stderr, formatter=console_line)
        pipelines.append(_export(provider, console, Outages("stderr")))
    if config.prometheus_address:
        memory = InMemoryMetricReader()
        endpoint = PrometheusEndpoint(config.prometheus_address, memory.get_metrics_data)
        readers.append(memory)
        pipelines.append(Pipeline(endpoint.close))
    if "otlp" in config.exporters:
        _add_otlp(config.otlp_endpoint, provider, readers, pipelines)
    meters = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
    return (
        provider.get_tracer("ditmesh") if config.exporters else None,
        meters.get_meter("ditmesh") if readers else None,
    )


def _export(provider: TracerProvider, exporter: SpanExporter, outages: Outages) -> Pipeline:
    # Never SimpleSpanProcessor: it exports in the middle of the call that ends a span.
    processor = BatchSpanProcessor(
        GuardedSpanExporter(exporter, outages),
        max_queue_size=_QUEUE_SPANS,
        schedule_delay_millis=_SPAN_DELAY_MS,
    )
    provider.add_span_processor(processor)
    return Pipeline(processor.shutdown)


def _add_otlp(
    endpoint: str,
    provider: TracerProvider,
    readers: list[MetricReader],
    pipelines: list[Pipeline],
) -> None:
    """Sends spans and metrics to a collector."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    insecure = not endpoint.startswith("https://")
    outages = Outages(endpoint)
    spans = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S)
    flush = _export(provider, spans, outages).flush
    pipelines.append(Pipeline(flush, spans.shutdown, outages))
    metrics = OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S)
    reader = PeriodicExportingMetricReader(
        GuardedMetricExporter(metrics, outages), export_interval_millis=_METRIC_DELAY_MS
    )
    readers.append(reader)
    pipelines.append(Pipeline(reader.shutdown, metrics.shutdown, outages))
