"""A job lines up behind one that is about to end; whatever becomes of that one, it is run once."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from coordinator.jobs.record import JobRecord
from coordinator.lifecycle.job import JobPhase
from ditmesh.errors import BadResult, DitmeshError, ExecutorFailed, GroupLost, JobCancelled
from tests.coordinator.fakes import World, gate, make_job, run, until, world

CANCEL = JobCancelled("the client cancelled the job")


async def two(w: World, steps_done: int) -> tuple[JobRecord, JobRecord, asyncio.Semaphore]:
    """Two jobs of four steps on the group, so many steps of the first one done."""
    steps, w.scripts["group"].before = gate()
    first, _ = await w.begin(*make_job("first"))
    second, _ = await w.begin(*make_job("second"))
    await until(lambda: w.scripts["group"].prepared == ["second"])
    for _ in range(steps_done):
        steps.release()
    await until(lambda: first.step == steps_done)
    return first, second, steps


async def both_end(w: World, *records: JobRecord) -> None:
    for record in records:
        assert await w.ended(record) is None


def test_the_next_job_is_started_when_the_last_step_begins_and_not_before() -> None:
    """Its own steps come after those of the job before it."""

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            first, second, steps = await two(w, 2)
            await asyncio.sleep(0.02)
            assert script.started == ["first"]
            steps.release()
            await until(lambda: script.started == ["first", "second"])
            assert second.phase is JobPhase.LINED_UP
            assert script.runs == [("first", 0)]
            for _ in range(5):
                steps.release()
            await both_end(w, first, second)
            assert script.runs == [("first", 0), ("second", 0)]

    run(test())


def test_a_result_on_its_way_holds_nobody_up() -> None:
    """The next job does its steps meanwhile, and no third one joins them."""

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            sent = asyncio.Event()

            async def slow() -> None:
                script.after = None
                await sent.wait()

            script.after = slow
            first, second, steps = await two(w, 3)
            third, _ = await w.begin(*make_job("third"))
            for _ in range(4):
                steps.release()
            await until(lambda: second.step == 3)
            await asyncio.sleep(0.02)
            assert script.started == ["first", "second"]
            steps.release()
            assert await w.ended(second) is None
            assert first.phase is JobPhase.RUNNING
            await until(lambda: script.started == ["first", "second", "third"])
            sent.set()
            for _ in range(4):
                steps.release()
            await both_end(w, first, third)

    run(test())


def test_a_job_that_lined_up_counts_its_time_from_its_own_first_step() -> None:
    """The step before it was the other job's."""

    async def test() -> None:
        async with world() as w:
            first, second, steps = await two(w, 3)
            await until(lambda: "second" in w.scripts["group"].started)
            before_the_last_step = time.monotonic()
            for _ in range(5):
                steps.release()
            await both_end(w, first, second)
            assert second.started_at is not None
            assert second.ended_at is not None
            assert second.started_at >= before_the_last_step
            assert second.segments[0].seconds <= second.ended_at - before_the_last_step

    run(test())


def test_a_group_that_could_grow_gets_a_moment_without_work() -> None:
    """However many jobs wait: a node that came back would never be taken in under steady load."""

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            idle: list[str] = []
            noted = w.group.set_busy

            def set_busy(busy: bool) -> None:
                noted(busy)
                idle.extend([] if busy else script.started)

            w.group.set_busy = set_busy  # type: ignore[method-assign]
            w.group.could_grow = True
            first, second, steps = await two(w, 3)
            for _ in range(5):
                steps.release()
            await both_end(w, first, second)
            assert idle == ["first", "first", "second"]

    run(test())


def test_a_group_lost_under_the_job_before_is_not_held_against_the_next() -> None:
    """Both queue again, once each; one loss more would have kept the second from the group."""

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            first, second, steps = await two(w, 3)
            await until(lambda: "second" in script.started)
            second.losses.note("group", advanced=False, lined_up=False)
            script.fail[3] = GroupLost("rank 1 died")
            for _ in range(10):
                steps.release()
            await both_end(w, first, second)
            assert [s.executor for s in second.segments] == ["group", "group"]
            assert sorted(script.runs) == [("first", 0), ("first", 3), ("second", 0)]
            assert [f.reason for f in second.fallbacks] == ["GROUP_LOST"]

    run(test())


