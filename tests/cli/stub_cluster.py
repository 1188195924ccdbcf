"""`ditmesh up` and `demo` with stand-ins for coordinator and nodes that need no torch.

    python -m tests.cli.stub_cluster demo --golden ...

The stand-in of the coordinator is the fake of the client's tests. The environment variable
STUB_STEP_S makes its steps after the first slow, unless the job is cancelled; STUB_DIES makes it
end at once, with that exit code.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from ditmesh.cli import main, processes
from ditmesh.supervisor import ChildSpec
from ditmesh.v1 import cluster_pb2 as pb
from tests.client.fake import Fake, serve


def coordinator(address: str) -> int:
    """The child that stands in for the coordinator."""
    if "STUB_DIES" in os.environ:
        return int(os.environ["STUB_DIES"])
    fake = Fake()
    fake.cluster.nodes.add(address="stub:1", state=pb.NODE_STATE_JOINED, rank=0)
    fake.cluster.group.state = pb.GROUP_STATE_READY
    fake.cluster.models.add(
        name="tiny_flux_bfl",
        latent_channels=16,
        preview_factors=[0.1] * 48,
        preview_bias=[0.0] * 3,
        vae_factor=8,
    )
    fake.cluster.queue.running = os.getpid()
    pause_s = float(os.environ.get("STUB_STEP_S", "0"))

    def before_step(stream: int, step: int) -> None:
        for job in list(fake.jobs.values()) if step else ():
            job.cancelled.wait(pause_s)

    fake.before_step = before_step
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    server, _ = serve(fake, address)
    while not stopped:
        signal.sigtimedwait([], 0.05)
    server.stop(10.0).wait()  # a job that is being cancelled ends with its step
    return 0


def node(address: str) -> int:
    """The child that stands in for a node."""
    signal.pause()
    return 0


def _arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("listen", "nodes", "models", "port", "host", "ranks", "device", "dtype", "mesh"):
        parser.add_argument(f"--{name}")
    for name in ("grace", "log-level", "exporter", "trace-file", "local-models", "preload"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--attention")


def _service(name: str) -> SimpleNamespace:
    if name == "coordinator.cluster.meshes":
        return SimpleNamespace(MeshPlan=lambda *degrees: None)

    def children(args: argparse.Namespace, folder: Path | None = None) -> list[ChildSpec]:
        if name == "coordinator.app":
            return [ChildSpec("coordinator", "tests.cli.stub_cluster:coordinator", args.listen)]
        return [
            ChildSpec(f"node{i}", "tests.cli.stub_cluster:node", f"{args.host}:{i}")
            for i in range(int(args.ranks))
        ]

    return SimpleNamespace(
        add_arguments=_arguments,
        children=children,
        problem=lambda args: "",
        PRELOAD=("tests.client.fake",),
        __name__=name,
    )


if __name__ == "__main__":
    processes.find_service = _service
    sys.exit(main())
