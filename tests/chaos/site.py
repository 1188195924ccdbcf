"""The cluster under test, with a proxy in each of its links and a hand on each of its processes."""

from __future__ import annotations

import os
import re
import resource
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from unittest import mock

import grpc

from ditmesh.client import Client
from ditmesh.errors import DitmeshError
from tests.chaos.proxy import FaultProxy
from tests.e2e.cluster import Cluster, processes_of

_CLOCK = Path(__file__).parent / "clock"
_SHM = Path("/dev/shm")
_DOWN = re.compile(r"(\S+ \S+) coordinator INFO node \S+ is down")
_CLOCK_TICK_S = 0.001  # what times in the log are rounded to
RETURN_S = 90.0
"""How long a group may take to be whole again, restarts of processes included."""


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    files: int
    memory_bytes: int
    """Anonymous memory: what is not shared with the supervisor or a file."""


class Site(Cluster):
    """A cluster of `ranks` nodes with journal, local sampler and a collector for its spans.

    door: between clients and the coordinator. wires: between the coordinator and each node.
    `user` is a client that comes through the door.
    """

    def __init__(
        self, folder: Path, *, ranks: int, journal: bool = True, options: Sequence[str] = ()
    ) -> None:
        self.journal = folder / "journal.sqlite"
        self.signalled_at = 0.0
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("d", 0.0))
        self._stack = ExitStack()
        self.door = self._stack.enter_context(FaultProxy())
        self.wires = [self._stack.enter_context(FaultProxy()) for _ in range(ranks)]
        self.collector = self._stack.enter_context(FaultProxy(self._stack.enter_context(_sink())))
        super().__init__(
            folder,
            ranks=ranks,
            options=(
                *(("--journal", str(self.journal)) if journal else ()),
                *("--grace", "2"),
                *("--nodes", ",".join(wire.address for wire in self.wires)),
                *options,
            ),
            exporters=(
                *("--exporter", "file", "--exporter", "otlp"),
                *("--otlp-endpoint", self.collector.address),
            ),
        )
        host, _, port = self.address.rpartition(":")
        self.door.target = self.address
        for i, wire in enumerate(self.wires):
            wire.target = f"{host}:{int(port) + 1 + i}"
        self.user = Client(self.door.address, connect_s=120.0, reattach_s=120.0)
        self._segments: set[str] = set()

    def __enter__(self) -> Site:
        paths = f"{_CLOCK}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        changes = {"DITMESH_CHAOS_CLOCK": str(self._clock), "PYTHONPATH": paths}
        with mock.patch.dict(os.environ, changes):
            super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Also fails when shared memory that a process of the cluster used is left."""
        self.note_shared_memory()
        self.user.close()
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._stack.close()
        left = self._segments & {entry.name for entry in _SHM.iterdir()}
        assert not left, f"shared memory was left behind: {left}"

    def wire_of(self, rank: int) -> FaultProxy:
        """The link to the node that is `rank` now."""
        address = next(node.address for node in self.snapshot().nodes if node.rank == rank)
        return next(wire for wire in self.wires if wire.address == address)

    def size(self) -> int:
        """Ranks of the group that is ready now, 0 for none."""
        group = self.snapshot().group
        return group.world_size if group.state == "ready" else 0

    def coordinator_pid(self) -> int:
        """The process that serves clients."""
        return self._child_of_coordinator("coordinator")

    def local_pid(self) -> int:
        """The local sampler."""
        return self._child_of_coordinator("local")

    def whole(self) -> bool:
        """Whether all is as it was at the start."""
        try:
            now = self.snapshot()
        except DitmeshError:
            return False
        grouped = now.group.state == "ready" and now.group.world_size == self.world_size
        return grouped and now.local.available

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of the cluster."""
        self.signalled_at = time.time()
        with suppress(ProcessLookupError):  # an earlier fault was faster
            os.kill(pid, number)

    def noticed_s(self) -> float | None:
        """Seconds from the last signal until the coordinator knew that a process is lost, if it
        has noticed.
        """
        log = self.folder / "coordinator.log"
        for line in log.read_text(errors="replace").splitlines():
            if (match := _DOWN.match(line)) is not None:
                when = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                if when >= self.signalled_at - _CLOCK_TICK_S:
                    return max(when - self.signalled_at, 0.0)
        return None

    def set_clock(self, offset_s: float) -> None:
        """What every process of the cluster adds to its wall clock from now on."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", offset_s))

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """No file of the coordinator can grow meanwhile: writes fail, as on a full disk."""
        pid = self.coordinator_pid()
        old = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # it was restarted
                resource.prlimit(pid, resource.RLIMIT_FSIZE, old)

    def pids(self) -> dict[str, int]:
        """Every process by the name that its supervisor gave it."""
        found = {}
        for supervisor in (self.coordinator, self.nodes):
            if supervisor is not None:
                found |= _children(supervisor.pid)
        return found

    def usage(self) -> dict[str, Usage]:
        """What every process holds now."""
        return {name: _usage(pid) for name, pid in self.pids().items()}

    def note_shared_memory(self) -> None:
        """Remember which segments the cluster's processes use now."""
        for pid in processes_of(self._mark):
            with suppress(OSError):  # it ended meanwhile
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    if str(_SHM) in line:
                        self._segments.add(line.split(str(_SHM) + "/")[1].split(" ")[0])

    def revive(self) -> None:
        """Let every stopped process go on."""
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _child_of_coordinator(self, name: str) -> int:
        assert self.coordinator is not None
        end = time.monotonic() + RETURN_S
        while True:
            pid = _children(self.coordinator.pid).get(name)
            if pid is not None:
                return pid
            assert time.monotonic() < end, f"{name} was not restarted\n{self.logs()}"
            time.sleep(0.05)


def _children(supervisor: int) -> dict[str, int]:
    found = {}
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        with suppress(OSError):  # it ended meanwhile
            found[Path(f"/proc/{pid}/comm").read_text().strip()] = int(pid)
    return found


def _usage(pid: int) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return Usage(len(os.listdir(f"/proc/{pid}/fd")), int(anonymous.split()[1]) << 10)


@contextmanager
def _sink() -> Iterator[str]:
    """An OTLP collector that takes everything and keeps nothing; its address."""

    class Anything(grpc.GenericRpcHandler):
        def service(
            self, details: grpc.HandlerCallDetails
        ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(4, "collector"), handlers=(Anything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
