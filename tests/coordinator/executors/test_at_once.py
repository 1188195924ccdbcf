"""A member that is alone begins a job without waiting for its start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.executors.member import MemberRun
from ditmesh import errors
from ditmesh.jobs import Job
from tests.coordinator.executors.members import ScriptedNode, aborting, executor, work
from tests.coordinator.fakes import make_job, run


@pytest.mark.parametrize(("name", "size"), [("local", 1), ("group", 1), ("group", 2)])
def test_a_member_that_is_alone_need_not_wait_for_its_start(name: str, size: int) -> None:
    """No other could be late for a collective. An older one that waits gets its start."""

    async def test() -> None:
        async with executor(name, size) as (made, nodes):
            end = await work(made)
            assert end.result is not None
            assert [node.told_at_once for node in nodes] == [[size == 1]] * size

    run(test())


@pytest.mark.parametrize("wrong", [False, True])
def test_a_job_that_is_over_before_its_coordinator_looks_keeps_its_end(
    monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """What is written to a stream that has ended costs what it has brought, so nothing is: neither
    the result is lost nor the real error.
    """
    over = asyncio.Event()
    start = MemberRun.start

    async def late(run: MemberRun) -> None:
        await over.wait()
        # Its end is on its way.
        await asyncio.sleep(0.1)
        await start(run)

    async def ending_so(node: ScriptedNode, context: Any) -> None:
        over.set()
        if wrong:
            await aborting(errors.InvalidTensor("no such value"))(node, context)

    monkeypatch.setattr(MemberRun, "start", late)

    async def test() -> None:
        async with executor("local") as (made, nodes):
            nodes[0].begins = True
            nodes[0].at["end"] = ending_so
            if wrong:
                with pytest.raises(errors.InvalidTensor, match="no such value"):
                    await work(made)
                return
            steps: list[int] = []
            end = await work(made, steps)
            assert steps == [1, 2]
            assert end.result is not None

    run(test())


def test_a_job_brought_ahead_waits_for_its_start() -> None:
    """Another job runs: this one's turn is not yet."""

    async def test() -> None:
        async with executor("local") as (made, nodes):
            spec, tensors = make_job(tensors=[])
            prepared = await made.prepare(Job(spec, tuple(tensors)))
            assert nodes[0].told_at_once == [False]
            prepared.close()

    run(test())
