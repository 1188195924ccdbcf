"""The command line of the coordinator: its server and its local sampler under one supervisor."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coordinator.config import MIB, CoordinatorConfig, Limits, Timing
from ditmesh.errors import DitmeshError
from ditmesh.executor.server import ExecutorConfig
from ditmesh.models.info import scan
from ditmesh.options import (
    add_security,
    add_telemetry,
    bounded,
    host_port,
    port_number,
    telemetry_config,
    tls_files,
)
from ditmesh.security import TlsFiles
from ditmesh.supervisor import ChildSpec, Supervisor, tell

PRELOAD = (
    "coordinator.server",
    "coordinator.local_sampler",
    "ditmesh.models.flux_transformer",
    "ditmesh.telemetry.sdk",
)
"""What a supervisor imports before it forks."""

_DEFAULTS = Timing()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the coordinator."""
    parser.add_argument(
        "--listen",
        type=host_port,
        default="127.0.0.1:50050",
        metavar="HOST:PORT",
        help="address of the public services (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes",
        default="",
        metavar="HOST:PORT,...",
        help="the nodes; HOST:FIRST-LAST is a range of ports, all:HOST:PORT every address that a "
        "DNS name has",
    )
    parser.add_argument(
        "--mesh",
        default="auto",
        help="degrees of the group: auto, or e.g. ulysses=4,ring=2 (default: %(default)s)",
    )
    parser.add_argument(
        "--cfg-split",
        action="store_true",
        help="run the two branches of guidance on one half of the ranks each",
    )
    parser.add_argument(
        "--min-ranks",
        type=bounded(int, 1, 1024),
        default=1,
        help="smallest group worth forming (default: %(default)s)",
    )
    parser.add_argument(
        "--rendezvous-host",
        default="127.0.0.1",
        help="address at which nodes reach the rendezvous store (default: %(default)s)",
    )
    parser.add_argument(
        "--rendezvous-port", type=port_number, default=0, help="default: any free port"
    )
    parser.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODEL",
        help="model that nodes load when the group forms; may be repeated",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keep jobs in this file, so that they go on when the coordinator restarts",
    )
    _add_local(parser)
    _add_limits(parser)
    add_security(parser, "clients")
    parser.add_argument(
        "--token-file",
        type=Path,
        help='clients need a token of this file: lines of "name token"',
    )
    parser.add_argument(
        "--node-ca", type=Path, help="PEM authority of the nodes; default: they are not encrypted"
    )
    add_telemetry(parser, metrics=True)


def _add_local(parser: argparse.ArgumentParser) -> None:
    local = parser.add_argument_group("local sampler")
    local.add_argument(
        "--local-models",
        type=Path,
        help="folder of models for the fallback (default: there is no local sampler)",
    )
    local.add_argument("--local-device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    local.add_argument(
        "--local-dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="default: %(default)s",
    )
    local.add_argument(
        "--local-preload",
        metavar="MODEL",
        help="model that the fallback loads at its start (default: each when it is first needed)",
    )
    local.add_argument(
        "--local-queue",
        type=bounded(int, 0, 100_000),
        default=Limits().local_queued_jobs,
        help="jobs that may wait for the fallback, where there are nodes (default: %(default)s)",
    )
    local.add_argument(
        "--local-memory",
        type=bounded(int, 256 * MIB, 1 << 45),
        metavar="BYTES",
        help="memory that the fallback may take, with the tensors that it shares with the "
        "coordinator; a job that needs more fails (default: no limit)",
    )
    local.add_argument(
        "--local-threads",
        type=bounded(int, 1, 1024),
        default=1,
        help="CPU threads of the fallback (default: %(default)s)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-bytes-in-flight",
        type=bounded(int, MIB, 1 << 45),
        default=1024 * MIB,
        help="tensors held for all jobs; never more than a quarter of the memory that this "
        "process may use (default: %(default)s)",
    )
    limits.add_argument(
        "--max-request-bytes",
        type=bounded(int, MIB, 1 << 40),
        default=256 * MIB,
        help="tensors of one request (default: %(default)s)",
    )
    limits.add_argument(
        "--max-content-bytes",
        type=bounded(int, MIB, 1 << 40),
        default=Limits().content_bytes,
        help="tensors kept so that they need not be sent again (default: %(default)s)",
    )
    limits.add_argument(
        "--max-queue",
        type=bounded(int, 0, 100_000),
        default=64,
        help="jobs that may wait (default: %(default)s)",
    )
    seconds = {
        "reattach": "that a job whose stream broke runs on without a client",
        "keep-result": "that a result waits for whoever comes back for it",
        "settle": "to wait for missing nodes before a smaller group forms",
        "regroup-wait": "that a job waits for a lost group before it falls back",
        "silence": "after which a node that says nothing counts as lost",
        "collective-timeout": "after which a collective that does not end is a failure",
        "grace": "for running jobs after SIGTERM",
    }
    for name, text in seconds.items():
        limits.add_argument(
            f"--{name}",
            type=bounded(float, 0.0, 86_400.0),
            default=getattr(_DEFAULTS, name.replace("-", "_")),
            metavar="SECONDS",
            help=f"seconds {text} (default: %(default)s)",
        )


