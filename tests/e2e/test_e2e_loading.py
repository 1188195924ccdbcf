"""A rank dies while the others load weights."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.cluster.group import GroupManager
from coordinator.cluster.meshes import MeshPlan
from coordinator.cluster.rendezvous import Rendezvous
from coordinator.config import Timing
from coordinator.executors.executor import Executor
from coordinator.executors.stopping import StopRequest
from ditmesh.errors import GroupLost
from ditmesh.executor.server import ExecutorConfig
from ditmesh.telemetry import TelemetryConfig
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import node_pb2 as pb
from gpu_node import node
from gpu_node.execution import Execution
from gpu_node.node import NodeConfig
from tests.coordinator.fakes import run, until
from tests.executor.node import CASE, golden_job
from tests.ports import free_ports
from tests.sampling.golden_cases import CHECKPOINT, load_golden

pytestmark = pytest.mark.timeout(300)

RANKS = 3
START_S = 100.0


class Site:
    """Ranks that write down which process loads, and do not end it before they may."""

    def __init__(self, folder: Path) -> None:
        (folder / "models").mkdir()
        (folder / "models" / "tiny.safetensors").symlink_to(CHECKPOINT)
        (folder / "loads").touch()
        self._folder = folder
        port = free_ports(RANKS)
        self.addresses = [f"127.0.0.1:{port + rank}" for rank in range(RANKS)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.gpu_node.parallel.preload"])
        self.processes = [context.Process(target=_rank, args=(folder, a)) for a in self.addresses]
        for process in self.processes:
            process.start()

    def let_them_load(self) -> None:
        """From now on loads end."""
        (self._folder / "may_load").touch()

    @property
    def loads(self) -> list[int]:
        """The processes that began to load, once for each time."""
        return [int(line) for line in (self._folder / "loads").read_text().split()]

    def close(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def _rank(folder: Path, address: str) -> None:
    load = node.load_transformer

    def wait_and_load(*args: object, **options: object) -> object:
        with (folder / "loads").open("a") as loads:
            loads.write(f"{os.getpid()}\n")
        while not (folder / "may_load").exists():
            time.sleep(0.02)
        return load(*args, **options)

    node.load_transformer = wait_and_load
    executor = ExecutorConfig(address, TelemetryConfig("gpu_node"))
    config = NodeConfig(folder / "models", "cpu", Execution("fp32"), "lo", 1, executor)
    raise SystemExit(node.run(config))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Ranks without a coordinator."""
    made = Site(tmp_path)
    yield made
    made.close()


def test_ranks_that_load_when_another_dies_go_on_loading(site: Site) -> None:
    """The same processes form the next group when they are through, with weights that they loaded
    once; and the job's result is as ever.
    """

    async def test() -> None:
        plan, store = MeshPlan(RANKS), Rendezvous("127.0.0.1")
        manager = GroupManager(site.addresses, plan, rendezvous=store, timing=Timing())
        manager.start()
        try:
            first = await group_of(manager, RANKS)
            preparing = asyncio.create_task(first.prepare(golden_job()))
            await until(lambda: len(site.loads) == RANKS)
            site.processes[1].kill()
            with pytest.raises(GroupLost):
                await preparing
            survivors = [first.members[0], first.members[2]]
            pids = [link.report.pid for link in survivors if link.report]
            for link in survivors:
                # It is answered by who does not end itself.
                await link.stub.LeaveGroup(pb.LeaveGroupRequest(epoch=first.epoch))
            await until(lambda: sum("loads tiny" in p for p in manager.left_out().values()) == 2)
            assert manager.formed is None
            first.close()
            site.let_them_load()

            second = await group_of(manager, 2)
            assert [link.report.pid for link in second.members if link.report] == pids
            end = await second.run(
                golden_job(), deadline_s=None, on_step=lambda step: None, stop=StopRequest()
            )
            second.close()
            assert end.result is not None
            case = load_golden(CASE)
            assert case.difference(to_torch(end.tensors[end.result.latent])) <= case.tolerance
            assert [site.loads.count(pid) for pid in pids] == [1, 1]
            assert not manager._machine._strikes.keys() & {link.address for link in survivors}
        finally:
            await manager.close()

    run(test())


async def group_of(manager: GroupManager, ranks: int) -> Executor:
    """The executor of a group of so many."""
    await until(lambda: manager.formed and len(manager.formed.members) == ranks, START_S)
    formed = manager.formed
    assert formed is not None
    return Executor("group", formed.members, epoch=formed.epoch, mesh=formed.meshes[0])
