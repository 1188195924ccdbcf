"""Jobs by id: over the wire, taken up again, and left by everybody."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from coordinator.config import Timing
from coordinator.lifecycle.job import JobPhase
from ditmesh.errors import (
    BadResult,
    JobCancelled,
    JobExists,
    Unavailable,
)
from ditmesh.rpc_status import from_rpc_error
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.client import read_all, served
from tests.coordinator.fakes import (
    PATIENT,
    TIMING,
    gate,
    make_job,
    messages,
    run,
    until,
    world,
)


def kinds(answers: list[pb.SampleResponse]) -> list[str | None]:
    return [answer.WhichOneof("message") for answer in answers]


def test_a_whole_job_over_the_wire() -> None:
    """Needed, accepted, progress, result, its chunks, summary: in this order."""

    async def test() -> None:
        async with served() as s:
            answers = await s.sample(*make_job(steps=2))
            assert [k for k in kinds(answers) if k != "queue"] == [
                "needed",
                "accepted",
                "progress",
                "progress",
                "result",
                "chunk",
                "summary",
            ]
            assert answers[1].accepted == pb.JobAccepted(
                job_id="job", steps=2, latent_bytes=16 * 4 * 4 * 4
            )
            assert answers[-1].summary.job_id == "job"

    run(test())


def test_a_job_without_an_id_gets_one() -> None:
    """Different each time."""

    async def test() -> None:
        async with served() as s:
            ids = set()
            for _ in range(2):
                answers = await s.sample(*make_job(""))
                ids.add(next(a.accepted.job_id for a in answers if a.HasField("accepted")))
            assert len(ids) == 2
            assert all(ids)

    run(test())


def test_what_an_executor_keeps_of_a_job_is_not_another_jobs() -> None:
    """The id that executors see is new for each job, though a client repeats its own."""

    async def test() -> None:
        async with served(timing=Timing(settle=0.0, keep_result=0.0)) as s:
            for _ in range(3):
                await s.sample(*make_job("same"))
                await until(lambda: not s.world.jobs._records)
            ids = s.world.scripts["group"].ids
            assert len(set(ids)) == 3
            assert all(seen.startswith("same-") for seen in ids)

    run(test())


def test_a_job_whose_stream_broke_runs_on_and_is_taken_up_again() -> None:
    """By the same id and spec: accepted as resumed, without sending tensors again."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job(steps=3)
            call = s.stub.Sample()
            driving = asyncio.create_task(s.drive(call, spec, tensors))
            await until(lambda: s.world.scripts["group"].runs)
            semaphore.release()
            await asyncio.sleep(0.02)
            call.cancel()
            await asyncio.gather(driving, return_exceptions=True)
            (record,) = s.world.jobs._records.values()
            await until(lambda: not record.listeners)
            again = asyncio.create_task(s.sample(spec, tensors))
            await until(lambda: record.listeners)
            for _ in range(2):
                semaphore.release()
            answers = await again
            assert kinds(answers)[0] == "accepted"
            assert answers[0].accepted.resumed
            assert kinds(answers)[-1] == "summary"
            assert len(s.world.scripts["group"].runs) == 1

    run(test())


def test_a_result_can_be_fetched_again_while_it_is_kept() -> None:
    """The same tensors and the same summary; then the id is free for another job."""

    async def test() -> None:
        async with served(timing=replace(TIMING, keep_result=1.5)) as s:
            first = await s.sample(*make_job())
            again = await s.sample(*make_job())
            assert again[0].accepted.resumed
            assert again[-3:] == first[-3:]
            await until(lambda: not s.world.jobs._records)
            assert not (await s.sample(*make_job()))[1].accepted.resumed

    run(test())


def test_a_failed_job_tells_its_error_again() -> None:
    """As often as somebody comes back, without holding on to where it was raised."""

    async def test() -> None:
        async with served(nodes=0, timing=PATIENT) as s:
            s.world.scripts["local"].fail[1] = BadResult("not finite")
            for _ in range(3):
                error = await s.refused(*make_job())
                assert isinstance(error, BadResult)
            (record,) = s.world.jobs._records.values()
            assert record.error is not None
            assert record.error.__traceback__ is None

    run(test())


