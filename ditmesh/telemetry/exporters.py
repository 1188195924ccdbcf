"""Exporters of spans: a file of JSON lines, the console, and a guard for any that may fail.

Only `ditmesh.telemetry.sdk` may import this module: it imports the OpenTelemetry SDK.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_log = logging.getLogger("ditmesh.telemetry")


class JsonLinesExporter(SpanExporter):
    """Appends each span as one JSON line; any number of processes may share the file.

    Fields: trace_id, span_id, parent_span_id (hexadecimal; null for a root), name, kind, service,
    instance, pid, start_unix_ns, end_unix_ns, attributes, events (name, unix_ns, attributes),
    status (UNSET, OK, ERROR), status_message. Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes each span in one system call, so that lines of two processes never mix."""
        for span in spans:
            os.write(self._fd, (json.dumps(span_fields(span), ensure_ascii=False) + "\n").encode())
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def span_fields(span: ReadableSpan) -> dict[str, Any]:
    """A span as plain values, named as `JsonLinesExporter` says."""
    resource = span.resource.attributes
    context = span.get_span_context()
    return {
        "trace_id": f"{context.trace_id:032x}" if context else "",
        "span_id": f"{context.span_id:016x}" if context else "",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "name": span.name,
        "kind": span.kind.name,
        "service": resource.get("service.name", ""),
        "instance": resource.get("service.instance.id", ""),
        "pid": resource.get("process.pid", 0),
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "attributes": _plain(span.attributes),
        "events": [
            {"name": e.name, "unix_ns": e.timestamp, "attributes": _plain(e.attributes)}
            for e in span.events
        ],
        "status": span.status.status_code.name,
        "status_message": span.status.description or "",
    }


def console_line(span: ReadableSpan) -> str:
    """A span as one short line for a person."""
    fields = span_fields(span)
    duration_ms = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    attributes = " ".join(f"{key}={value}" for key, value in fields["attributes"].items())
    return (
        f"span {fields['service']} {fields['name']} {duration_ms:.1f} ms {fields['status']} "
        f"trace={fields['trace_id']} {attributes}\n"
    )


class Outages:
    """Says once that a destination cannot be reached, and once that it can again."""

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._lock = threading.Lock()
        self.failing = False

    def note(self, ok: bool, why: str = "") -> None:
        """Takes the outcome of one export, from any thread."""
        with self._lock:
            changed, self.failing = self.failing is ok, not ok
        if changed and ok:
            _log.warning("telemetry reaches %s again", self._destination)
        elif changed:
            _log.warning(
                "telemetry cannot reach %s; jobs go on without%s",
                self._destination,
                f" ({why})" if why else "",
            )


class GuardedSpanExporter(SpanExporter):
    """Another exporter whose failures are noted and never raised."""

    def __init__(self, inner: SpanExporter, outages: Outages) -> None:
        self._inner = inner
        self._outages = outages

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports what the other exporter can."""
        try:
            result = self._inner.export(spans)
        except OSError as error:
            self._outages.note(False, str(error))
            return SpanExportResult.FAILURE
        self._outages.note(result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Ends any export that is under way."""
        self._inner.shutdown()


class GuardedMetricExporter(MetricExporter):
    """Another exporter whose failures are noted."""

    def __init__(self, inner: MetricExporter, outages: Outages) -> None:
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)
        self._inner = inner
        self._outages = outages

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Exports what the other exporter can."""
        result = self._inner.export(metrics_data, timeout_millis, **kwargs)
        self._outages.note(result is MetricExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back here."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Ends any export that is under way."""
        self._inner.shutdown(timeout_millis)


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (attributes or {}).items()
    }
