"""A real cluster of this machine, as `ditmesh up` starts it, with nodes that know `synthetic`.

with BenchCluster(folder, models, nodes=8) as cluster:
    cluster.client.sample(...)
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from bench import machine
from bench.parent import end_with_parent
from bench.synthetic import CALLS_VARIABLE
from ditmesh.cli.exit_codes import guarded
from ditmesh.cli.processes import LocalCluster, free_ports
from ditmesh.client import Client
from ditmesh.errors import DitmeshError
from ditmesh.supervisor import Supervisor

START_S = 180.0
_STOP_S = 40.0
_GRACE_S = 15.0


class BenchCluster:
    """A coordinator and its nodes, ready when the block is entered and gone when it is left."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        *,
        nodes: int,
        dtype: str = "bf16",
        local: bool = False,
        preload: Sequence[str] = (),
        trace_file: Path | None = None,
        calls: Path | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        execution: Mapping[str, Any] | None = None,
    ) -> None:
        """`calls`: where rank 0 notes its forward passes, see `synthetic`. Logs go to `folder`.

        `execution`: fields of LocalCluster that say how nodes run a transformer.
        """
        first = free_ports(nodes + 1)
        self._cluster = LocalCluster(
            models=models,
            nodes=nodes,
            dtype=dtype,
            port=first,
            node_port=first + 1,
            device=device,
            local=local,
            preload=tuple(preload),
            trace_file=trace_file,
            **(execution or {}),
        )
        self.address = self._cluster.address
        self.node_addresses = self._cluster.node_addresses
        self._log = folder / f"cluster-{first}.log"
        self._environment: dict[str, str] = {}
        if calls is not None:
            self._environment[CALLS_VARIABLE] = str(calls)
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(self.address)

    def __enter__(self) -> BenchCluster:
        options = dataclasses.asdict(self._cluster)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **self._environment}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.cluster", json.dumps(options, default=str)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        self._stop()

    def pids(self) -> dict[str, int]:
        """Process ids: the coordinator's, and each rank's by its name "rank<n>"."""
        snapshot = self.client.cluster()
        ranks = {f"rank{node.rank}": node.pid for node in snapshot.nodes if node.rank is not None}
        assert self.process is not None
        for pid in machine.children(self.process.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "coordinator":
                return {"coordinator": pid, **ranks}
        raise RuntimeError(f"the coordinator is gone; see {self._log}")

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                now = self.client.cluster()
            except DitmeshError:
                time.sleep(0.1)
                continue
            grouped = now.group.state == "ready" and now.group.world_size == self._cluster.nodes
            if grouped and (now.local.available or not self._cluster.local):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the cluster does not get ready; see {self._log}")

    def _stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the cluster did not stop; see {self._log}") from None


def _supervise(options: str) -> int:
    given = json.loads(options)
    given["models"] = Path(given["models"])
    given["preload"] = tuple(given["preload"])
    if given["trace_file"] is not None:
        given["trace_file"] = Path(given["trace_file"])
    cluster = LocalCluster(**given)
    cluster.check()
    with tempfile.TemporaryDirectory(prefix="ditmesh-") as folder:
        children, preload = cluster.children(Path(folder))
        specs = [
            dataclasses.replace(spec, target="bench.node:run")
            if spec.target == "gpu_node.node:run"
            else spec
            for spec in children
        ]
        supervisor = Supervisor(
            specs, start_method=cluster.start_method, preload=preload, grace_s=_GRACE_S
        )
        return supervisor.run()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(guarded(lambda: _supervise(sys.argv[1])))