def test_the_same_id_with_another_spec_is_another_job_and_refused() -> None:
    """ALREADY_EXISTS, naming the field; the first job is not disturbed."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            await s.sample(*make_job(seed=1))
            error = await s.refused(*make_job(seed=2))
            assert isinstance(error, JobExists)
            assert error.field == "job.job_id"

    run(test())


def test_ids_belong_to_their_client() -> None:
    """Another identity may have the same id, and learns nothing of the first one's job."""

    async def test() -> None:
        async with world() as w:
            mine, _ = await w.begin(*make_job(seed=1), scope="alice")
            theirs, _ = await w.begin(*make_job(seed=2), scope="bob")
            assert await w.ended(mine) is None
            assert await w.ended(theirs) is None
            assert mine is not theirs

    run(test())


def test_an_id_whose_inputs_are_still_coming_is_busy_for_a_moment() -> None:
    """UNAVAILABLE with a delay: the client's own broken stream may not have been noticed yet."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=spec))
            await call.read()
            error = await s.refused(spec, tensors)
            assert isinstance(error, Unavailable)
            assert error.retry_after_s
            call.cancel()
            await until(lambda: not s.world.jobs._records)

    run(test())


def test_a_job_that_nobody_comes_back_for_is_cancelled() -> None:
    """After the time that it is given, not before."""

    async def test() -> None:
        async with world(timing=replace(TIMING, reattach=1.0)) as w:
            semaphore, w.scripts["group"].before = gate()
            record, listener = await w.begin(*make_job())
            await until(lambda: w.scripts["group"].runs)
            loop = asyncio.get_running_loop()
            left = loop.time()
            w.jobs.detach(record, listener)
            await until(lambda: record.phase is JobPhase.STOPPING)
            assert loop.time() - left >= 1.0
            semaphore.release()
            error = await w.ended(record)
            assert isinstance(error, JobCancelled)
            assert "nobody came back" in error.message

    run(test())


def test_a_job_with_another_listener_is_not_abandoned() -> None:
    """Only the last one to go starts the clock, and whoever comes in time stops it."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, one = await w.begin(*make_job())
            other = w.jobs.attach(record)
            w.jobs.detach(record, one)
            await asyncio.sleep(2 * TIMING.reattach)
            w.jobs.detach(record, other)
            back = w.jobs.attach(record)
            await asyncio.sleep(2 * TIMING.reattach)
            assert record.phase is JobPhase.RUNNING
            for _ in range(4):
                semaphore.release()
            assert await w.ended(record) is None
            assert (await messages(back))[-1].progress.step == 4

    run(test())


def test_a_cancel_over_the_wire_ends_the_job() -> None:
    """CANCELLED for the client, the executor told, the result dropped."""

    async def test() -> None:
        async with served() as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job()
            call = s.stub.Sample()
            driving = asyncio.create_task(s.drive(call, spec, tensors))
            await until(lambda: s.world.scripts["group"].runs)
            await call.write(pb.SampleRequest(cancel=pb.CancelJob()))
            (record,) = s.world.jobs._records.values()
            await until(lambda: record.phase is JobPhase.STOPPING)
            semaphore.release()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await driving
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert isinstance(from_rpc_error(caught.value), JobCancelled)
            await s.assert_clean()

    run(test())


def test_a_cancel_before_the_inputs_are_whole_leaves_nothing() -> None:
    """CANCELLED, and the id is free."""

    async def test() -> None:
        async with served() as s:
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=make_job()[0]))
            await call.write(pb.SampleRequest(cancel=pb.CancelJob()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert not s.world.jobs._records

    run(test())


def test_a_deadline_while_inputs_come_ends_the_job_cleanly() -> None:
    """The stream is over, and so is the job: the one must not trip over the other."""

    async def test() -> None:
        async with served() as s:
            call = s.stub.Sample(timeout=1.0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.write(pb.SampleRequest(job=make_job()[0]))
                await read_all(call)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not s.world.jobs._records)

    run(test())


def test_two_streams_with_one_new_id_start_one_job() -> None:
    """Whichever is first has it; the other is told to come back."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            spec, tensors = make_job()
            ends = await asyncio.gather(
                *(s.sample(spec, tensors) for _ in range(4)), return_exceptions=True
            )
            assert len(s.world.scripts["group"].runs) == 1
            for end in ends:
                assert isinstance(end, (list, Unavailable))

    run(test())
