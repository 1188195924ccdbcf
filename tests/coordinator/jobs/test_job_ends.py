"""What ends a job from outside: cancels, deadlines and a coordinator that goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from coordinator.lifecycle.job import JobPhase
from ditmesh.errors import (
    DeadlineExceeded,
    Draining,
    GroupLost,
    JobCancelled,
)
from tests.coordinator.fakes import World, gate, make_job, run, until, world

CANCEL = JobCancelled("the client cancelled the job")


def test_a_queued_job_that_is_cancelled_never_starts() -> None:
    """And those behind it move up."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            first, _ = await w.begin(*make_job("first"))
            second, _ = await w.begin(*make_job("second"))
            third, _ = await w.begin(*make_job("third"))
            await until(lambda: w.scheduler.waiting == 2)
            assert (w.runner.position(second), w.runner.position(third)) == (1, 2)
            w.runner.stop(second, CANCEL)
            assert isinstance(await w.ended(second), JobCancelled)
            assert w.runner.position(third) == 1
            for _ in range(8):
                semaphore.release()
            assert await w.ended(first) is None
            assert await w.ended(third) is None
            assert [job for job, _ in w.scripts["group"].runs] == ["first", "third"]

    run(test())


@pytest.mark.parametrize("turns", range(8))
def test_a_cancel_at_any_moment_of_the_start_loses_no_executor(turns: int) -> None:
    """Before the queue, in the moment of the grant, and after."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, _ = await w.begin(*make_job())
            for _ in range(turns):
                await asyncio.sleep(0)
            w.runner.stop(record, CANCEL)
            semaphore.release()
            assert isinstance(await w.ended(record), JobCancelled)
            assert record.step == 0

    run(test())


def test_a_running_job_that_is_stopped_ends_within_a_step() -> None:
    """The executor is told; what it finished meanwhile does not count."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, _ = await w.begin(*make_job())
            semaphore.release()
            await until(lambda: record.step == 1)
            w.runner.stop(record, CANCEL)
            assert record.phase is JobPhase.STOPPING
            semaphore.release()
            assert isinstance(await w.ended(record), JobCancelled)
            assert record.segments[-1].end_step == 1

    run(test())


def _loses(w: World) -> None:
    w.scripts["group"].fail[1] = GroupLost("rank 1 died")


def _fails(w: World) -> None:
    w.scripts["group"].fail[1] = ZeroDivisionError()


@pytest.mark.parametrize("meanwhile", [_loses, _fails])
def test_a_job_that_breaks_while_it_stops_is_stopped(meanwhile: Callable[[World], None]) -> None:
    """Whoever asked for the end gets it, and the group's loss is reported all the same."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, _ = await w.begin(*make_job())
            semaphore.release()
            await until(lambda: record.step == 1)
            w.runner.stop(record, CANCEL)
            meanwhile(w)
            semaphore.release()
            assert isinstance(await w.ended(record), JobCancelled)

    run(test())


@pytest.mark.parametrize("phase", ["queued", "running"])
def test_a_deadline_ends_a_job_in_any_phase(phase: str) -> None:
    """The words are those of a deadline, whoever notices it."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            other = None
            if phase == "queued":
                other, _ = await w.begin(*make_job("other"))
                await until(lambda: w.scripts["group"].runs)
            record, _ = await w.begin(*make_job(), remaining_s=0.05)
            await until(lambda: record.error is not None)
            for _ in range(8):
                semaphore.release()
            error = await w.ended(record)
            assert isinstance(error, DeadlineExceeded)
            assert "deadline passed" in error.message
            if other is not None:
                assert await w.ended(other) is None
                assert w.scripts["group"].runs == [("other", 0)]

    run(test())


def test_a_deadline_is_forgotten_with_the_job() -> None:
    """No timer holds a job that has ended."""

    async def test() -> None:
        async with world() as w:
            record, _ = await w.begin(*make_job(), remaining_s=3600.0)
            assert await w.ended(record) is None
            assert record.deadline_timer is not None
            assert record.deadline_timer.cancelled()

    run(test())


def test_draining_lets_jobs_end_and_stops_those_that_do_not() -> None:
    """After the grace their clients read that the coordinator is going."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, _ = await w.begin(*make_job("runs"))
            waits, _ = await w.begin(*make_job("waits"))
            await until(lambda: w.scripts["group"].runs)
            draining = asyncio.create_task(w.runner.drain(0.05))
            await until(lambda: record.phase is JobPhase.STOPPING)
            semaphore.release()
            await draining
            assert isinstance(record.error, Draining)
            assert isinstance(waits.error, Draining)

    run(test())
