"""The group of real streams to scripted nodes: who loads, who joins, and who is left out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator.cluster.group import GroupManager
from coordinator.cluster.meshes import MeshPlan
from coordinator.config import Timing
from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.group_events import Tick
from ditmesh.errors import DamagedModel, GroupLost, Loading
from ditmesh.rpc_status import abort
from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import node_pb2_grpc
from tests.coordinator.fakes import MODEL, run, stop, until

TIMING = Timing(settle=0.2, join_timeout=1.0, collective_timeout=0.5)


class Store:
    """The rendezvous as the coordinator sees it: who has come."""

    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.came: dict[int, set[int]] = {}

    def arrived(self, epoch: int, world_size: int) -> set[int]:
        """See `Rendezvous.arrived`."""
        return self.came.get(epoch, set())


class Node(node_pb2_grpc.NodeServiceServicer):
    """Joins with the others unless the test says otherwise."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.incarnation = uuid.uuid4().hex
        self.epoch = 0
        self.loaded: list[str] = []
        self.log: list[str] = []
        """What it was told to do."""
        self.joining = "well"
        """Or "fails", or "hangs", before it comes to the rendezvous; or "breaks" there; or the
        coordinator "stands still" meanwhile, for longer than a join may take; or it "loads".
        """
        self.tells = ""
        """The model that it says it loads."""
        self.loading = asyncio.Event()
        self.loading.set()
        self.damaged = False
        self._changed = asyncio.Event()

    async def Watch(
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        """Its state, at every change and often."""
        while True:
            models = [pb.NodeModel(model=MODEL, loaded="tiny" in self.loaded)]
            yield pb.WatchResponse(
                incarnation=self.incarnation,
                epoch=self.epoch,
                models=models,
                pid=1,
                loading=self.tells,
            )
            await asyncio.sleep(0.02)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """Takes as long as the test wants."""
        self.log.append(f"load {request.model}")
        await self.loading.wait()
        if self.damaged:
            await abort(context, DamagedModel("a file is torn"))
        self.loaded.append(request.model)
        return pb.LoadModelResponse()

    async def JoinGroup(self, request: pb.JoinGroupRequest, context: Any) -> pb.JoinGroupResponse:
        """Comes to the rendezvous, and waits for the others."""
        self.log.append(f"join {request.epoch}")
        if self.joining == "hangs":
            await asyncio.sleep(60.0)
        if self.joining == "stands still":
            time.sleep(1.5 * TIMING.join_timeout)
        if self.joining == "loads":
            await abort(context, Loading("it loads tiny"))
        if self.joining == "fails":
            await abort(context, GroupLost("no such interface"))
        came = self.store.came.setdefault(request.epoch, set())
        came.add(request.rank)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                while len(came) < request.world_size:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await abort(context, GroupLost("others did not come"))
        if self.joining == "breaks":
            await abort(context, GroupLost("cannot connect"))
        self.epoch = request.epoch
        return pb.JoinGroupResponse()

    async def LeaveGroup(
        self, request: pb.LeaveGroupRequest, context: Any
    ) -> pb.LeaveGroupResponse:
        """At once."""
        self.epoch = 0
        return pb.LeaveGroupResponse()


class Site:
    """Nodes on ports of their own, and the manager of their group."""

    def __init__(self, nodes: Sequence[Node], manager: GroupManager) -> None:
        self.nodes = list(nodes)
        self.manager = manager

    def members(self) -> list[int]:
        """The numbers of the nodes that form the group now."""
        formed = self.manager.formed
        addresses = list(self.manager.links)
        return sorted(addresses.index(link.address) for link in formed.members) if formed else []

    def left_out(self) -> dict[int, str]:
        """Why which nodes are kept out."""
        addresses = list(self.manager.links)
        return {addresses.index(a): why for a, why in self.manager.left_out().items()}

    def forgive(self) -> None:
        """The time is over for which nodes are left out."""
        benched = self.manager._machine._benched
        benched.update(dict.fromkeys(benched, 0.0))
        self.manager._handle(Tick())

    async def restart(self, number: int) -> None:
        """Another process takes the node's place."""
        old = self.nodes[number]
        old.incarnation, old.epoch, old.loaded = uuid.uuid4().hex, 0, []
        old.log.clear()


@asynccontextmanager
async def site(count: int, *, preload: Sequence[str] = ()) -> Any:
    """A group of so many nodes, soon; a node that fails three times is left out for long."""
    store = Store()
    nodes = [Node(store) for _ in range(count)]
    servers, addresses = [], []
    for node in nodes:
        server = grpc.aio.server()
        node_pb2_grpc.add_NodeServiceServicer_to_server(node, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    manager = GroupManager(
        addresses,
        MeshPlan(count),
        rendezvous=store,  # type: ignore[arg-type]
        timing=TIMING,
        preload=preload,
    )
    machine = manager._machine
    machine.policy = replace(machine.policy, retry_s=0.01, retry_max_s=0.05, bench_s=600.0)
    try:
        yield Site(nodes, manager)
    finally:
        await manager.close()
        await stop(*servers)


@pytest.mark.parametrize("joining", ["fails", "hangs"])
def test_a_node_that_always_fails_to_join_is_left_out(joining: str) -> None:
    """The others have a group without it; it is said why, and it comes back once it can."""

    async def test() -> None:
        async with site(3) as s:
            s.nodes[1].joining = joining
            s.manager.start()
            await until(lambda: s.members() == [0, 2] and s.left_out())
            (why,) = s.left_out().values()
            assert list(s.left_out()) == [1]
            assert "failed to join" in why
            assert len(s.nodes[1].log) == 3
            s.nodes[1].joining = "well"
            s.forgive()
            await until(lambda: s.members() == [0, 1, 2])
            assert not s.left_out()

    run(test())


def test_a_coordinator_that_stood_still_blames_nobody_for_it() -> None:
    """The node joined meanwhile: the first group forms."""

    async def test() -> None:
        async with site(1) as s:
            s.nodes[0].joining = "stands still"
            s.manager.start()
            await until(lambda: s.members() == [0])
            assert s.nodes[0].log == ["join 1"]

    run(test())


def test_a_node_that_says_that_it_loads_is_not_asked_to_join() -> None:
    """The others wait for it for a moment, then form; it is said why, and it comes in later."""

    async def test() -> None:
        async with site(3) as s:
            s.nodes[1].tells = "tiny"
            s.manager.start()
            await until(lambda: s.members() == [0, 2])
            assert s.left_out()[1].startswith("left out while it loads tiny, ")
            assert not s.nodes[1].log
            s.nodes[1].tells = ""
            await until(lambda: s.members() == [0, 1, 2])
            assert not s.left_out()

    run(test())


def test_a_node_that_refuses_to_join_because_it_loads_is_not_blamed() -> None:
    """The order was on its way before it could tell: it is asked again, and nobody is left out."""

    async def test() -> None:
        async with site(2) as s:
            s.nodes[1].joining = "loads"
            s.manager.start()
            await until(lambda: len(s.nodes[1].log) > 2 * s.manager._machine.policy.strikes)
            s.nodes[1].joining = "well"
            await until(lambda: s.members() == [0, 1])
            assert not s.manager._machine._strikes
            assert not s.manager._machine._failures

    run(test())


def test_nobody_else_is_blamed_for_a_node_that_breaks_the_connection() -> None:
    """A newcomer with which no group forms is left out, though all came to the rendezvous."""

    async def test() -> None:
        async with site(3) as s:
            s.nodes[2].joining = "breaks"
            s.nodes[2].loading.clear()
            s.manager._preload = ("tiny",)
            s.manager.start()
            await until(lambda: s.members() == [0, 1])
            s.nodes[2].loading.set()
            await until(lambda: 2 in s.left_out())
            await until(lambda: s.members() == [0, 1])

    run(test())


def test_a_node_that_returns_loads_its_weights_while_the_others_work() -> None:
    """What they work with; only then the group is given up for a larger one."""

    async def test() -> None:
        async with site(2, preload=["tiny"]) as s:
            s.manager.start()
            await until(lambda: s.members() == [0, 1])
            assert s.nodes[1].log[0] == "load tiny"
            s.nodes[1].loading.clear()
            await s.restart(1)
            await until(lambda: s.members() == [0])
            epoch = s.manager.epoch
            await until(lambda: s.nodes[1].log == ["load tiny"])
            await asyncio.sleep(0.3)
            assert (s.members(), s.manager.epoch) == ([0], epoch)
            s.nodes[1].loading.set()
            await until(lambda: s.members() == [0, 1])
            assert s.nodes[1].log == ["load tiny", f"join {s.manager.epoch}"]
            assert s.nodes[0].log.count("load tiny") == 1

    run(test())


def test_a_node_whose_model_is_damaged_keeps_nobody_waiting() -> None:
    """The others form; it is asked again now and then, and joins once its files are whole."""

    async def test() -> None:
        async with site(2, preload=["tiny"]) as s:
            s.nodes[0].damaged = True
            s.manager.start()
            await until(lambda: s.members() == [1] and s.left_out())
            assert "a file is torn" in s.left_out()[0]
            s.nodes[0].damaged = False
            await until(lambda: s.members() == [0, 1])
            assert not s.left_out()

    run(test())


def test_a_node_that_goes_while_it_loads_is_forgotten() -> None:
    """Its load does not bring it back."""

    async def test() -> None:
        async with site(2, preload=["tiny"]) as s:
            s.nodes[1].loading.clear()
            s.manager.start()
            await until(lambda: s.nodes[1].log and s.members() == [0])
            s.manager.links[list(s.manager.links)[1]].doubt("it is gone")
            assert s.manager.phase is GroupPhase.READY
            await until(lambda: len(s.nodes[1].log) == 2)
            s.nodes[1].loading.set()
            await until(lambda: s.members() == [0, 1])

    run(test())
