"""What telemetry a process wants: one frozen value, read once at start by whoever owns it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXPORTERS: Final = ("otlp", "console", "file")
"""Where spans can go; any combination."""


@dataclass(frozen=True)
class TelemetryConfig:
    """Telemetry of one process. Raises ValueError when the values do not fit together.

    service_name: what this process is: coordinator, gpu_node, ...
    service_instance: which one of several, such as its address.
    exporters: any of `EXPORTERS`. None of them: no spans, but trace contexts still pass through.
    otlp_endpoint: host:port or URL of an OTLP/gRPC collector, for spans and metrics; https for TLS.
    trace_file: for "file": one JSON line a span; several processes may share it.
    prometheus_address: host:port at which metrics are served as text under /metrics; empty: none.
    sampling_ratio: share of the traces that begin here and are recorded, 0 to 1. A trace that
        began elsewhere is recorded if its beginner says so.
    """

    service_name: str
    service_instance: str = ""
    exporters: tuple[str, ...] = ()
    otlp_endpoint: str = "localhost:4317"
    trace_file: Path | None = None
    prometheus_address: str = ""
    sampling_ratio: float = 1.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.exporters if name not in EXPORTERS]
        if unknown:
            raise ValueError(f"exporters must be among {', '.join(EXPORTERS)}, got {unknown}")
        if "file" in self.exporters and self.trace_file is None:
            raise ValueError("the file exporter needs trace_file")
        if "otlp" in self.exporters and not self.otlp_endpoint:
            raise ValueError("the otlp exporter needs otlp_endpoint")
        if not 0.0 <= self.sampling_ratio <= 1.0:
            raise ValueError(f"sampling_ratio must be from 0 to 1, got {self.sampling_ratio}")
        host, colon, port = self.prometheus_address.rpartition(":")
        if self.prometheus_address and not (colon and host and port.isdecimal()):
            raise ValueError(
                f"prometheus_address must be host:port, got {self.prometheus_address!r}"
            )
