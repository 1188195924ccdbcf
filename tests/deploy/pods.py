"""Pods of an overlay as processes on this machine: their arguments, probes and ends, no cluster.

Only addresses and folders differ from what the manifests say: everything is on 127.0.0.1, ports
are moved to free ones, and mounts are folders.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.check.manifests import COORDINATOR, Manifest, arguments, pods_of
from tests.e2e.cluster import environment, processes_of

_PROGRAMS = {COORDINATOR: "coordinator", "ditmesh-node": "gpu_node"}
_PORTS = range(50_050, 50_200)


class Pod:
    """The main container of a workload.

    `first_port`: where its ports go, those of the manifest being counted from 50050. `mounts`
    replaces paths, `config` values of the ConfigMap.
    """

    def __init__(
        self,
        manifests: list[Manifest],
        program: str,
        *,
        first_port: int,
        mounts: Mapping[str, Path],
        config: Mapping[str, str],
        log: Path,
    ) -> None:
        (workload,) = pods_of(manifests, program)
        (self._container,) = workload.spec["containers"]
        self.grace_s: int = workload.spec["terminationGracePeriodSeconds"]
        self._first_port = first_port
        self._log = log
        self._mark = uuid.uuid4().hex
        changed = [
            {**m, "data": {**m["data"], **config}} if m["kind"] == "ConfigMap" else m
            for m in manifests
        ]
        command = arguments(self._container, changed)
        self.command = [sys.executable, "-m", _PROGRAMS[program]]
        self.command += [self._here(argument, mounts) for argument in command]
        self.process: subprocess.Popen[bytes] | None = None

    def address(self, port: int) -> str:
        """Where a port of the manifest is on this machine."""
        return f"127.0.0.1:{self._first_port + port - _PORTS.start}"

    def start(self) -> None:
        """Run the container."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._mark),
                start_new_session=True,
            )

    def terminate(self) -> None:
        """What the kubelet sends after preStop."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code; fails when the pod outlives its grace period."""
        assert self.process is not None
        code = self.process.wait(self.grace_s)
        assert not processes_of(self._mark), self.log()
        return code

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in processes_of(self._mark):
            os.kill(pid, signal.SIGKILL)

    def probe(self, name: str) -> bool:
        """Whether the container's probe of that name succeeds now."""
        grpc_probe = self._container[name]["grpc"]
        return self.healthy(grpc_probe["service"], grpc_probe["port"])

    def healthy(self, service: str, port: int = 50_159) -> bool:
        """Whether health says SERVING for a service, as the kubelet asks: without TLS."""
        with grpc.insecure_channel(self.address(port)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                answer = stub.Check(request, timeout=5)  # type: ignore[attr-defined]
            except grpc.RpcError:
                return False
        serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
        return serving

    def log(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    def _here(self, argument: str, mounts: Mapping[str, Path]) -> str:
        for path, folder in mounts.items():
            argument = argument.replace(f"={path}", f"={folder}")
        argument = argument.replace("=0.0.0.0:", "=127.0.0.1:")
        argument = argument.replace("=0.0.0.0", "=127.0.0.1").replace("=10.0.0.1", "=127.0.0.1")
        option, _, value = argument.partition("=")
        if option == "--nodes":
            return argument
        moved = re.sub(r"\b50\d\d\d\b", lambda m: self.address(int(m[0])).split(":")[1], value)
        # Prometheus' port is not one of the row.
        moved = moved.replace(":9464", self.address(_PORTS.stop - 1)[len("127.0.0.1") :])
        return f"{option}={moved}" if value else argument


def wait_for(condition: Callable[[], bool], what: str, *pods: Pod, timeout_s: float = 150) -> None:
    """Wait until `condition()`; fails with the pods' logs."""
    end = time.monotonic() + timeout_s
    while not condition():
        logs = "\n".join(pod.log() for pod in pods)
        assert time.monotonic() < end, f"waited in vain for {what}\n{logs}"
        time.sleep(0.2)
