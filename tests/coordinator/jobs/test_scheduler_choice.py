"""The queue: which executor work waits for, and when it is refused or called back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.ladder import Policy
from ditmesh.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.coordinator.fakes import TIMING, run, until, world
from tests.coordinator.jobs.claims import claim, waiting


def test_each_claim_waits_for_the_group_for_its_own_time() -> None:
    """A later claim does not put off the one before it."""

    async def test() -> None:
        async with world(formed=False, timing=replace(TIMING, regroup_wait=1.0)) as w:
            loop = asyncio.get_running_loop()
            began = loop.time()
            (first,) = await waiting(w, claim())
            await asyncio.sleep(0.8)
            (second,) = await waiting(w, claim())
            assert w.scheduler._wake is not None
            assert w.scheduler._wake.when() < began + 1.8
            grant = await first
            assert grant.executor.name == "local"
            assert grant.decision.reason == "NO_GROUP"
            assert loop.time() - began >= 1.0
            w.scheduler.release(grant)
            w.scheduler.release(await second)

    run(test())


def test_a_group_that_forms_in_time_gets_the_waiting() -> None:
    """Without any look at a clock."""

    async def test() -> None:
        async with world(formed=False) as w:
            (task,) = await waiting(w, claim())
            w.group.form()
            grant = await task
            assert grant.executor.name == "group"
            w.scheduler.release(grant)

    run(test())


@pytest.mark.parametrize("loads", [False, True])
def test_a_forming_group_is_waited_for(loads: bool) -> None:
    """Longer than a lost one, since it is about to be there; and one whose nodes load weights, by
    who has nowhere else to go: it would wait for them on a group as well.
    """

    async def test() -> None:
        async with world(formed=False) as w:
            w.group.awaits_loads = loads
            w.group.phase = GroupPhase.NONE if loads else GroupPhase.FORMING
            policy = Policy.FORBID if loads else Policy.ALLOW
            (task,) = await waiting(w, claim(policy=policy))
            await asyncio.sleep(0.3)
            assert not task.done()
            w.group.form()
            w.scheduler.release(await task)

    run(test())


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    """Unavailable with a delay; the claim is out of the queue."""

    async def test() -> None:
        async with world(nodes=0, local=False) as w:
            with pytest.raises(Unavailable, match=r"no nodes.*no local sampler") as caught:
                await w.scheduler.acquire(claim())
            assert caught.value.retry_after_s

    run(test())


def test_work_that_would_miss_its_deadline_is_refused_at_once() -> None:
    """From what earlier steps of the local sampler took."""

    async def test() -> None:
        async with world(nodes=0) as w:
            local = await w.scheduler.acquire(claim())
            w.cluster.note_step(local.executor, "tiny", cells=16, seconds=10.0)
            w.scheduler.release(local)
            soon = asyncio.get_running_loop().time() + 39.0
            with pytest.raises(DeadlineExceeded, match="about 40 s"):
                await w.scheduler.acquire(claim(deadline=soon))
            w.scheduler.release(await w.scheduler.acquire(claim(deadline=soon + 5.0)))

    run(test())


def test_work_that_only_lacked_a_group_is_called_back() -> None:
    """Once the group is free and nobody waits for it; not what was excluded from it."""

    async def test() -> None:
        async with world(formed=False) as w:
            called: list[str] = []
            exile = await w.scheduler.acquire(claim(on_group_free=lambda: called.append("exile")))
            assert exile.executor.name == "local"
            w.group.form()
            await until(lambda: called)
            w.scheduler.release(exile)
            excluded = await w.scheduler.acquire(
                claim(group_excluded="BAD_RESULT", on_group_free=lambda: called.append("excluded"))
            )
            w.scheduler.pump()
            w.scheduler.release(excluded)
            assert set(called) == {"exile"}

    run(test())


def test_the_local_sampler_has_a_queue_of_its_own() -> None:
    """Beyond it new work is refused with a time to try again; work that has begun never is."""

    async def test() -> None:
        async with world(nodes=0) as w:
            w.scheduler._local_queue = 2
            held = await w.scheduler.acquire(claim())
            queued = await waiting(w, claim(), claim())
            with pytest.raises(Overloaded, match="queue is full") as refused:
                await w.scheduler.acquire(claim())
            assert refused.value.retry_after_s
            begun = asyncio.create_task(w.scheduler.acquire(claim(), first=True))
            await asyncio.sleep(0)
            w.scheduler.release(held)
            for task in (begun, *queued):
                w.scheduler.release(await task)

    run(test())


def test_the_local_queue_is_no_limit_for_the_group() -> None:
    """Whoever waits for the group waits in the one long queue."""

    async def test() -> None:
        async with world() as w:
            w.scheduler._local_queue = 0
            held = await w.scheduler.acquire(claim())
            tasks = await waiting(w, *(claim() for _ in range(5)))
            w.scheduler.release(held)
            for task in tasks:
                w.scheduler.release(await task)

    run(test())
