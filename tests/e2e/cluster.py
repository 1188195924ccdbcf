"""A cluster as users run it: real node and coordinator processes, reached over gRPC.

    with Cluster(tmp_path, ranks=8) as cluster:
        cluster.client.sample(...)
        cluster.kill(cluster.ranks()[0])

Leaving the block stops it as SIGTERM does, and fails if a process had to be killed or is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ditmesh import telemetry
from ditmesh.client import Client, ClusterSnapshot
from ditmesh.errors import DitmeshError
from ditmesh.telemetry import TelemetryConfig
from tests.ports import free_ports
from tests.sampling.golden_cases import CHECKPOINT

MODEL = "tiny-flux"
"""What the golden checkpoint is called in every cluster."""
DEMO_MODEL = "pixel-portraits"
"""The trained model that the project ships, in every cluster too."""
LOCAL_MODEL = "local-flux"
"""The same checkpoint, which under this name only the local sampler has."""
_SHIPPED = Path(__file__).parents[2] / "models"
START_S = 150.0
STOP_S = 60.0
WAIT_S = 60.0
# Longer than STOP_S: a supervisor that ends within STOP_S has killed nobody.
_GRACE_S = 120
_MARK = "DITMESH_TEST_CLUSTER"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Cluster:
    """One coordinator and, unless `nodes` is 0, one supervisor of `nodes` nodes.

    The coordinator knows `ranks` of the nodes, by default all. `options` are added to its command
    line, `exporters` to both. All spans go to the file `spans`, all output to logs in `folder`,
    which failures show.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ranks: int = 8,
        nodes: int | None = None,
        options: Sequence[str] = (),
        exporters: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.spans = folder / "spans.jsonl"
        self.world_size = ranks
        self._mark = uuid.uuid4().hex
        self._options = options
        self._both = ("--trace-file", str(self.spans), "--grace", str(_GRACE_S), *exporters)
        self._node_count = ranks if nodes is None else nodes
        self._first_port = free_ports(self._node_count + 1)
        self.address = f"127.0.0.1:{self._first_port}"
        self._models = model_folder(folder / "models", MODEL)
        self._local_models = model_folder(folder / "local", MODEL, LOCAL_MODEL)
        self.nodes: subprocess.Popen[bytes] | None = None
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.client = Client(self.address)

    def __enter__(self) -> Cluster:
        try:
            if self._node_count:
                self.start_nodes()
            self.start_coordinator()
        except BaseException:
            self._kill_all()
            raise
        return self

    def change_coordinator(self, *, ranks: int, options: Sequence[str] = ()) -> None:
        """Stop the coordinator; another one with other options forms a group of `ranks` nodes."""
        assert ranks <= self._node_count
        assert self.coordinator is not None
        try:
            self.client.close()
            self._stop(self.coordinator)
            self.world_size, self._options = ranks, options
            self.client = Client(self.address)
            self.start_coordinator()
        except BaseException:
            self._kill_all()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        try:
            for process in (self.coordinator, self.nodes):
                if process is not None:
                    self._stop(process)
            left = processes_of(self._mark)
            assert not left, f"processes were left behind: {left}\n{self.logs()}"
        finally:
            self._kill_all()

    def start_nodes(self) -> None:
        """Start the supervisor of the nodes, anew if it was stopped."""
        command = (
            *("gpu_node", "--ranks", str(self._node_count), "--device", "cpu"),
            *("--port", str(self._first_port + 1), "--models", str(self._models), *self._both),
        )
        self.nodes = self._start("nodes", command)

    def start_coordinator(self) -> None:
        """Start the coordinator, anew if it has ended, and wait until all is there."""
        first = self._first_port + 1
        nodes = ",".join(f"127.0.0.1:{first + i}" for i in range(self.world_size))
        command = (
            *("coordinator", "--listen", self.address, "--local-models", str(self._local_models)),
            *(("--nodes", nodes, "--preload", MODEL) if self.world_size else ()),
            *self._both,
            *self._options,
        )
        self.coordinator = self._start("coordinator", command)
        self.wait_for_group(timeout_s=START_S)

    def stop_nodes(self) -> None:
        """Stop every node, as an operator does."""
        assert self.nodes is not None
        self._stop(self.nodes)

    def snapshot(self) -> ClusterSnapshot:
        """The cluster as it shows itself."""
        return self.client.cluster()

    def ranks(self) -> list[int]:
        """Process ids by rank. Fails unless the whole group is there."""
        found = {node.rank: node.pid for node in self.snapshot().nodes if node.rank is not None}
        assert sorted(found) == list(range(self.world_size)), found
        return [found[rank] for rank in range(self.world_size)]

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process of a rank."""
        os.kill(self.ranks()[rank], number)

    @contextmanager
    def no_restarts(self) -> Iterator[None]:
        """Meanwhile the supervisor of the nodes does nothing: what dies stays dead."""
        assert self.nodes is not None
        self.nodes.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.nodes.send_signal(signal.SIGCONT)

    @contextmanager
    def traced_client(self) -> Iterator[Client]:
        """A client whose spans are recorded too."""
        telemetry.setup(TelemetryConfig("client", exporters=("file",), trace_file=self.spans))
        try:
            with Client(self.address) as client:
                yield client
        finally:
            telemetry.shutdown()

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace that have been written so far, as the file has them."""
        return [span for span in self.all_spans() if span["trace_id"] == trace_id]

    def all_spans(self) -> list[dict[str, Any]]:
        """Those of every trace so far."""
        lines = self.spans.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_group(self, size: int | None = None, *, timeout_s: float = WAIT_S) -> None:
        """Wait for a group of `size` ranks (all of them), and for the local sampler."""
        wanted = self.world_size if size is None else size

        def ready() -> bool:
            try:
                now = self.snapshot()
            except DitmeshError:
                return False
            grouped = now.group.state == "ready" and now.group.world_size == wanted
            return (grouped or not wanted) and now.local.available

        self.wait(ready, f"a group of {wanted}", timeout_s=timeout_s)

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
        """Wait until `condition()`; fails with the cluster's logs."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.logs()}"
            for process in (self.nodes, self.coordinator):
                ended = process is not None and process.poll() is not None
                assert not ended, f"{process} ended\n{self.logs()}"
            time.sleep(0.1)

    def logs(self, lines: int = 60) -> str:
        """The last lines of every process."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.name}", *text]))
        return "\n".join(parts)

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._mark),
                start_new_session=True,
                preexec_fn=stop_with_parent,
            )

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM; it must end by itself with code 0."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{process.args} did not stop\n{self.logs()}") from None
        assert code == 0, f"{process.args} ended with code {code}\n{self.logs()}"

    def _kill_all(self) -> None:
        """Whatever happened, leave nothing running."""
        for process in (self.coordinator, self.nodes):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        for pid in processes_of(self._mark):
            os.kill(pid, signal.SIGKILL)


def stop_with_parent() -> None:
    """In a child before it starts its program: SIGTERM when these tests are killed themselves."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def environment(mark: str) -> dict[str, str]:
    """The environment for a process, by which it and all that it starts can be found."""
    return {**os.environ, _MARK: mark}


def processes_of(mark: str) -> list[int]:
    """Every process that runs in the environment of that mark."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile, or is another user's
    return found


def model_folder(folder: Path, *names: str) -> Path:
    """A folder of the demo model, and of the golden checkpoint by these names."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.safetensors").symlink_to(CHECKPOINT)
    (folder / DEMO_MODEL).symlink_to(_SHIPPED / DEMO_MODEL)
    return folder
