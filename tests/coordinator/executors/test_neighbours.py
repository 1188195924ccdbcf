"""Members that share another machine: one is sent the tensors, the others read them from it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch

from coordinator.executors import member
from coordinator.executors.executor import Executor
from coordinator.executors.member import MemberRun
from coordinator.executors.sharing import Share
from coordinator.executors.stopping import StopRequest
from coordinator.lifecycle.node import NodePhase, NodeView
from coordinator.nodes.link import NodeLink
from ditmesh import chunk_messages, shared_memory
from ditmesh.content import ContentStore
from ditmesh.errors import ExecutorFailed
from ditmesh.jobs import Job
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import node_pb2 as pb
from tests.coordinator.executors.members import ScriptedNode, aborting, executor, work
from tests.coordinator.fakes import PATIENCE_S, f32, make_job, run
from tests.executor.node import CASE, Node, golden_job, serving
from tests.sampling.golden_cases import load_golden


def at(hosts: list[str], made: Executor) -> None:
    """Say where the members are."""
    for link, host in zip(made.members, hosts, strict=True):
        link.report = pb.WatchResponse(host=host)


def test_tensors_go_to_a_machine_once() -> None:
    """To its first member, from which the others read them; and to each that knows no machine."""

    async def test() -> None:
        async with executor(size=6) as (made, nodes):
            here = shared_memory.host_id()
            at(["a", "a", "b", "a", here, ""], made)
            await work(made)
            everything = sum(t.spec.nbytes for t in nodes[0].tensors)
            assert [sum(n.came) for n in nodes] == [everything, 0, everything, 0, 0, everything]
            assert [n.told_to_pass_on for n in nodes] == [[True]] + [[False]] * 5
            assert all(n.tensors == nodes[0].tensors for n in nodes)
            # The neighbours need not ask.
            assert [len(n.asked) for n in nodes] == [1, 0, 1, 0, 0, 1]

    run(test())


def test_who_cannot_read_a_neighbours_memory_is_sent_the_tensors() -> None:
    """As is everybody whose neighbour has no memory to pass them on in."""

    async def test() -> None:
        async with executor(size=3) as (made, nodes):
            at(["a", "a", "a"], made)
            nodes[1].blind = True
            await work(made)
            everything = sum(t.spec.nbytes for t in nodes[0].tensors)
            assert [n.came for n in nodes] == [[everything], [everything], [0]]
            nodes[0].keeps_all, nodes[1].blind = True, False
            await work(made)
            assert [n.came[1] for n in nodes] == [everything] * 3

    run(test())


def test_little_is_sent_to_each() -> None:
    """Waiting for a neighbour would take longer."""

    async def test() -> None:
        async with executor() as (made, nodes):
            at(["a", "a"], made)
            hashed = [f32(700_000).hashed(), f32(100).hashed()]
            await work(made, more=hashed, large=False)
            await work(made, more=hashed, large=False)
            assert [n.told_to_pass_on for n in nodes] == [[True, False], [False, False]]

    run(test())


@pytest.mark.parametrize("had", ["nothing", "the large one", "everything", "no memory"])
def test_a_model_that_one_loads_holds_up_no_neighbour(had: str) -> None:
    """All load at the same time, whatever the first had of the tensors already."""

    async def test() -> None:
        async with executor() as (made, nodes):
            at(["a", "a"], made)
            spec, tensors = make_job(tensors=[f32(700_000)])
            tensors = [tensor.hashed() for tensor in tensors]
            del spec.tensors[:]
            spec.tensors.extend(tensor.spec.to_proto() for tensor in tensors)
            nodes[0].store = ContentStore(1 << 30)
            nodes[0].keeps_all = had == "no memory"
            for tensor in {"the large one": tensors[2:], "everything": tensors}.get(had, []):
                nodes[0].store.put("", tensor)
            others_have = asyncio.Event()

            async def load(node: ScriptedNode, context: Any) -> None:
                async with asyncio.timeout(20):
                    await others_have.wait()

            async def came(node: ScriptedNode, context: Any) -> None:
                others_have.set()

            nodes[0].at["prepare"] = load
            nodes[1].at["came"] = came
            prepared = await made.prepare(Job(spec, tuple(tensors)))
            prepared.close()
            assert nodes[1].tensors == tuple(tensors)
            sizes = [tensor.spec.nbytes for tensor in tensors]
            passed = {"nothing": sizes, "the large one": sizes[:2]}.get(had, [])
            assert sum(nodes[1].came) == sum(sizes) - sum(passed)

    run(test())


def test_a_neighbour_that_fails_is_waited_for_by_nobody() -> None:
    """Whoever waits for its memory is sent the tensors."""

    async def test() -> None:
        async with executor() as (made, nodes):
            at(["a", "a"], made)
            nodes[0].at["receive"] = aborting(ExecutorFailed("out of memory"))
            spec, tensors = make_job(tensors=[f32(700_000)])
            order = pb.RunJob(job=spec)
            with Share(tensors) as share:
                share.write_ahead(made.members)
                first, other = (MemberRun(link) for link in made.members)
                waiting = asyncio.create_task(other.prepare(order, share))
                with pytest.raises(grpc.aio.AioRpcError):
                    await first.prepare(order, share)
                async with asyncio.timeout(PATIENCE_S):
                    await waiting
                other.close()
            assert nodes[1].tensors == tuple(tensors)

    run(test())


def test_real_executors_pass_on_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' servicers: the same picture, and one stream of pieces."""
    sent: list[list[int]] = []
    pieces = chunk_messages.chunk_messages

    def counted(kind: Any, tensors: Any, needed: Any) -> Any:
        sent.append(list(needed))
        return pieces(kind, tensors, needed)

    monkeypatch.setattr(member, "chunk_messages", counted)
    monkeypatch.setattr("coordinator.executors.neighbours._WORTH_BYTES", 0)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    async def test(nodes: list[Node]) -> None:
        links = []
        for node in nodes:
            link = NodeLink(node.address, silence_s=5.0)
            link.view = NodeView(NodePhase.JOINED, "one", 0, "")
            links.append(link)
        made = Executor("group", links)
        at(["a", "a"], made)
        try:
            end = await made.run(
                golden_job(), deadline_s=None, on_step=lambda report: None, stop=StopRequest()
            )
        finally:
            made.close()
            for link in links:
                await link.close()
        assert end.result is not None
        case = load_golden(CASE)
        latent = to_torch(end.tensors[end.result.latent])
        assert case.difference(torch.as_tensor(latent)) <= case.tolerance
        assert sent == [[0, 1]]

    with serving(tmp_path / "one") as first, serving(tmp_path / "two") as second:
        run(test([first, second]))
