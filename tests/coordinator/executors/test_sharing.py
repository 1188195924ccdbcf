"""Tensors that members of this machine read from memory, and those that they are sent."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from coordinator.lifecycle.node import Report
from ditmesh import shared_memory
from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2 as pb
from tests.coordinator.executors.members import executor, work
from tests.coordinator.fakes import f32, run, until


def test_members_of_this_machine_read_tensors_from_memory() -> None:
    """Not a byte is sent to one that can; one elsewhere, or one that cannot, is sent them all."""

    async def test() -> None:
        async with executor() as (made, nodes):
            here, there = made.members
            here.report = pb.WatchResponse(host=shared_memory.host_id())
            there.report = pb.WatchResponse(host="another")
            await work(made)
            nodes[0].blind = True
            await work(made)
            everything = sum(t.spec.nbytes for t in nodes[1].tensors)
            assert nodes[0].came == [0, everything]
            assert nodes[1].came == [everything, everything]
            assert nodes[0].tensors == nodes[1].tensors
            assert nodes[1].offered == [[], []]

    run(test())


def test_a_member_is_told_with_the_job_where_to_read_what_is_new_to_it() -> None:
    """It has nothing to ask then. What it was given before it asks for when it has dropped it, and
    another process has everything to be told.
    """

    async def test() -> None:
        async with executor() as (made, nodes):
            for member in made.members:
                member.report = pb.WatchResponse(host=shared_memory.host_id())
            hashed = f32(100_000).hashed()
            await work(made, more=[hashed])
            await work(made, more=[hashed])
            made.members[0]._apply(Report("another process", 1))
            await work(made, more=[hashed])
            assert nodes[0].offered == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
            assert nodes[1].offered == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
            assert [node.asked for node in nodes] == [[[3]], [[3], [3]]]
            assert [node.came for node in nodes] == [[0, 0, 0]] * 2

    run(test())


def test_a_run_that_is_given_up_while_memory_is_written_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread cannot be interrupted: what it writes to stays open until it is through, and then
    nobody has it.
    """
    begun, go_on = threading.Event(), threading.Event()
    opened, outcomes = list[tuple[int, os.stat_result]](), list[OSError | None]()

    def add(memory: Memory, tensor: WireTensor) -> int:
        opened.append((memory.fd, os.fstat(memory.fd)))
        begun.set()
        assert go_on.wait(20)
        try:
            os.pwrite(memory.fd, b"more", 4096)
        except OSError as error:
            outcomes.append(error)
            raise
        outcomes.append(None)
        raise OSError("enough")

    def is_open(fd: int, file: os.stat_result) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), file)
        except OSError:
            return False

    async def test() -> None:
        async with executor() as (made, _):
            made.members[0].report = pb.WatchResponse(host=shared_memory.host_id())
            preparing = asyncio.create_task(work(made))
            await until(begun.is_set)
            preparing.cancel()
            await asyncio.wait([preparing])
            assert is_open(*opened[0])
            go_on.set()
            await until(lambda: bool(outcomes))
            assert outcomes == [None]
            await until(lambda: not is_open(*opened[0]))

    monkeypatch.setattr(Memory, "add", add)
    monkeypatch.setattr("coordinator.executors.sharing._INLINE_BYTES", 0)
    monkeypatch.setattr("coordinator.executors.sharing._POOL", MemoryPool())
    run(test())


def test_memory_that_cannot_be_had_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are sent instead."""

    def full(*args: Any) -> None:
        raise OSError("no room")

    async def test() -> None:
        async with executor() as (made, nodes):
            for member in made.members:
                member.report = pb.WatchResponse(host=shared_memory.host_id())
            monkeypatch.setattr(shared_memory.Memory, "add", full)
            await work(made)
            assert all(node.came[0] > 0 for node in nodes)

    run(test())
