"""`ditmesh up`: a cluster on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ditmesh.cli.processes import GRACE_S, LocalCluster
from ditmesh.options import LOG_LEVELS, add_execution, bounded, port_number
from ditmesh.supervisor import ChildEvent, ChildSpec, Supervisor, tell

HELP = "run a cluster on this machine"
DESCRIPTION = """Runs a coordinator and its nodes on this machine, one process for each GPU.

Says when the group is ready, starts again what dies, and ends everything on Ctrl-C: running jobs
get some seconds to finish; a second Ctrl-C ends them at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_cluster_arguments(parser)
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=port_number, default=50050, help="of the coordinator (default: %(default)s)"
    )
    parser.add_argument(
        "--node-port",
        type=port_number,
        default=50061,
        help="of the first node; the others follow (default: %(default)s)",
    )
    parser.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODEL",
        help="load this model when the group forms; may be repeated",
    )
    parser.add_argument("--trace-file", type=Path, help="all spans, one JSON line each")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of any local cluster."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--nodes", type=bounded(int, 0, 64), default=8, help="processes (default: %(default)s)"
    )
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    group.add_argument(
        "--mesh",
        default="auto",
        metavar="DEGREES",
        help="auto, or such as ulysses=8 or ulysses=4,ring=2 (default: auto)",
    )
    group.add_argument(
        "--cfg-split",
        action="store_true",
        help="run the two branches of guidance on one half of the ranks each",
    )
    group.add_argument(
        "--no-local", action="store_true", help="no local sampler: no fallback when the group fails"
    )
    group.add_argument("--otlp", default="", metavar="HOST:PORT", help="send spans there too")
    group.add_argument(
        "--log-level", choices=LOG_LEVELS, default="WARNING", help="default: %(default)s"
    )
    add_execution(parser)


def run(args: argparse.Namespace) -> int:
    """Run the cluster until a signal. Raises as `LocalCluster.check` at the start."""
    cluster = LocalCluster(
        models=args.models,
        nodes=args.nodes,
        device=args.device,
        dtype=args.dtype,
        fp8_weights=args.fp8_weights,
        compile=args.compile,
        attention=args.attention,
        port=args.port,
        node_port=args.node_port,
        mesh=args.mesh,
        cfg_split=args.cfg_split,
        local=not args.no_local,
        preload=tuple(args.preload),
        trace_file=args.trace_file,
        otlp_endpoint=args.otlp,
        log_level=args.log_level,
    )
    watcher = ChildSpec("watch", "ditmesh.cli.watch:run", cluster.address)
    return supervise(cluster, [watcher], on_event=tell)


def supervise(
    cluster: LocalCluster, more: Sequence[ChildSpec], on_event: Callable[[ChildEvent], None]
) -> int:
    """Run a cluster and `more` processes beside it; the supervisor's exit code. Raises as `run`."""
    cluster.check()
    # What they say when they load concerns those who build pipelines, not those who run them.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with tempfile.TemporaryDirectory(prefix="ditmesh-") as folder:
        children, preload = cluster.children(Path(folder))
        supervisor = Supervisor(
            [*children, *more],
            start_method=cluster.start_method,
            preload=preload,
            grace_s=GRACE_S + 5.0,
            on_event=on_event,
        )
        return supervisor.run()
