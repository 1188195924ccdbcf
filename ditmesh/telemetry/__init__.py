"""Traces and metrics of every process, with the OpenTelemetry SDK where it is installed.

A process calls `setup` once, after any fork, and `shutdown` at its end. Between them:

    with server_span("ditmesh.v1.SamplerService/Sample", context.invocation_metadata()) as call:
        with span("queue", job_id=job_id):
            ...
        with client_span("ditmesh.v1.NodeService/Run"):
            stub.Run(requests, metadata=current_metadata())
        call.event("step", step=1)

One trace runs from the client through the coordinator to every node. `render_trace` shows it.
"""

from ditmesh.telemetry.config import EXPORTERS, TelemetryConfig
from ditmesh.telemetry.lifecycle import SHUTDOWN_S, Telemetry, setup, shutdown
from ditmesh.telemetry.metrics import Metrics
from ditmesh.telemetry.propagation import Metadata, TraceContext, extract, inject
from ditmesh.telemetry.rendering import latest_trace_id, render_trace
from ditmesh.telemetry.spans import (
    Span,
    add_event,
    client_span,
    current_metadata,
    current_span,
    recording,
    server_span,
    span,
    start_span,
)

__all__ = [
    "EXPORTERS",
    "SHUTDOWN_S",
    "Metadata",
    "Metrics",
    "Span",
    "Telemetry",
    "TelemetryConfig",
    "TraceContext",
    "add_event",
    "client_span",
    "current_metadata",
    "current_span",
    "extract",
    "inject",
    "latest_trace_id",
    "recording",
    "render_trace",
    "server_span",
    "setup",
    "shutdown",
    "span",
    "start_span",
]
