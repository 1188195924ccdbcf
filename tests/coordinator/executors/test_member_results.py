"""A leader on this machine writes its result to the coordinator's memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.executors import member
from ditmesh import errors
from ditmesh.output_rooms import OutputRooms, write_output
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2 as pb
from tests.coordinator.executors.members import ScriptedNode, aborting, executor, work
from tests.coordinator.fakes import f32, run, until

NBYTES = 16 * 16 * 16 * 4


@pytest.fixture(autouse=True)
def rooms(monkeypatch: pytest.MonkeyPatch) -> OutputRooms:
    """Rooms of this test alone."""
    made = OutputRooms()
    monkeypatch.setattr(member, "_ROOMS", made)
    return made


def latent(value: float) -> WireTensor:
    return f32(1, 16, 16, 16, value=value)


def all_here(made: Any, host: str | None = None) -> None:
    for link in made.members:
        link.report = pb.WatchResponse(host=host_id() if host is None else host)


@pytest.mark.parametrize("name", ["group", "local"])
def test_a_leader_on_this_machine_writes_its_result(name: str) -> None:
    """It alone has room for it, the same in one job after another; each result is its own."""

    async def test() -> None:
        async with executor(name) as (made, nodes):
            all_here(made)
            ends = []
            for value in (1.0, 2.0):
                nodes[0].latent, nodes[0].writes = latent(value), True
                ends.append(await work(made, latent_bytes=NBYTES))
            assert [end.tensors for end in ends] == [(latent(1.0),), (latent(2.0),)]
            assert [end.stopped for end in ends] == [pb.STOP_REASON_UNSPECIFIED] * 2
            first, second = nodes[0].memories
            assert first is not None
            assert first == second
            assert [node.memories for node in nodes[1:]] == [[None, None]] * len(nodes[1:])

    run(test())


@pytest.mark.parametrize("host", ["", "another machine"])
def test_a_leader_elsewhere_has_no_room(host: str) -> None:
    """It sends its result."""

    async def test() -> None:
        async with executor() as (made, nodes):
            all_here(made, host)
            nodes[0].latent, nodes[0].writes = latent(1.0), True
            end = await work(made, latent_bytes=NBYTES)
            assert end.tensors == (latent(1.0),)
            assert nodes[0].memories == [None]

    run(test())


def test_an_older_node_sends_its_result() -> None:
    """It does not know what the room is for; nobody else has that room afterwards."""

    async def test() -> None:
        async with executor() as (made, nodes):
            all_here(made)
            nodes[0].latent = latent(1.0)
            end = await work(made, latent_bytes=NBYTES)
            assert end.tensors == (latent(1.0),)
            (memory,) = nodes[0].memories
            assert memory is not None
            await until(lambda: not write_output(memory, bytes(NBYTES)))

    run(test())


def test_a_member_that_fails_may_write_late() -> None:
    """To memory that is nobody's: the next job has another room, and its own result."""
    told: list[Any] = []

    async def fails(node: ScriptedNode, context: Any) -> None:
        told.append(node.room)
        await aborting(errors.ExecutorFailed("out of memory"))(node, context)

    async def test() -> None:
        async with executor("local") as (made, nodes):
            all_here(made)
            nodes[0].latent, nodes[0].writes = latent(1.0), True
            nodes[0].at["step1"] = fails
            with pytest.raises(errors.ExecutorFailed):
                await work(made, latent_bytes=NBYTES)
            nodes[0].at.clear()
            await until(lambda: not write_output(told[0], bytes(NBYTES)))
            assert (await work(made, latent_bytes=NBYTES)).tensors == (latent(1.0),)

    run(test())


def test_a_job_that_nobody_waits_for_leaves_no_room(rooms: OutputRooms) -> None:
    """Cancelled in the middle: the member may be writing, so its room is given to nobody."""
    told: list[Any] = []

    async def test() -> None:
        async with executor("local") as (made, nodes):
            all_here(made)
            here = asyncio.Event()

            async def waits(node: ScriptedNode, context: Any) -> None:
                told.append(node.room)
                here.set()
                await asyncio.sleep(3600)

            nodes[0].at["step1"] = waits
            job = asyncio.create_task(work(made, latent_bytes=NBYTES))
            await here.wait()
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            await until(lambda: not write_output(told[0], bytes(NBYTES)))
            assert not rooms._idle

    run(test())
