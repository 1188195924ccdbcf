"""Metrics as Prometheus text, served over HTTP.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/, the names follow
https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/.
Only `ditmesh.telemetry.sdk` may import this module: it imports the OpenTelemetry SDK.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    Sum,
)

_UNITS: Final = {"s": "seconds", "By": "bytes"}


class PrometheusEndpoint:
    """Serves GET /metrics at host:port on a thread. Raises OSError when the address is taken."""

    def __init__(self, address: str, collect: Callable[[], MetricsData | None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                body = prometheus_text(collect()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """A scrape every few seconds is no news."""

        host, _, port = address.rpartition(":")
        self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(
            target=self._server.serve_forever,
            args=(0.1,),  # s, how often it looks whether to stop
            name="telemetry-prometheus",
            daemon=True,
        ).start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


def prometheus_text(data: MetricsData | None) -> str:
    """All metrics in the text format; empty when there are none."""
    lines: list[str] = []
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                lines += _metric_lines(metric)
    return "".join(f"{line}\n" for line in lines)


def _metric_lines(metric: Metric) -> Iterator[str]:
    name, unit = metric.name.replace(".", "_"), _UNITS.get(metric.unit or "", "")
    if unit not in name.split("_"):
        name = f"{name}_{unit}".rstrip("_")
    counter = isinstance(metric.data, Sum) and metric.data.is_monotonic
    if counter:
        name += "_total"
    points = metric.data.data_points
    histogram = any(isinstance(point, HistogramDataPoint) for point in points)
    yield f"# HELP {name} {metric.description}"
    yield f"# TYPE {name} {'histogram' if histogram else 'counter' if counter else 'gauge'}"
    for point in points:
        if isinstance(point, HistogramDataPoint):
            yield from _histogram_lines(name, point)
        elif isinstance(point, NumberDataPoint):
            yield f"{name}{_labels(point.attributes)} {point.value}"


def _histogram_lines(name: str, point: HistogramDataPoint) -> Iterator[str]:
    below = 0
    bounds = [*(str(bound) for bound in point.explicit_bounds), "+Inf"]
    for bound, count in zip(bounds, point.bucket_counts, strict=True):
        below += count
        yield f"{name}_bucket{_labels(point.attributes, le=bound)} {below}"
    yield f"{name}_sum{_labels(point.attributes)} {point.sum}"
    yield f"{name}_count{_labels(point.attributes)} {point.count}"


def _labels(attributes: Mapping[str, Any] | None, **more: str) -> str:
    pairs = {**(attributes or {}), **more}
    quoted = []
    for key, value in pairs.items():
        text = str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        quoted.append(f'{key.replace(".", "_")}="{text}"')
    return "{" + ",".join(quoted) + "}" if quoted else ""
