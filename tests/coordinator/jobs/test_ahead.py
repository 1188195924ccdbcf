"""The next job is made ready while another runs; and whatever becomes of it, no job suffers."""

from __future__ import annotations

from coordinator.lifecycle.job import JobPhase
from ditmesh.errors import GroupLost, JobCancelled
from tests.coordinator.fakes import gate, make_job, run, until, world


def test_the_next_job_alone_is_prepared_while_another_runs() -> None:
    """Once, on the group that it will have; the one after it when its own turn is next."""

    async def test() -> None:
        async with world() as made:
            script = made.scripts["group"]
            steps, script.before = gate()
            records = [(await made.begin(*make_job(name)))[0] for name in ("a", "b", "c")]
            await until(lambda: script.prepared == ["b"])
            for _ in range(6):
                steps.release()
            await until(lambda: script.prepared == ["b", "c"])
            for _ in range(20):
                steps.release()
            for record in records:
                assert await made.ended(record) is None
            assert script.prepared == ["b", "c"]
            assert script.given_up == []
            assert [name for name, _ in script.runs] == ["a", "b", "c"]

    run(test())


def test_a_job_that_is_withdrawn_gives_up_what_was_prepared() -> None:
    """Nothing of it stays on the ranks."""

    async def test() -> None:
        async with world() as made:
            script = made.scripts["group"]
            steps, script.before = gate()
            first, _ = await made.begin(*make_job("a"))
            second, _ = await made.begin(*make_job("b"))
            await until(lambda: script.prepared == ["b"])
            made.runner.stop(second, JobCancelled("not wanted"))
            await until(lambda: script.given_up == ["b"])
            for _ in range(4):
                steps.release()
            assert await made.ended(first) is None

    run(test())


def test_what_a_lost_group_had_is_prepared_anew() -> None:
    """The job at work goes first again, and the waiting one is prepared on the new group."""

    async def test() -> None:
        async with world() as made:
            script = made.scripts["group"]
            steps, script.before = gate()
            script.fail[1] = GroupLost("rank 1 is gone")
            records = [(await made.begin(*make_job(name)))[0] for name in ("a", "b")]
            await until(lambda: script.prepared == ["b"])
            for _ in range(2):
                steps.release()
            await until(lambda: script.given_up == ["b"])
            await until(lambda: script.prepared == ["b", "b"])
            for _ in range(10):
                steps.release()
            for record in records:
                assert await made.ended(record) is None
            assert [name for name, _ in script.runs] == ["a", "a", "b"]
            assert not records[1].fallbacks

    run(test())


def test_a_preparation_that_fails_costs_nothing() -> None:
    """The job is prepared again when its turn comes, and is none the worse for it."""

    async def test() -> None:
        async with world() as made:
            script = made.scripts["group"]
            script.unprepared.append("b")
            steps, script.before = gate()
            await made.begin(*make_job("a"))
            second, _ = await made.begin(*make_job("b"))
            await until(lambda: script.prepared == ["b"])
            for _ in range(8):
                steps.release()
            assert await made.ended(second) is None
            assert second.phase is JobPhase.SUCCEEDED
            assert not second.losses.any

    run(test())
