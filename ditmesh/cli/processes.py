"""The processes of a local cluster: coordinator, local sampler and nodes, as one supervisor's.

`ditmesh` imports no service: those it starts it finds by name, where their extras are installed.
"""

from __future__ import annotations

import argparse
import importlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ditmesh.cli.exit_codes import UsageError
from ditmesh.models.info import scan
from ditmesh.supervisor import ChildSpec

HOST = "127.0.0.1"
"""A local cluster is reached from its own machine only."""
GRACE_S = 10.0
"""Seconds for the work in hand when a local cluster is stopped."""


@dataclass(frozen=True)
class LocalCluster:
    """What `ditmesh up` is told. Ports are TCP ports; the nodes' follow one another."""

    models: Path
    nodes: int = 8
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str | None = None
    fp8_weights: bool = False
    compile: bool = False
    attention: str = "auto"
    port: int = 50050
    node_port: int = 50061
    mesh: str = "auto"
    cfg_split: bool = False
    local: bool = True
    preload: tuple[str, ...] = ()
    trace_file: Path | None = None
    otlp_endpoint: str = ""
    log_level: str = "WARNING"

    @property
    def address(self) -> str:
        """Of the coordinator."""
        return f"{HOST}:{self.port}"

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """Of every node."""
        return tuple(f"{HOST}:{self.node_port + i}" for i in range(self.nodes))

    @property
    def start_method(self) -> Literal["fork", "spawn"]:
        """How children start: CUDA does not survive a fork."""
        return "fork" if self.device == "cpu" else "spawn"

    def check(self) -> None:
        """Raises UsageError, DamagedModel, UnknownModel, InvalidMesh or OSError for what could
        never run.
        """
        if not self.models.is_dir():
            raise UsageError(f"--models {self.models}: no such folder")
        scan(self.models).check_start(self.preload)
        if not self.nodes and not self.local:
            raise UsageError("no nodes and no local sampler: nothing could run a job")
        find_service("coordinator.cluster.meshes").MeshPlan(self.nodes, self.mesh, self.cfg_split)
        if self.nodes:
            node = find_service("gpu_node.app")
            problem = node.problem(_parsed(node, self._node_options()))
            if problem:
                raise UsageError(problem)
        for address in (self.address, *self.node_addresses):
            _check_port(int(address.rpartition(":")[2]))

    def children(self, folder: Path) -> tuple[list[ChildSpec], tuple[str, ...]]:
        """All processes, and what a supervisor that forks loads before. `folder`: for sockets."""
        coordinator = find_service("coordinator.app")
        specs = coordinator.children(_parsed(coordinator, self._coordinator_options()), folder)
        preload = coordinator.PRELOAD
        if self.nodes:
            node = find_service("gpu_node.app")
            specs += node.children(_parsed(node, self._node_options()), folder)
            # First: it readies xfuser before anything else imports torch's parts.
            preload = (*node.PRELOAD, *preload)
        return specs, tuple(preload) if self.start_method == "fork" else ()

    def _coordinator_options(self) -> list[str]:
        options = ["--listen", self.address, "--mesh", self.mesh, "--grace", str(GRACE_S)]
        if self.nodes:
            options += ["--nodes", ",".join(self.node_addresses)]
        if self.cfg_split:
            options.append("--cfg-split")
        if self.local:
            options += ["--local-models", str(self.models)]
        for model in self.preload:
            options += ["--preload", model]
        return options + self._shared_options()

    def _node_options(self) -> list[str]:
        options = ["--ranks", str(self.nodes), "--models", str(self.models)]
        options += ["--host", HOST, "--port", str(self.node_port), "--device", self.device]
        options += ["--grace", str(GRACE_S)]
        if self.dtype is not None:
            options += ["--dtype", self.dtype]
        if self.fp8_weights:
            options.append("--fp8-weights")
        if self.compile:
            options.append("--compile")
        options += ["--attention", self.attention]
        return options + self._shared_options()

    def _shared_options(self) -> list[str]:
        options = ["--log-level", self.log_level]
        if self.trace_file is not None:
            options += ["--exporter", "file", "--trace-file", str(self.trace_file)]
        if self.otlp_endpoint:
            options += ["--exporter", "otlp", "--otlp-endpoint", self.otlp_endpoint]
        return options


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free now. Raises OSError when there are none."""
    # Below those that Linux gives to outgoing connections, which come at any moment.
    for first in range(30_100, 32_700, count):
        try:
            for port in range(first, first + count):
                _check_port(port)
        except OSError:
            continue
        return first
    raise OSError(f"there are no {count} free ports in a row on {HOST}")


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} cannot be used: {error.strerror}") from error


def find_service(name: str) -> Any:
    """A module of a service. Raises UsageError where its extras are not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"a local cluster needs more than the client: pip install 'ditmesh[coordinator]' "
            f"({error})"
        ) from error


def _parsed(app: Any, options: Sequence[str]) -> argparse.Namespace:
    """A service's own reading of its options, so that its defaults stay in one place."""
    parser = argparse.ArgumentParser(prog=app.__name__)
    app.add_arguments(parser)
    return parser.parse_args(options)
