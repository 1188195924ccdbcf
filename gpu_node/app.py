"""The command line of a machine's nodes: one supervisor, one process for each rank."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ditmesh.errors import DitmeshError
from ditmesh.executor.server import ExecutorConfig
from ditmesh.executor.servicer import ServicerLimits
from ditmesh.models.info import scan
from ditmesh.options import (
    add_execution,
    add_security,
    add_telemetry,
    bounded,
    port_number,
    telemetry_config,
    tls_files,
)
from ditmesh.supervisor import ChildSpec, Supervisor, tell
from gpu_node.execution import Execution

PRELOAD = ("gpu_node.app:preload_cpu",)
"""What a supervisor does before it forks CPU ranks."""


def preload_cpu() -> None:
    """Import all that CPU ranks need, so that each starts in an instant."""
    from gpu_node.parallel import runtime

    runtime.prepare("cpu")
    # The rank's own modules: imported here once, not in every child.
    import gpu_node.node  # noqa: F401


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the ranks of one machine."""
    parser.add_argument(
        "--models", type=Path, required=True, help="folder of models (safetensors only)"
    )
    parser.add_argument(
        "--ranks",
        type=bounded(int, 1, 64),
        default=1,
        help="processes on this machine, one for each GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="default: %(default)s"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=50061,
        help="port of the first rank; the others follow (default: %(default)s)",
    )
    parser.add_argument(
        "--interface",
        default="lo",
        help="network interface for collectives; they are not encrypted (default: %(default)s)",
    )
    parser.add_argument(
        "--max-loaded",
        type=bounded(int, 1, 64),
        default=1,
        help="models kept in memory at once (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=bounded(float, 0, 3600),
        default=10.0,
        help="seconds for the work in hand after SIGTERM (default: %(default)s)",
    )
    add_execution(parser)
    add_security(parser, "the coordinator")
    parser.add_argument(
        "--coordinator-name",
        default="",
        help="name in the coordinator's certificate; with --tls-ca nobody else is obeyed "
        "(default: whoever has a certificate of the authority)",
    )
    add_telemetry(parser)


def execution(args: argparse.Namespace) -> Execution:
    """How the ranks run their transformers."""
    return Execution(
        dtype=args.dtype or ("bf16" if args.device == "cuda" else "fp32"),
        fp8_weights=args.fp8_weights,
        attention=args.attention,
        compile=args.compile,
    )


def problem(args: argparse.Namespace) -> str:
    """Why ranks with these options could not run, in words for the user; empty if they can."""
    return execution(args).problem(args.device)


def children(args: argparse.Namespace, folder: Path) -> list[ChildSpec]:
    """One child for each rank, and one for the health of all. `folder` holds their sockets."""
    from gpu_node.health import HealthConfig
    from gpu_node.node import NodeConfig

    probes = [f"unix:{folder / f'rank{i}.health'}" for i in range(args.ranks)]
    specs = []
    for i in range(args.ranks):
        listen = f"{args.host}:{args.port + i}"
        config = NodeConfig(
            models=args.models,
            device=f"cuda:{i}" if args.device == "cuda" else "cpu",
            execution=execution(args),
            interface=args.interface,
            max_loaded=args.max_loaded,
            executor=ExecutorConfig(
                listen=listen,
                telemetry=telemetry_config(args, "gpu_node", listen),
                limits=ServicerLimits(),
                grace_s=args.grace,
                tls=tls_files(args),
                caller=args.coordinator_name,
                insecure=args.insecure,
                health=probes[i] if args.health else "",
            ),
            log_level=args.log_level,
        )
        specs.append(ChildSpec(f"node{i}", "gpu_node.node:run", config))
    if args.health:
        health = HealthConfig(args.health, tuple(probes))
        specs.append(ChildSpec("health", "gpu_node.health:run", health))
    return specs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ranks until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_node",
        description="Runs the ranks of one machine: one process for each GPU, restarted if it "
        "dies. The coordinator forms the group; it must be able to reach each port.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        scan(args.models).check_start()
    except DitmeshError as error:
        print(f"error: --models: {error}", file=sys.stderr)
        return 2
    wrong = problem(args)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    on_cpu = args.device == "cpu"
    with tempfile.TemporaryDirectory(prefix="ditmesh-") as folder:
        supervisor = Supervisor(
            children(args, Path(folder)),
            start_method="fork" if on_cpu else "spawn",
            preload=PRELOAD if on_cpu else (),
            grace_s=args.grace + 5.0,
            on_event=tell,
        )
        return supervisor.run()