def test_a_job_that_kills_what_it_lines_up_on_is_found_out() -> None:
    """In its first step, while the result of the job before it is on its way: that one starts over
    and is not blamed, and nobody lines up with either until it is known whose doing it was.
    """

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            script.sends_state = lambda step: False
            first, second, steps = await two(w, 0)
            third, _ = await w.begin(*make_job("third"))

            async def poison(step: int) -> None:
                if script.runs[-1][0] == "second":
                    raise GroupLost("rank 0 died")

            async def cut_off() -> None:
                script.after = None
                await until(lambda: w.group.failures)
                raise GroupLost("rank 0 died")

            script.before, script.after = poison, cut_off
            steps.release()
            await both_end(w, first, second, third)
            assert [s.executor for s in first.segments] == ["group", "group"]
            assert [s.executor for s in second.segments] == ["group", "group", "local"]
            assert [s.executor for s in third.segments] == ["group"]
            assert len(w.group.failures) == 2

    run(test())


def test_a_result_that_is_none_does_not_disturb_the_next_job() -> None:
    """All ranks find it alike, and go on."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail[3] = BadResult("not finite")
            first, second, steps = await two(w, 3)
            for _ in range(8):
                steps.release()
            await both_end(w, first, second)
            assert [s.executor for s in first.segments] == ["group", "local"]
            assert [s.executor for s in second.segments] == ["group"]
            assert w.group.failures == []

    run(test())


@pytest.mark.parametrize("which", [0, 1])
def test_a_cancel_of_either_leaves_the_other_alone(which: int) -> None:
    """The one at its last step, or the one that waits behind it."""

    async def test() -> None:
        async with world() as w:
            jobs = await two(w, 3)
            await until(lambda: "second" in w.scripts["group"].started)
            w.runner.stop(jobs[which], CANCEL)
            for _ in range(5):
                jobs[2].release()
            assert isinstance(await w.ended(jobs[which]), JobCancelled)
            assert await w.ended(jobs[1 - which]) is None

    run(test())


@pytest.mark.parametrize("breaks", [False, True])
def test_a_cancel_of_a_job_that_lined_up_takes_effect_at_once(breaks: bool) -> None:
    """Not with the step of the job before it, whatever becomes of that one; its executor leaves it
    out when its turn comes, and only then is another let in.
    """

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            first, second, steps = await two(w, 3)
            await until(lambda: "second" in script.started)
            third, _ = await w.begin(*make_job("third"))
            assert second.phase is JobPhase.LINED_UP
            assert w.runner.running == 2
            w.runner.stop(second, CANCEL)
            assert second.phase is JobPhase.FAILED
            await asyncio.sleep(0.02)
            assert script.started == ["first", "second"]
            if breaks:
                script.fail[3] = GroupLost("rank 1 died")
            for _ in range(12):
                steps.release()
            await both_end(w, first, third)
            assert isinstance(await w.ended(second), JobCancelled)
            assert (second.snapshot, second.end) == (None, None)
            assert second.reached == 0

    run(test())


@pytest.mark.parametrize("turns", range(12))
def test_a_cancel_at_any_moment_of_the_change_loses_no_executor(turns: int) -> None:
    """Before the next job is granted the executor, in that moment, and after."""

    async def test() -> None:
        async with world() as w:
            first, second, steps = await two(w, 2)
            steps.release()
            for _ in range(turns):
                await asyncio.sleep(0)
            w.runner.stop(second, CANCEL)
            for _ in range(5):
                steps.release()
            assert await w.ended(first) is None
            assert isinstance(await w.ended(second), JobCancelled)
            third, _ = await w.begin(*make_job("third"))
            for _ in range(4):
                steps.release()
            assert await w.ended(third) is None

    run(test())


@pytest.mark.parametrize("seed", range(5))
def test_jobs_cancels_and_losses_at_random(seed: int) -> None:
    """Each job ends once, with its result unless it was cancelled, and every executor is free."""

    async def test() -> None:
        async with world() as w:
            chance = random.Random(seed)
            script = w.scripts["group"]

            async def before(step: int) -> None:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                if chance.random() < 0.05:
                    kind: type[DitmeshError] = chance.choice([GroupLost, ExecutorFailed])
                    raise kind("by chance")

            async def after() -> None:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)

            script.before, script.after = before, after
            ends: list[str] = []
            tell = w.runner.on_end

            def ended(record: JobRecord) -> None:
                ends.append(record.job_id)
                tell(record)

            w.runner.on_end = ended
            records, cancelled = [], set()
            for number in range(40):
                steps = chance.randrange(1, 5)
                record, _ = await w.begin(*make_job(f"job{number}", steps=steps))
                records.append(record)
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                if chance.random() < 0.2:
                    victim = chance.choice(records)
                    if not victim.phase.ended:
                        cancelled.add(victim.job_id)
                        w.runner.stop(victim, CANCEL)
            for record in records:
                error = await w.ended(record)
                assert isinstance(error, JobCancelled) == (record.job_id in cancelled), error
                assert isinstance(error, JobCancelled | None), error
            assert sorted(ends) == sorted(record.job_id for record in records)

    run(test())
