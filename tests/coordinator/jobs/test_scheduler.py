"""The queue: who gets an executor, when, and that it always comes back."""

from __future__ import annotations

import asyncio
import random

import pytest

from coordinator.lifecycle.ladder import Policy
from tests.coordinator.fakes import run, until, world
from tests.coordinator.jobs.claims import claim, waiting


def test_first_come_first_served() -> None:
    """In the order of arrival, each when the one before gives the group back."""

    async def test() -> None:
        async with world(local=False) as w:
            tasks = await waiting(w, *(claim() for _ in range(5)))
            for number, task in enumerate(tasks):
                grant = await task
                assert w.scheduler.waiting == 4 - number
                assert not any(later.done() for later in tasks[number + 1 :])
                w.scheduler.release(grant)

    run(test())


def test_who_lost_an_executor_comes_first_again() -> None:
    """A job that has begun goes on before one that has not."""

    async def test() -> None:
        async with world(local=False) as w:
            held = await w.scheduler.acquire(claim())
            (later,) = await waiting(w, claim())
            again = asyncio.create_task(w.scheduler.acquire(claim(), first=True))
            await asyncio.sleep(0)
            w.scheduler.release(held)
            grant = await again
            assert not later.done()
            w.scheduler.release(grant)
            w.scheduler.release(await later)

    run(test())


def test_positions_are_told_when_they_change_and_only_then() -> None:
    """Each waiting claim hears how many are before it, the one at work too, until none is."""

    async def test() -> None:
        async with world(local=False) as w:
            heard: list[list[int]] = [[], [], []]
            claims = [claim(on_position=positions.append) for positions in heard]
            held = await w.scheduler.acquire(claim())
            tasks = await waiting(w, *claims)
            for _ in range(10):
                w.scheduler.pump()
            assert heard == [[1], [2], [3]]
            tasks[0].cancel()
            await asyncio.sleep(0.01)
            assert heard == [[1], [2, 1], [3, 2]]
            assert w.scheduler.position(claims[2]) == 2
            w.scheduler.release(held)
            for task in tasks[1:]:
                w.scheduler.release(await task)
            assert heard == [[1], [2, 1, 0], [3, 2, 1, 0]]

    run(test())


def test_work_that_lined_up_is_before_a_claim_too() -> None:
    """So is the work before it, until its result has come."""

    async def test() -> None:
        async with world() as w:
            heard: list[int] = []
            leaving = await w.scheduler.acquire(claim())
            lined_up, waits = await waiting(w, claim(), claim(on_position=heard.append))
            w.scheduler.hand_on(leaving)
            at_work = await lined_up
            local = await w.scheduler.acquire(claim(Policy.LOCAL_ONLY))
            w.scheduler.pump()
            assert heard == [2]
            w.scheduler.release(leaving)
            await until(lambda: heard == [2, 1])
            w.scheduler.release(local)
            w.scheduler.release(at_work)
            w.scheduler.release(await waits)
            assert heard == [2, 1, 0]

    run(test())


@pytest.mark.parametrize("released_first", [True, False])
def test_a_grant_in_the_moment_of_a_cancel_is_given_on(released_first: bool) -> None:
    """Whichever comes first in one turn of the loop, the executor is not lost."""

    async def test() -> None:
        async with world(local=False) as w:
            held = await w.scheduler.acquire(claim())
            (cancelled, next_one) = await waiting(w, claim(), claim())
            if released_first:
                w.scheduler.release(held)
                await asyncio.sleep(0)
                cancelled.cancel()
            else:
                cancelled.cancel()
                w.scheduler.release(held)
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            w.scheduler.release(await next_one)

    run(test())


def test_a_refusal_in_the_moment_of_a_cancel_is_a_cancel() -> None:
    """Not an error that nobody asked for."""

    async def test() -> None:
        async with world(nodes=1, local=False, formed=False) as w:
            (task,) = await waiting(w, claim())
            w.group.links.clear()
            w.scheduler.pump()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(test())


def test_claims_that_cancel_and_release_at_random_lose_nothing() -> None:
    """Hundreds of claims in all interleavings that chance finds: every executor comes back."""

    async def test() -> None:
        async with world() as w:
            w.scheduler._local_queue = 200
            chance = random.Random(0)

            async def client() -> None:
                policy = chance.choice(list(Policy))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                grant = await w.scheduler.acquire(claim(policy), first=chance.random() < 0.2)
                try:
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                finally:
                    w.scheduler.release(grant)

            tasks = [asyncio.create_task(client()) for _ in range(200)]
            while not all(task.done() for task in tasks):
                chance.choice(tasks).cancel()
                await asyncio.sleep(0)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
            assert None in ends

    run(test())


def test_a_waiting_claim_does_not_block_another_executor() -> None:
    """The queue is first come, first served for each executor."""

    async def test() -> None:
        async with world() as w:
            held = await w.scheduler.acquire(claim())
            (for_group,) = await waiting(w, claim(Policy.FORBID))
            local = await w.scheduler.acquire(claim(Policy.LOCAL_ONLY))
            assert not for_group.done()
            w.scheduler.release(local)
            w.scheduler.release(held)
            w.scheduler.release(await for_group)

    run(test())


def test_who_wants_an_executor_alone_does_not_line_up_and_is_not_overtaken() -> None:
    """Others would line up before it again and again; behind it they may."""

    async def test() -> None:
        async with world(local=False) as w:
            leaving = await w.scheduler.acquire(claim())
            w.scheduler.hand_on(leaving)
            alone = asyncio.create_task(w.scheduler.acquire(claim(alone=True), first=True))
            await asyncio.sleep(0)
            assert not alone.done()
            at_work = await w.scheduler.acquire(claim())
            (later,) = await waiting(w, claim())
            w.scheduler.hand_on(at_work)
            w.scheduler.release(leaving)
            w.scheduler.hand_on(at_work)
            await asyncio.sleep(0)
            assert not alone.done()
            assert not later.done()
            w.scheduler.release(at_work)
            grant = await alone
            assert not grant.turn.lined_up
            w.scheduler.hand_on(grant)
            last = await later
            assert last.turn.lined_up
            w.scheduler.release(grant)
            w.scheduler.release(last)

    run(test())
