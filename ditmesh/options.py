"""Command-line options that several processes share, read once at start."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditmesh.security import TlsFiles
from ditmesh.telemetry import EXPORTERS, TelemetryConfig

ATTENTION = ("auto", "flash", "cudnn", "efficient", "math", "flash2", "flash3", "flash4")
"""Attention kernels by name."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def add_telemetry(parser: argparse.ArgumentParser, *, metrics: bool = False) -> None:
    """Options for traces; with `metrics`, also for where they are served."""
    group = parser.add_argument_group("telemetry")
    group.add_argument(
        "--exporter",
        action="append",
        choices=EXPORTERS,
        default=None,
        help="where spans go; may be repeated (default: file if --trace-file is given, else none)",
    )
    group.add_argument(
        "--otlp-endpoint",
        default=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        help="OTLP/gRPC collector (default: $OTEL_EXPORTER_OTLP_ENDPOINT or %(default)s)",
    )
    group.add_argument("--trace-file", type=Path, help="one JSON line a span")
    if metrics:
        group.add_argument(
            "--prometheus", type=host_port, metavar="HOST:PORT", help="serve metrics at /metrics"
        )
    parser.add_argument(
        "--log-level", default="INFO", choices=LOG_LEVELS, help="default: %(default)s"
    )


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Options for how ranks run a transformer."""
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="of the weights (default: bf16 on cuda, fp32 on cpu)",
    )
    switch: dict[str, Any] = {
        "nargs": "?",
        "const": True,
        "default": False,
        "type": on_or_off,
        "metavar": "on|off",
    }
    group.add_argument(
        "--fp8-weights",
        **switch,
        help="keep most weights in 8 bits, half of bf16's memory; they are computed in --dtype",
    )
    group.add_argument(
        "--compile",
        **switch,
        help="compile the transformer when it is loaded: a minute or so then, faster steps after; "
        "other picture sizes, texts and batches compile nothing",
    )
    group.add_argument(
        "--attention",
        choices=ATTENTION,
        default="auto",
        help="kernel; flash2 to flash4 need the package of that version (default: torch's choice)",
    )


def add_security(parser: argparse.ArgumentParser, peers: str) -> None:
    """Options for TLS. `peers` names whom the authority vouches for."""
    group = parser.add_argument_group("security")
    group.add_argument("--tls-cert", type=Path, help="PEM certificate of this process")
    group.add_argument("--tls-key", type=Path, help="PEM key of this process")
    group.add_argument(
        "--tls-ca", type=Path, help=f"PEM authority of {peers}: they need a certificate of it"
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this machine without TLS or tokens: for a network that is safe itself",
    )
    group.add_argument(
        "--health",
        type=host_port,
        metavar="HOST:PORT",
        help="serve health alone here, unencrypted, for probes that have no certificate",
    )


def tls_files(args: argparse.Namespace) -> TlsFiles:
    """The TLS files of this process's servers."""
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_ca)


def telemetry_config(
    args: argparse.Namespace, service: str, instance: str = "", *, metrics: bool = False
) -> TelemetryConfig:
    """The telemetry of one process. `metrics`: as in `add_telemetry`."""
    exporters = args.exporter or (["file"] if args.trace_file else [])
    return TelemetryConfig(
        service,
        service_instance=instance,
        exporters=tuple(exporters),
        otlp_endpoint=args.otlp_endpoint,
        trace_file=args.trace_file,
        prometheus_address=(args.prometheus or "") if metrics else "",
    )


def bounded(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number of `kind` from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    return parse


def on_or_off(text: str) -> bool:
    """An argparse type: a switch, for those who set options from variables."""
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


def port_number(text: str) -> int:
    """An argparse type: a TCP port, 1 to 65535."""
    return int(bounded(int, 1, 65535)(text))


def host_port(text: str) -> str:
    """An argparse type: host:port."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return text