def configuration(args: argparse.Namespace, local_address: str) -> CoordinatorConfig:
    """The coordinator's configuration from its options."""
    in_flight = min(args.max_bytes_in_flight, memory_limit_bytes() // 4)
    request = min(args.max_request_bytes, in_flight)
    return CoordinatorConfig(
        listen=args.listen,
        nodes=tuple(node.strip() for node in args.nodes.split(",") if node.strip()),
        mesh=args.mesh,
        cfg_split=args.cfg_split,
        min_ranks=args.min_ranks,
        rendezvous_host=args.rendezvous_host,
        rendezvous_port=args.rendezvous_port,
        local_address=local_address,
        preload=tuple(model for model in args.preload if model),
        tls=tls_files(args),
        node_tls=TlsFiles(args.tls_cert, args.tls_key, args.node_ca),
        tokens=args.token_file,
        insecure=args.insecure,
        health=args.health or "",
        journal=args.journal,
        limits=replace(
            Limits(),
            in_flight_bytes=in_flight,
            request_bytes=request,
            content_bytes=args.max_content_bytes,
            queued_jobs=args.max_queue,
            # Without nodes it is no fallback: its queue is the queue.
            local_queued_jobs=args.local_queue if args.nodes else args.max_queue,
        ),
        timing=Timing(
            reattach=args.reattach,
            keep_result=args.keep_result,
            settle=args.settle,
            regroup_wait=args.regroup_wait,
            silence=args.silence,
            collective_timeout=args.collective_timeout,
            grace=args.grace,
        ),
        telemetry=telemetry_config(args, "coordinator", args.listen, metrics=True),
        log_level=args.log_level,
    )


def memory_limit_bytes() -> int:
    """The memory that this process may use: its cgroup's limit, or the machine's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(int(Path(file).read_text()), machine)
        except (OSError, ValueError):
            # No such cgroup version, or "max": no limit there.
            continue
    return machine


def children(args: argparse.Namespace, folder: Path) -> list[ChildSpec]:
    """The server, and the local sampler if there is to be one. `folder` holds its socket."""
    from coordinator.local_sampler import LocalSamplerConfig

    specs = []
    address = ""
    if args.local_models is not None:
        address = f"unix:{folder / 'local.sock'}"
        sampler = LocalSamplerConfig(
            models=args.local_models,
            device=args.local_device,
            dtype=args.local_dtype,
            preload=args.local_preload,
            memory_bytes=args.local_memory,
            max_loaded=1,
            executor=ExecutorConfig(
                listen=address,
                telemetry=telemetry_config(args, "local_sampler"),
                threads=args.local_threads,
            ),
            log_level=args.log_level,
        )
        specs.append(ChildSpec("local", "coordinator.local_sampler:run", sampler))
    config = configuration(args, address)
    specs.insert(0, ChildSpec("coordinator", "coordinator.server:run", config))
    return specs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the coordinator until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator",
        description="Takes sampling jobs over gRPC and hands them to a group of nodes, or to its "
        "local sampler when the group cannot.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.local_models is not None:
        try:
            scan(args.local_models).check_start(filter(None, [args.local_preload]))
        except DitmeshError as error:
            print(f"error: --local-models: {error}", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory(prefix="ditmesh-") as folder:
        on_cpu = args.local_device == "cpu"
        supervisor = Supervisor(
            children(args, Path(folder)),
            start_method="fork" if on_cpu else "spawn",
            preload=PRELOAD if on_cpu else (),
            grace_s=args.grace + 10.0,
            on_event=tell,
        )
        return supervisor.run()
